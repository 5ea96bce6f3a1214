"""One training step of a small LLaMA on this CPU, beside Transformers on PyTorch: same weights, batch and optimizer.

    .venv/bin/python tests/benchmarks/train_step.py [--steps 8] [--layers 8] [--json PATH]

float32, AdamW, gradients clipped to norm 1, no dropout. The two take turns, a step each, so that what else the
machine does falls on both; the ratio is of the medians. Freed memory is kept for the next step (glibc's settings
below), which PyTorch needs to be at its best where fresh pages are slow. Data loading and logging are left out on both sides, and
compilation on ours (it is printed).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import ml_collections
import numpy as np
import torch
import transformers
from flax import nnx

from anygpt_jax import cli
from anygpt_jax.model.sharding import make_mesh
from anygpt_jax.training import step as train_step
from anygpt_jax.training.checkpoints import restore_model

TRAIN = ml_collections.ConfigDict(
    {
        "optimizer": "adamw", "learning_rate": 1e-4, "schedule": "cosine", "warmup_steps": 0, "steps": 1000,
        "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "clip_norm": 1.0, "z_loss": 0.0, "microbatches": 1, "loss_chunks": 1,
    }
)  # fmt: skip


KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "1000000000"}


def theirs(config: transformers.LlamaConfig, attention: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)


def their_step(model: transformers.PreTrainedModel, ids: np.ndarray):
    """A function that takes a step and returns the loss; the loss is of every token but the first."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    scales = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": TRAIN.weight_decay}, {"params": scales, "weight_decay": 0.0}]
    # PyTorch's fastest on CPUs.
    optimizer = torch.optim.AdamW(groups, TRAIN.learning_rate, (TRAIN.beta1, TRAIN.beta2), fused=True)
    tokens = torch.tensor(ids, dtype=torch.long)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), TRAIN.clip_norm)
        optimizer.step()
        return loss.item()

    return step


def our_step(checkpoint: pathlib.Path, ids: np.ndarray, unroll: int):
    loaded = restore_model(checkpoint)
    rows, length = ids.shape
    train = ml_collections.ConfigDict({**TRAIN.to_dict(), "batch_size": rows, "seq_len": length})
    config = type(loaded.config)(**{**vars(loaded.config), "unroll": unroll})
    program = train_step.build(config, train, make_mesh({}), 1)
    state = program.init(0)
    state["params"] = jax.tree.map(
        lambda new, old: jax.device_put(new, old.sharding),
        nnx.to_pure_dict(nnx.state(loaded.decoder, nnx.Param)),
        state["params"],
    )
    weights = np.ones((rows, length), np.float32)
    weights[:, -1] = 0  # nothing follows the last token
    batch = program.place(
        {
            "tokens": ids,
            "targets": np.roll(ids, -1, axis=1),
            "positions": np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape).copy(),
            "segment_ids": np.ones_like(ids),
            "loss_weights": weights,
            "modality": np.zeros_like(ids),
        },
        range(rows),
        rows,
    )

    def step() -> float:
        nonlocal state
        state, metrics = program.step(state, batch)
        return float(metrics.loss)  # waits for the step

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--attention", default="sdpa", help="of Transformers: sdpa (its default) or eager")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    config = transformers.LlamaConfig(
        hidden_size=args.width, intermediate_size=args.width * 8 // 3, num_hidden_layers=args.layers,
        num_attention_heads=args.width // 64, num_key_value_heads=args.width // 64, vocab_size=8192,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    ids = np.random.default_rng(0).integers(3, 8192, (args.rows, args.length)).astype(np.int32)
    model = theirs(config, args.attention)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/theirs")
        assert cli.main(["convert", f"{folder}/theirs", "--to", f"{folder}/ours"]) == 0
        ours = our_step(pathlib.Path(folder) / "ours", ids, unroll=args.layers)
    peer = their_step(model.train(), ids)
    began = time.perf_counter()
    first = ours(), peer()
    compiled = time.perf_counter() - began
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(args.steps):
        for step, times in zip((ours, peer), seconds, strict=True):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
    mine, other = (statistics.median(times) for times in seconds)
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_a_step": ids.size,
        "first_loss": {"ours": first[0], "transformers": first[1], "difference": abs(first[0] - first[1])},
        "median_seconds": {"ours": round(mine, 4), "transformers": round(other, 4)},
        "times_faster": round(other / mine, 3),
        "first_steps_seconds": round(compiled, 1),
        "attention_of_transformers": args.attention,
        "versions": {"jax": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "threads_of_torch": torch.get_num_threads(),
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    assert result["first_loss"]["difference"] < 1e-4, "the two do not compute the same loss"


if __name__ == "__main__":
    if not KEEP_MEMORY.keys() <= os.environ.keys():  # glibc reads them at the start
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    main()
