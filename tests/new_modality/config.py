"""The quickstart's model learns a fourth modality: depth maps, beside the pictures that it knows already."""

import ml_collections

from anygpt_jax.cli import load_config


def get_config() -> ml_collections.ConfigDict:
    c = load_config("configs/quickstart.py")
    c.workdir = "runs/depth"
    c.modalities = (*c.modalities, "depth")  # at the end: no id of the others moves
    c.tokenize.modules = ("anygpt_depth.tasks",)
    c.tokenize.tasks = ("image_to_text", "text_to_image", "text_to_depth", "depth_to_text")
    c.mixture = ml_collections.ConfigDict(
        {"image_to_text": 0.15, "text_to_image": 0.15, "text_to_depth": 0.4, "depth_to_text": 0.3}
    )
    with c.unlocked():
        c.generate.depth = ml_collections.ConfigDict({"temperature": 0.5, "top_p": 0.9})
    c.train.update(steps=300, log_every=20, eval_every=100, save_every=150)
    return c
