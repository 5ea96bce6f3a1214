"""LLaMA-2-7B's shape (arXiv 2307.09288) trained as it was, on 64 chips; the other large configs are changes of this one.

The data sections are the quickstart's, and are what to replace with one's own tasks: `anygpt tokenize` makes the
vocabulary, `anygpt plan --vocab-size=N` needs only its size. Weights come in by `anygpt convert`.
"""

import pathlib

import ml_collections

from anygpt_jax.cli import load_config


def get_config() -> ml_collections.ConfigDict:
    c = load_config(str(pathlib.Path(__file__).with_name("quickstart.py")))
    c.workdir = "runs/llama2_7b"
    c.tokenize.max_tokens = 4096

    c.model = m = ml_collections.ConfigDict()
    m.d_model = 4096
    m.n_layers = 32
    m.n_heads = 32
    m.n_kv_heads = 32
    m.head_dim = 128
    m.d_ff = 11008
    m.rope_theta = 10_000.0
    m.norm_eps = 1e-5
    m.tied_embeddings = False
    m.qk_norm = False
    m.vocab_multiple = 128
    m.param_dtype = "float32"
    m.compute_dtype = "bfloat16"
    m.attention = "splash"
    m.matmul_barriers = "all"  # on v5e all_but_gates is faster
    m.remat = "qkv_attention"

    c.mesh = ml_collections.ConfigDict({"slice": 1, "data": 1, "fsdp": 64, "context": 1, "tensor": 1})

    c.train.update(
        batch_size=1024, seq_len=4096, steps=480_000,  # 4 M tokens a step, 2 T in all
        optimizer="adamw", learning_rate=3e-4, schedule="cosine", warmup_steps=2000, weight_decay=0.1,
        beta1=0.9, beta2=0.95, clip_norm=1.0, loss_chunks=4,
        log_every=10, eval_every=2000, save_every=1000,
    )  # fmt: skip
    return c
