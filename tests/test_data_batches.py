"""Batches are what the records say, and a pure function of (cache, mixture, seed, step)."""

import collections
import subprocess
import sys

import numpy as np
import pytest
import synthetic

from anygpt_jax.cache import CacheReader, Manifest, write_shard
from anygpt_jax.data.loader import BatchSource, host_rows, iterate, pack_row
from anygpt_jax.data.mixture import Mixture
from anygpt_jax.data.packing import Packer, first_fit_decreasing
from anygpt_jax.errors import UserError
from anygpt_jax.records import Span, TokenRecord

WEIGHTS = {"image_to_text": 0.5, "text_to_image": 0.3, "documents": 0.2}
SEQ_LEN, ROWS = 64, 16


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    synthetic.write_cache(root)
    return root


def packer(cache, seed=0, rows=ROWS, weights=WEIGHTS):
    return Packer(Mixture(cache, weights, "train", seed, SEQ_LEN), rows, SEQ_LEN, seed)


def source(cache, batch_size=4, rows=None, steps=30, **kwargs):
    return BatchSource(packer(cache, **kwargs), synthetic.vocabulary(), batch_size, steps, rows)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_loss_weights_and_targets_land_on_the_right_tokens():
    """Written out by hand: the weight of a position is whether the *next* token is trained."""
    human, answer = Span(4, "text", "human", False), Span(2, "text", "assistant", True)
    first = TokenRecord("a", "t", np.array([1, 50, 7, 8, 51, 9], np.int32), (human, answer))
    begin, rest = Span(1, "text", "document", False), Span(2, "text", "document", True)
    second = TokenRecord("b", "t", np.array([1, 30, 2], np.int32), (begin, rest))
    modality = np.zeros(60, np.int8)
    modality[30] = 2
    row = pack_row([first, second], 12, 0, modality)
    expected = {
        "tokens": [1, 50, 7, 8, 51, 9, 1, 30, 2, 0, 0, 0],
        "targets": [50, 7, 8, 51, 9, 0, 30, 2, 0, 0, 0, 0],
        "loss_weights": [0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0],
        "segment_ids": [1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0, 0],
        "positions": [0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 0, 0],
        "modality": [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0],
    }
    assert row.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(row[name], values, err_msg=name)
        assert row[name].dtype == (np.float32 if name == "loss_weights" else np.int32)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_hosts(cache, hosts):
    alone = source(cache)
    # Every host builds its own plan, as separate processes do.
    each = [source(cache, rows=host_rows(4, host, hosts)) for host in range(hosts)]
    for step in (11, 0, 3):  # 16 rows a chunk and 4 a batch: step 11 lies in the third chunk
        whole, parts = alone[step], [one[step] for one in each]
        assert same(whole, {name: np.concatenate([part[name] for part in parts]) for name in whole})


def test_starting_at_a_step_gives_what_walking_there_gives(cache):
    walked = list(iterate(source(cache), 0))
    assert [step for step, _ in walked] == list(range(30))
    for start in (1, 13, 29):
        jumped = list(iterate(source(cache), start))
        assert [step for step, _ in jumped] == list(range(start, 30))
        assert all(same(a, b) for (_, a), (_, b) in zip(jumped, walked[start:], strict=True))
    assert list(iterate(source(cache), 30)) == []


def test_a_batch_larger_than_a_chunk_and_across_chunks(cache):
    """Row g of the stream does not depend on the batch size."""
    small, large = source(cache, batch_size=4), source(cache, batch_size=24)
    rows = np.concatenate([small[step]["tokens"] for step in range(12)])
    np.testing.assert_array_equal(np.concatenate([large[0]["tokens"], large[1]["tokens"]]), rows)


def test_the_seed_changes_the_order(cache):
    assert not same(source(cache, seed=0)[0], source(cache, seed=1)[0])


def test_rows_hold_whole_records_in_the_mixtures_shares(cache):
    readers = {task: CacheReader(cache, task, "train") for task in WEIGHTS}
    known = {tuple(reader[i].tokens): task for task, reader in readers.items() for i in range(len(reader))}
    drawn = collections.Counter()
    for _, batch in iterate(source(cache, steps=80), 0):
        for tokens, segments in zip(batch["tokens"], batch["segment_ids"], strict=True):
            for segment in range(1, segments.max() + 1):
                drawn[known[tuple(tokens[segments == segment])]] += 1
            assert (tokens[segments == 0] == 0).all()
    total = sum(drawn.values())
    for task, share in WEIGHTS.items():
        assert abs(drawn[task] / total - share) < 0.02


def test_an_epoch_of_a_task_draws_every_record_once_and_the_next_in_another_order(cache):
    mixture = Mixture(cache, {"documents": 1.0}, "train", 0, SEQ_LEN)
    n = len(mixture.readers[0])
    first, second = mixture.draws(0, n), mixture.draws(n, 2 * n)
    assert sorted(first) == sorted(second) == [(0, i) for i in range(n)]
    assert first != second
    assert first != sorted(first)


def test_nothing_is_lost_between_draws_and_rows(cache):
    ours = packer(cache)
    for c in range(20):
        plan = ours.chunk(c)
        placed = [pair for row in plan.rows for pair in row]
        draws = ours.mixture.draws(c * ours.draws_per_chunk, (c + 1) * ours.draws_per_chunk)
        assert sorted(placed + list(plan.left_out)) == sorted(draws)
        assert all(ours.mixture.lengths(row).sum() <= SEQ_LEN for row in plan.rows if row)
        assert len(plan.rows) == ROWS
        assert plan.fill > 0.7
    assert sum(ours.left_out.values()) <= 0.001 * 20 * ours.draws_per_chunk


def test_first_fit_decreasing_on_a_case_worked_by_hand():
    assert first_fit_decreasing(np.array([3, 7, 5, 2, 9]), 3, 10).tolist() == [1, 1, 2, 2, 0]
    assert first_fit_decreasing(np.array([6, 6, 6]), 2, 10).tolist() == [0, 1, -1]


def test_records_too_long_for_a_row_are_listed_and_not_drawn(tmp_path):
    vocabulary = synthetic.vocabulary()
    lengths = [10, 70, 20, 65, 64]
    made = [
        TokenRecord(f"k{i}", "t", np.full(n, 5, np.int32), (Span(n, "text", "document", True),))
        for i, n in enumerate(lengths)
    ]
    shard = write_shard(tmp_path, "t/train/00000-of-00001", made)
    vocabulary.save(tmp_path / "vocabulary.json")
    Manifest(vocabulary.fingerprint, "none", {}, {"t": {"train": [shard]}}).save(tmp_path)
    mixture = Mixture(tmp_path, {"t": 1.0}, "train", 0, SEQ_LEN)
    assert [(r.index, r.length) for r in mixture.too_long] == [(1, 70), (3, 65)]
    assert {record for _, record in mixture.draws(0, 50)} == {0, 2, 4}
    with pytest.raises(UserError, match="seq_len=5"):
        Mixture(tmp_path, {"t": 1.0}, "train", 0, 5)


def test_bad_mixtures_are_refused(cache):
    with pytest.raises(UserError, match="zero"):
        Mixture(cache, {"documents": 0.0}, "train", 0, SEQ_LEN)
    with pytest.raises(UserError, match="no_such_task"):
        Mixture(cache, {"no_such_task": 1.0}, "train", 0, SEQ_LEN)
    with pytest.raises(UserError, match="divide"):
        host_rows(6, 0, 4)


def test_the_trainer_needs_no_tensorflow_seqio_beam_or_codec():
    code = """
import sys
import anygpt_jax.training.main, anygpt_jax.training.loop, anygpt_jax.training.checkpoints
loaded = {name.split('.')[0] for name in sys.modules}
bad = loaded & {'tensorflow', 'seqio', 'apache_beam', 'tensorflow_datasets', 'torch'}
rooms = tuple(f'anygpt_jax.{room}' for room in ('modalities', 'tasks', 'generation', 'embedded'))
bad |= {name for name in sys.modules if name.startswith(rooms)}
sys.exit(', '.join(sorted(bad)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
