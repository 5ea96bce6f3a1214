"""A small made-up token cache, so that data and training are tested without any other room."""

from __future__ import annotations

import pathlib

import ml_collections
import numpy as np

from anygpt_jax.cache import Manifest, write_shard
from anygpt_jax.records import Span, TokenRecord
from anygpt_jax.vocabulary import BlockSpec, Vocabulary

TASKS = ("image_to_text", "text_to_image", "documents")


def vocabulary(text_size: int = 40, image: int = 16, speech: int = 12) -> Vocabulary:
    return Vocabulary.build(
        text_size=text_size, text_fingerprint="none", blocks=[BlockSpec("image", image), BlockSpec("speech", speech)]
    )


def record(vocab: Vocabulary, task: str, i: int, rng: np.random.Generator) -> TokenRecord:
    """A caption of 3-12 pieces and an image of 6 codes that follow from each other, so that they can be learnt."""
    words = rng.integers(3, vocab.text_size, rng.integers(3, 13)).astype(np.int32)
    block = vocab.block("image")
    codes = block.start + (words[0] + np.arange(6)) % block.size
    image = np.concatenate([[block.begin], codes, [block.end]])
    bos, human, answer, eoh, eos = (
        np.array([x])
        for x in (
            vocab.bos,
            vocab.marker("[Human]"),
            vocab.marker("[AnyGPT]"),
            vocab.marker("<eoh>"),
            vocab.marker("<eos>"),
        )
    )
    if task == "documents":
        pieces = [
            (bos, "text", "document", False),
            (words, "text", "document", True),
            (image, "image", "document", True),
        ]
    else:
        source, target = (
            ((image, "image"), (words, "text")) if task == "image_to_text" else ((words, "text"), (image, "image"))
        )
        pieces = [(bos, "text", "human", False), (human, "text", "human", False), (*source, "human", False)]
        pieces += [(eoh, "text", "human", False), (answer, "text", "assistant", False)]
        pieces += [(*target, "assistant", True), (eos, "text", "assistant", True)]
    tokens = np.concatenate([p[0] for p in pieces]).astype(np.int32)
    return TokenRecord(f"{task}-{i}", task, tokens, tuple(Span(len(t), m, r, loss) for t, m, r, loss in pieces))


def write_cache(root: pathlib.Path, records: int = 60, vocab: Vocabulary | None = None, tasks=TASKS) -> Vocabulary:
    """Three tasks with train, validation and test splits, two shards each."""
    vocab = vocab or vocabulary()
    root.mkdir(parents=True, exist_ok=True)
    held: dict = {}
    for t, task in enumerate(tasks):
        held[task] = {}
        for s, (split, n) in enumerate((("train", records), ("validation", 12), ("test", 6))):
            made = [record(vocab, task, i, np.random.default_rng((t, s, i))) for i in range(n)]
            halves = (made[: n // 2], made[n // 2 :])
            held[task][split] = [
                write_shard(root, f"{task}/{split}/{h:05d}-of-00002", half) for h, half in enumerate(halves)
            ]
    vocab.save(root / "vocabulary.json")
    Manifest(vocab.fingerprint, "none", {"image": "none"}, held).save(root)
    return vocab


def config(workdir: pathlib.Path, **train) -> ml_collections.ConfigDict:
    """A decoder of a few thousand parameters for the cache above; keywords change `config.train`."""
    values = {
        "batch_size": 4, "seq_len": 64, "steps": 12, "optimizer": "adamw", "learning_rate": 1e-2, "schedule": "linear",
        "warmup_steps": 2, "weight_decay": 0.05, "beta1": 0.9, "beta2": 0.98, "clip_norm": 1.0, "z_loss": 0.0, "microbatches": 1, "loss_chunks": 1,
        "log_every": 4, "eval_every": 8, "eval_batches": 2, "save_every": 4, "keep_checkpoints": 2, "pack_rows": 8,
    }  # fmt: skip
    return ml_collections.ConfigDict(
        {
            "kind": "decoder",
            "workdir": str(workdir),
            "seed": 0,
            "mixture": dict.fromkeys(TASKS, 1.0),
            "model": {
                "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "d_ff": 48,
                "rope_theta": 1e4, "norm_eps": 1e-5, "tied_embeddings": True, "qk_norm": True,
                "vocab_multiple": 8,
                "param_dtype": "float32", "compute_dtype": "float32", "remat": "none",
            },
            "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
            "train": values | train,
        }
    )  # fmt: skip
