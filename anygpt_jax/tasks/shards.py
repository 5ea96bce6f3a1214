"""What a worker does: one shard of one source, through every task that reads it, into the token cache."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping

import ml_collections
import seqio
import tensorflow as tf

from anygpt_jax.cache import Ledger, finished_shard, write_shard
from anygpt_jax.errors import UserError
from anygpt_jax.modalities import base
from anygpt_jax.modalities.base import ModalityTokenizer
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.tasks import accounts, registry
from anygpt_jax.tasks.encoding import Encoder, Example, Stop
from anygpt_jax.templates import Formatter
from anygpt_jax.vocabulary import BlockSpec, Vocabulary

READ_BATCH = 64  # examples that cross from TensorFlow to Python together: one by one costs more than twice


@dataclasses.dataclass(frozen=True)
class Job:
    """What every worker must know. Hashable and small: it travels to the workers with the code."""

    config: str  # the config's JSON
    cache: str

    @functools.cached_property
    def settings(self) -> ml_collections.ConfigDict:
        """The config, parsed when it is first asked for."""
        return ml_collections.ConfigDict(json.loads(self.config))


@dataclasses.dataclass(frozen=True)
class TaskShard:
    """One file of the cache: its stem (TASK/SPLIT/00000-of-00004, or of its source file) and the recipe of its bytes."""

    task: str
    stem: str
    recipe: str


@dataclasses.dataclass(frozen=True)
class Work:
    """One element of the job: a shard of a source's split, and the shards of the cache made of it.

    The tasks of one source are done together, so that each medium is encoded once for all of them.
    """

    split: str
    index: int
    count: int
    shards: tuple[TaskShard, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Every shard of the cache, grouped as the workers will make them."""

    works: tuple[Work, ...]

    def shards(self) -> list[tuple[Work, TaskShard]]:
        """Each with the work that it is part of."""
        return [(work, shard) for work in self.works for shard in work.shards]


def vocabulary_of(text: TextTokenizer, tokenizers: Mapping[str, ModalityTokenizer]) -> Vocabulary:
    """Text, then a block for each tokenizer: their order decides the ids."""
    return Vocabulary.build(
        text_size=text.size,
        text_fingerprint=text.fingerprint,
        blocks=[BlockSpec(name, t.codebook_size, t.symbol) for name, t in tokenizers.items()],
    )


@functools.cache
def _encoder(job: Job) -> Encoder:
    """One a process, so that the codecs are loaded once."""
    config = job.settings
    tokenizers = base.of_config(config)
    text = TextTokenizer.load()
    formatter = Formatter(vocabulary_of(text, tokenizers), text)
    settings = config.tokenize
    return Encoder(tokenizers, formatter, batch_size=settings.batch_size, max_tokens=settings.max_tokens)


@functools.cache
def _register(job: Job) -> None:
    registry.register(job.settings)


def read_examples(task: str, split: str, index: int, count: int) -> Iterator[Example]:
    """The examples of one shard, in the source's order."""
    dataset = seqio.get_mixture_or_task(task).get_dataset(
        split=split,
        shuffle=False,
        shard_info=seqio.ShardInfo(index=index, num_shards=count),
        trim_output_features=False,
        try_in_mem_cache=False,
    )
    try:
        for batch in dataset.ragged_batch(READ_BATCH).as_numpy_iterator():
            # Lists of unlike length come as ragged values, the others as arrays.
            columns = {name: value.to_list() if hasattr(value, "to_list") else value for name, value in batch.items()}
            for i in range(len(columns["key"])):
                yield Example.from_numpy({name: column[i] for name, column in columns.items()})
    except tf.errors.OpError as e:
        # TensorFlow keeps the class and the words of an error in Python, and not the error.
        if stopped := re.search(rf"\b{Stop.__name__}: (.+)", str(e.message)):
            raise UserError(stopped[1]) from e
        cause = str(e.message).strip().splitlines()[0][:200]
        raise UserError(f"The data of {task}/{split} cannot be read ({cause}); build or copy it again.") from e


def tokenize_shards(job: Job, work: Work) -> None:
    """Writes every shard of the cache that this element stands for, except those an earlier run finished.

    Raises UserError if more than `tokenize.max_reject_share` of what this process has seen of a split is rejected.
    """
    _register(job)
    for shard in work.shards:
        if finished_shard(job.cache, shard.stem, shard.recipe):
            continue
        ledger, tally = Ledger(), _tally(job, f"{shard.task}/{work.split}")
        examples = read_examples(shard.task, work.split, work.index, work.count)
        watched = _watched(examples, ledger, tally, accounts.max_reject_share(job.settings))
        write_shard(job.cache, shard.stem, _encoder(job).records(watched, shard.task, ledger), ledger, shard.recipe)
        tally.add(ledger)
        tally.check(Ledger(), accounts.max_reject_share(job.settings))


@functools.cache
def _tally(job: Job, source: str) -> accounts.Tally:
    """What this process has seen of a task's split in the shards that it finished."""
    return accounts.Tally(source)


def _watched(examples: Iterable[Example], ledger: Ledger, tally: accounts.Tally, most: float) -> Iterator[Example]:
    """The same examples; now and then it looks whether too many of them are rejected."""
    for i, example in enumerate(examples):
        if i and i % accounts.LEAST_INPUTS == 0:
            tally.check(ledger, most)
        yield example
