"""AnyGPT-7B (arXiv 2402.12226): LLaMA-2-7B with image, speech and music ids, by the paper's tables 7 and 8.

Three stages, each in a workdir of its own with its own token cache, all of one vocabulary:

    anygpt_7b.py            pre-training: 81,000 steps of 480 rows, on any-to-text, text-to-any and interleaved documents
    anygpt_7b.py:continue   4,000 steps more, on pictures of quality and music of AnyInstruct, from the first stage
    anygpt_7b.py:sft        5,000 steps of 64 rows, on dialogues, from the second; loss falls on answers alone

Two more are the released weights, to generate, talk and evaluate with (docs/formats.md, docs/tokenizers.md):

    anygpt_7b.py:base       AnyGPT-base, converted to runs/anygpt_7b_base/checkpoints
    anygpt_7b.py:chat       AnyGPT-chat, converted to runs/anygpt_7b_chat/checkpoints

The released weights come in by `anygpt convert FOLDER --to runs/anygpt_7b/checkpoints`; the ids are those of their
added_tokens.json. A fresh start is LLaMA-2's weights with `--vocabulary` of the token cache.
"""

import pathlib

import ml_collections

from anygpt_jax.cli import load_config

WEIGHTS = "weights"  # of the tokenizers, converted as docs/tokenizers.md says
RELEASED_SECONDS = {"base": 20.0, "chat": 5.0}  # of music that the authors' command lines code


def get_config(stage: str = "pretrain") -> ml_collections.ConfigDict:
    c = load_config(str(pathlib.Path(__file__).with_name("llama2_7b.py")))
    c.workdir = "runs/anygpt_7b"
    c.mesh.update(fsdp=32)
    c.train.update(
        batch_size=480, seq_len=4608,  # the paper's 4500, rounded up to a multiple of the attention kernel's blocks
        steps=81_000, learning_rate=6e-5, schedule="cosine", warmup_steps=2430,  # 3 %
        weight_decay=0.0, beta2=0.999, clip_norm=1.0,
    )  # fmt: skip
    start_from = ""
    if stage == "continue":
        c.workdir = "runs/anygpt_7b_continue"
        # The paper names neither rate nor warm-up of this stage; the authors' script of about this length has 3e-5.
        c.train.update(steps=4000, learning_rate=3e-5, warmup_steps=120)
        start_from = "runs/anygpt_7b"
    elif stage == "sft":
        c.workdir = "runs/anygpt_7b_sft"
        c.train.update(batch_size=64, steps=5000, learning_rate=2e-5, warmup_steps=150, eval_every=500, save_every=500)
        start_from = "runs/anygpt_7b_continue"
    elif stage in RELEASED_SECONDS:
        c.workdir = f"runs/anygpt_7b_{stage}"
        c.format = f"anygpt-{stage}"
        # Table 9 of the paper; the sampling files of the release say otherwise (top-p 1 everywhere).
        c.generate.text.update(temperature=0.0, beams=5, max_tokens=512)
        c.generate.image.update(temperature=1.0, top_p=0.7)
        c.generate.speech.update(temperature=1.0, top_p=0.7)
        c.generate.music.update(temperature=1.0, top_p=1.0)
        with c.unlocked():
            c.generate.music.repetition_penalty = 1.15
            c.tokenizers = {
                "image": {
                    "entry": "seed2",
                    "weights": f"{WEIGHTS}/seed2.safetensors",
                    "decoder": f"{WEIGHTS}/unclip.safetensors",
                },
                "speech": {
                    "entry": "speechtokenizer",
                    "weights": f"{WEIGHTS}/speechtokenizer.safetensors",
                    "acoustic": f"{WEIGHTS}/soundstorm.safetensors",
                },
                "music": {
                    "entry": "encodec",
                    "weights": f"{WEIGHTS}/encodec_32khz.safetensors",
                    "seconds": RELEASED_SECONDS[stage],
                },
            }
    elif stage != "pretrain":
        raise ValueError(f"AnyGPT's stages are pretrain, continue, sft, base and chat, not {stage!r}")
    if start_from:
        with c.unlocked():
            c.train.start_from = start_from
    return c
