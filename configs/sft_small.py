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
    c.tokenize.tasks = ("any_instruct",)
    c.tokenize.any_instruct = "runs/synthesize_small/any_instruct"
    # A spoken request is written down first, then answered in text, then by voice (AnyGPT's chain of modality).
    c.tokenize.heard = "you said {} :"
    c.mixture = ml_collections.ConfigDict({"any_instruct": 1.0})
    c.train.update(
        start_from=str(shipped.folder()), steps=1000, learning_rate=1e-3, warmup_steps=50, ema_decay=0.0,
        log_every=50, eval_every=500, save_every=500,
    )  # fmt: skip
    c.generate.text.update(beams=1, round_trip=0.0)
    c.evaluate.update(dialogues=256)
    if stage == "before":
        c.checkpoints = str(shipped.folder())
    elif stage:
        raise ValueError(f"the stages are the one without a name and `before`, not {stage!r}")
    return c
