"""LLaMA-2-70B: the shape of arXiv 2307.09288 (eight key heads), at half the 7B's learning rate, on 512 chips of v5p."""

import pathlib

import ml_collections

from anygpt_jax.cli import load_config


def get_config() -> ml_collections.ConfigDict:
    c = load_config(str(pathlib.Path(__file__).with_name("llama2_7b.py")))
    c.workdir = "runs/llama2_70b"
    c.model.update(d_model=8192, n_layers=80, n_heads=64, n_kv_heads=8, d_ff=28672, remat="minimal")
    c.mesh.update(fsdp=512)
    c.train.update(microbatches=2, learning_rate=1.5e-4)  # a row a chip at a time
    return c
