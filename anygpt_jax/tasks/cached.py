"""A token cache as ordinary SeqIO tasks, for mixtures and trainers of SeqIO's world.

    cached.add("anygpt_image_to_text", "runs/quickstart/cache", "image_to_text")
    seqio.MixtureRegistry.add("two", [("anygpt_image_to_text", 1.0), ("anygpt_text_to_image", 2.0)])

    tokens      int32[L]
    loss_mask   bool[L]     whether predicting this token is trained
    key         string

Nothing is tokenized again, and no steps are run but those given to `add`; `sequence_length={"tokens": L}` of SeqIO
cuts the tokens, and needs `"loss_mask": L` beside it.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import seqio
import tensorflow as tf

from anygpt_jax.cache import CacheReader, Manifest, load_vocabulary
from anygpt_jax.errors import UserError


def features(cache: str | pathlib.Path) -> dict[str, seqio.Feature]:
    """The output features of every task over this cache: its ids are as they are, so its vocabulary passes them on."""
    tokens = seqio.PassThroughVocabulary(size=load_vocabulary(cache).size)
    other = seqio.PassThroughVocabulary(size=2)
    return {
        "tokens": seqio.Feature(tokens, add_eos=False, dtype=tf.int32, rank=1),
        "loss_mask": seqio.Feature(other, add_eos=False, dtype=tf.bool, rank=1),
        "key": seqio.Feature(other, add_eos=False, dtype=tf.string, rank=0),
    }


def source(cache: str | pathlib.Path, task: str) -> seqio.FunctionDataSource:
    """The splits of one task that hold records. Raises UserError if there is no such task in the cache."""
    manifest = Manifest.load(cache)
    if task not in manifest.tasks:
        raise UserError(f"The token cache {cache} has no task '{task}'; it has: {', '.join(manifest.tasks)}.")
    counts = {split: sum(shard.records for shard in shards) for split, shards in manifest.tasks[task].items()}
    counts = {split: count for split, count in counts.items() if count}
    return seqio.FunctionDataSource(
        functools.partial(records, cache=str(cache), task=task), splits=tuple(counts), num_input_examples=counts
    )


def records(
    split: str, shuffle_files: bool, seed: int | None = None, *, cache: str = "", task: str = ""
) -> tf.data.Dataset:
    """The records in the cache's order, or in one that `seed` decides."""

    def read() -> Iterator[dict[str, np.ndarray | str]]:
        reader = CacheReader(cache, task, split)
        order = np.random.default_rng(seed).permutation(len(reader)) if shuffle_files else np.arange(len(reader))
        for i in order:
            record = reader[int(i)]
            yield {"tokens": record.tokens, "loss_mask": record.loss_mask(), "key": record.key}

    return tf.data.Dataset.from_generator(
        read,
        output_signature={
            "tokens": tf.TensorSpec([None], tf.int32),
            "loss_mask": tf.TensorSpec([None], tf.bool),
            "key": tf.TensorSpec([], tf.string),
        },
    )


def add(name: str, cache: str | pathlib.Path, task: str, preprocessors: Sequence[Callable] = ()) -> seqio.Task:
    """Registers the task `task` of a cache as the SeqIO task `name`."""
    return seqio.TaskRegistry.add(
        name, source=source(cache, task), preprocessors=list(preprocessors), output_features=features(cache)
    )
