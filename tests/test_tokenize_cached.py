"""A token cache read by SeqIO: as a task, and two of them as a mixture."""

import collections

import numpy as np
import pytest
import seqio
import synthetic

from anygpt_jax.cache import CacheReader
from anygpt_jax.errors import UserError
from anygpt_jax.tasks import cached


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    synthetic.write_cache(root)
    for task in ("image_to_text", "documents"):
        cached.add(f"cached_{task}", root, task)
    seqio.MixtureRegistry.add("cached_two", [("cached_image_to_text", 3.0), ("cached_documents", 1.0)])
    yield root
    seqio.MixtureRegistry.remove("cached_two")
    for task in ("image_to_text", "documents"):
        seqio.TaskRegistry.remove(f"cached_{task}")


def read(name, split="train", n=None, **options):
    dataset = seqio.get_mixture_or_task(name).get_dataset(split=split, **options)
    return list((dataset if n is None else dataset.take(n)).as_numpy_iterator())


def test_a_task_gives_every_record_as_it_is(cache):
    reader = CacheReader(cache, "documents", "train")
    found = read("cached_documents", sequence_length=None, shuffle=False)
    assert len(found) == len(reader) == seqio.get_mixture_or_task("cached_documents").num_input_examples("train") == 60
    for i, example in enumerate(found):
        record = reader[i]
        np.testing.assert_array_equal(example["tokens"], record.tokens)
        np.testing.assert_array_equal(example["loss_mask"], record.loss_mask())
        assert example["key"].decode() == record.key
    assert seqio.get_mixture_or_task("cached_documents").splits == ("train", "validation", "test")


def test_shards_cover_the_task_once(cache):
    keys = [
        example["key"]
        for index in range(3)
        for example in read("cached_documents", shuffle=False, shard_info=seqio.ShardInfo(index, 3))
    ]
    assert len(keys) == len(set(keys)) == 60


def test_a_seed_decides_the_order(cache):
    one, again, other = ([e["key"] for e in read("cached_documents", shuffle=True, seed=seed)] for seed in (1, 1, 2))
    assert one == again != other
    assert sorted(one) == sorted(other)


def test_sequence_length_cuts_tokens_and_mask(cache):
    for example in read("cached_documents", sequence_length={"tokens": 10, "loss_mask": 10}, shuffle=False):
        assert len(example["tokens"]) == len(example["loss_mask"]) == 10


def test_a_mixture_draws_by_its_rates(cache):
    found = read("cached_two", n=400, sequence_length=None, num_epochs=None, shuffle=True, seed=0)
    assert set(found[0]) == {"tokens", "loss_mask", "key"}
    drawn = collections.Counter(example["key"].decode().split("-")[0] for example in found)
    assert set(drawn) == {"image_to_text", "documents"}
    assert 260 < drawn["image_to_text"] < 340  # 300 ± 4.6 standard deviations
    readers = {task: CacheReader(cache, task, "train") for task in drawn}
    tokens = {r[i].key: r[i].tokens for r in readers.values() for i in range(len(r))}
    for example in found[:100]:
        np.testing.assert_array_equal(example["tokens"], tokens[example["key"].decode()])


def test_a_task_that_is_not_there_is_said(cache):
    with pytest.raises(UserError, match="has no task 'songs'; it has: image_to_text"):
        cached.source(cache, "songs")
