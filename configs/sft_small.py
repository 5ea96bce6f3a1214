"""The shipped model taught by made dialogues: `anygpt synthesize --config=configs/synthesize_small.py` comes first."""

import importlib.util
import pathlib

import ml_collections

from anygpt_jax import shipped

SPEC = importlib.util.spec_from_file_location("tiny", pathlib.Path(__file__).with_name("tiny.py"))


def get_config(stage: str = "") -> ml_collections.ConfigDict:
    """`configs/sft_small.py` is the model that was taught, `:before` what it was taught from, measured the same way."""
    tiny = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(tiny)
    c = tiny.get_config()
    c.workdir = "runs/sft_small"
    c.seed = 2
    # Pairs and dialogues of the embedded data go along, so that what the model knew is not lost; on new examples.
    c.data.update(
        scenes=4000, two_objects=60, sentences=1500, espeak_sentences=100, clips=1000, dialogues=1500, held_out=64
    )  # fmt: skip
    c.mixture = ml_collections.ConfigDict(
        {
            "any_instruct": 0.5, "dialogues": 0.06, "image_to_text": 0.1, "text_to_image": 0.12,
            "speech_to_text": 0.07, "text_to_speech": 0.07, "music_to_text": 0.03, "text_to_music": 0.05,
        }
    )  # fmt: skip
    c.tokenize.tasks = tuple(c.mixture)
    c.tokenize.any_instruct = "runs/synthesize_small/any_instruct"
    # A spoken request is written down first, then answered in text, then by voice (AnyGPT's chain of modality).
    c.tokenize.heard = "you said {} :"
    c.train.update(
        start_from=str(shipped.folder()), steps=4000, learning_rate=1.5e-3, warmup_steps=100, ema_decay=0.0,
        log_every=50, eval_every=1000, save_every=1000,
    )  # fmt: skip
    c.generate.text.update(beams=1, round_trip=0.0)
    c.evaluate.update(examples=64, dialogues=256, hard_splits=False)
    if stage == "before":
        c.checkpoints = str(shipped.folder())
    elif stage:
        raise ValueError(f"the stages are the one without a name and `before`, not {stage!r}")
    return c
