"""What the grammar costs: a step of decoding with the plan's mask, beside the same step in which everything is allowed.

    .venv/bin/python tests/benchmarks/masking.py [--batches 1 8 32] [--repeats 7] [--json PATH]

A random model of SmolLM2-135M's shape over AnyGPT's vocabulary (32,000 pieces of text, 8,192 codes of pictures, 1,024 of speech,
8,192 of music), greedy, on this CPU; every answer is a piece of music that goes on beyond the measured steps. The two
take turns; the ratio is of the medians, 1 when the mask costs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.remove(str(pathlib.Path(__file__).parent))  # a file beside this one has the name of a package

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from anygpt_jax.generation import automaton, slots
from anygpt_jax.generation.plans import Plans
from anygpt_jax.generation.sampling import Sampling, SamplingTable
from anygpt_jax.modalities.base import Grammar
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decode_weights import for_decoding
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.vocabulary import BlockSpec, Vocabulary

STEPS, LENGTH = 16, 256
VOCABULARY = Vocabulary.build(
    text_size=32_000,
    text_fingerprint="-",
    blocks=[BlockSpec("image", 8192), BlockSpec("speech", 1024), BlockSpec("music", 8192)],
)
GRAMMARS = {
    "image": Grammar(((0, 8192),), 32, 32),
    "speech": Grammar(((0, 1024),), 1, 1000),
    "music": Grammar(tuple((2048 * q, 2048 * q + 2048) for q in range(4)), 4 * 1000, 4 * 1000),
}


def decoder() -> Decoder:
    config = ModelConfig(
        VOCABULARY.padded_size(128), 576, 30, 9, 3, 64, 1536, ids=VOCABULARY.size, tied_embeddings=True
    )
    return for_decoding(Decoder(config, rngs=nnx.Rngs(0)))


def started(config: ModelConfig, batch: int, node: int) -> slots.State:
    state = slots.empty(config, batch, LENGTH, 4)
    table = SamplingTable.build([Sampling(0.0)] * 4)
    tokens = np.full(LENGTH, 5, np.int32)
    for b in range(batch):
        state = slots.admit(state, jnp.int32(b), jnp.int32(b), tokens, slots.row(64, node, 10_000, b, b, b), table)
    return state


def all_allowed(tables, node, run, left, vocab_size):
    return jnp.ones((len(node), vocab_size), bool)


def stays(tables, node, run, token):
    return node, run + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    model = decoder()
    graph, weights = nnx.split(model)
    plans = Plans(VOCABULARY, GRAMMARS, 100)
    node = plans.add(("music",)).start
    found = []
    for batch in args.batches:
        programs = {}
        for name, allowed, advance in (
            ("free", all_allowed, stays),
            ("masked", automaton.allowed, automaton.advance),
        ):
            with mock.patch.object(automaton, "allowed", allowed), mock.patch.object(automaton, "advance", advance):
                state = started(model.config, batch, node)
                programs[name] = (
                    jax.jit(slots.write_tokens, static_argnames=("graph", "stride", "length"))
                    .lower(graph, weights, plans.tables, state, jnp.bool_(False), stride=STEPS, length=LENGTH)
                    .compile()
                )
        times: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(args.repeats + 1):
            for name, program in programs.items():
                state = started(model.config, batch, node)
                jax.block_until_ready(state)
                began = time.perf_counter()
                jax.block_until_ready(program(weights, plans.tables, state, jnp.bool_(False)))
                times[name].append((time.perf_counter() - began) / STEPS)
        medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
        ratios = [free / masked for free, masked in zip(times["free"][1:], times["masked"][1:], strict=True)]
        row = {
            "name": f"masking_batch_{batch}",
            "ours": medians["masked"],
            "peer": medians["free"],
            "unit": "s a step",
            "ratio": medians["free"] / medians["masked"],
            "spread": [min(ratios), max(ratios)],
            "conditions": f"SmolLM2-135M's shape, {VOCABULARY.size} ids, float32, {os.cpu_count()} cores",
        }
        found.append(row)
        print(
            f"batch {batch:>3}: {1e3 * row['ours']:.2f} ms a step masked, {1e3 * row['peer']:.2f} free, "
            f"overhead {100 * (1 / row['ratio'] - 1):.1f} % ({row['spread'][0]:.2f} to {row['spread'][1]:.2f})",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
