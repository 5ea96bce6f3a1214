"""Batches are what the records say, and a pure function of (cache, mixtures, seed, step)."""

import collections
import itertools
import subprocess
import sys

import numpy as np
import pytest
import synthetic

from anygpt_jax.cache import CacheReader, Manifest, write_shard
from anygpt_jax.data.decode import pack_rows
from anygpt_jax.data.history import Stage
from anygpt_jax.data.loader import BatchSource, host_rows, iterate, pack_row, packers
from anygpt_jax.data.mixture import MixtureSettings
from anygpt_jax.data.store import Store
from anygpt_jax.errors import UserError
from anygpt_jax.records import Span, TokenRecord

WEIGHTS = {"image_to_text": 0.5, "text_to_image": 0.3, "documents": 0.2}
OTHERS = {"image_to_text": 0.2, "documents": 0.8}
SEQ_LEN, ROWS = 64, 16


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    synthetic.write_cache(root)
    return root


def source(cache, batch_size=4, rows=None, steps=30, seed=0, history=None, **kwargs):
    history = history or [Stage(0, MixtureSettings(WEIGHTS))]
    sizes = {"batch_size": batch_size, "pack_rows": ROWS, "seq_len": SEQ_LEN, "seed": seed}
    stages = packers(Store(cache, "train"), history, **sizes, **kwargs)
    return BatchSource(stages, synthetic.vocabulary(), batch_size, steps, rows)


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


def plainly(pieces, starts, seq_len, pad, modality_of):
    """The same batch a token at a time; pieces are (record, offset, length)."""
    rows = len(starts) - 1
    batch = {name: np.zeros((rows, seq_len), np.int32) for name in ("segment_ids", "positions", "modality")}
    batch |= {name: np.full((rows, seq_len), pad, np.int32) for name in ("tokens", "targets")}
    batch["loss_weights"] = np.zeros((rows, seq_len), np.float32)
    for r in range(rows):
        at = 0
        for segment, (record, offset, length) in enumerate(pieces[starts[r] : starts[r + 1]], 1):
            trained = [span.loss for span in record.spans for _ in range(span.length)]
            for i in range(length):
                batch["tokens"][r, at] = record.tokens[offset + i]
                batch["segment_ids"][r, at], batch["positions"][r, at] = segment, i
                if i + 1 < length:
                    target = record.tokens[offset + i + 1]
                    batch["targets"][r, at], batch["modality"][r, at] = target, modality_of[target]
                    batch["loss_weights"][r, at] = trained[offset + i + 1]
                at += 1
    return batch


def test_rows_of_random_pieces_are_what_a_loop_over_tokens_gives():
    rng = np.random.default_rng(0)
    modality_of = rng.integers(0, 4, 70000).astype(np.int32)
    for trial in range(40):
        seq_len, rows = int(rng.integers(2, 30)), int(rng.integers(1, 5))
        pieces, starts = [], [0]
        for _ in range(rows):
            room = seq_len if rng.random() < 0.3 else int(rng.integers(0, seq_len + 1))
            while room > 0:
                n = int(rng.integers(1, room + 1))
                cuts = sorted({0, n, *rng.integers(0, n + 1, 3).tolist()})
                spans = tuple(Span(b - a, "text", "human", bool(rng.integers(2))) for a, b in itertools.pairwise(cuts))
                tokens = rng.integers(0, (60000, 70000)[trial % 2], n).astype(np.int32)
                record, offset, length = TokenRecord("k", "s", tokens, spans), 0, n
                if rng.random() < 0.5:  # a piece of a longer record
                    offset, more = int(rng.integers(1, 9)), int(rng.integers(0, 9))
                    tail = (Span(more, "text", "human", True),) if more else ()
                    around = rng.integers(0, 60000, offset + n + more).astype(np.int32)
                    record = TokenRecord("k", "s", around, (Span(offset, "text", "human", True), *spans, *tail))
                pieces.append((record, offset, length))
                room -= n
            starts.append(len(pieces))
        offsets, lengths = (np.array([p[k] for p in pieces], np.int64) for k in (1, 2))
        data = [record.to_bytes() for record, _, _ in pieces]
        ours = pack_rows(data, offsets, lengths, np.array(starts), seq_len, 5, modality_of)
        expected = plainly(pieces, starts, seq_len, 5, modality_of)
        for name, values in expected.items():
            np.testing.assert_array_equal(ours[name], values, err_msg=name)
            assert ours[name].dtype == values.dtype


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("long_records", ["drop", "split"])
def test_the_global_batch_is_the_same_for_any_number_of_hosts(cache, hosts, long_records):
    history = [Stage(0, MixtureSettings(WEIGHTS)), Stage(7, MixtureSettings(OTHERS))]
    alone = source(cache, history=history, long_records=long_records)
    # Every host builds its own plan, as separate processes do.
    each = [
        source(cache, rows=host_rows(4, host, hosts), history=history, long_records=long_records)
        for host in range(hosts)
    ]
    for step in (11, 0, 6, 7, 3):
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


def test_far_groups_do_not_depend_on_what_was_read_before(cache):
    far = source(cache, steps=10**7)
    group = far.stages[0][1].group_rows
    steps = [group // 4 - 1, 5 * group // 4 + 3, 10**6, 0]
    first = {step: far[step] for step in steps}
    for step in reversed(steps):
        assert same(source(cache, steps=10**7)[step], first[step])


def test_a_batch_larger_than_a_window_and_across_windows(cache):
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


def test_changing_the_mixture_keeps_the_steps_before_it(cache):
    before = source(cache)
    after = source(cache, history=[Stage(0, MixtureSettings(WEIGHTS)), Stage(7, MixtureSettings(OTHERS))])
    assert all(same(before[step], after[step]) for step in range(7))
    assert not any(same(before[step], after[step]) for step in range(7, 10))
    text_to_image = synthetic.vocabulary().marker("[AnyGPT]")
    packer = after.stages[1][1]
    assert packer.mixture.tasks == tuple(sorted(OTHERS))
    # Its tasks go on in their epochs behind what the first stage's groups have drawn.
    begun = before.stages[0][1].positions(7 * 4)
    assert packer.mixture.positions(0) == {task: begun[task] for task in OTHERS}
    assert all(position > 0 for position in begun.values())
    assert (after[7]["tokens"] == text_to_image).any()


def long_cache(root, lengths):
    vocabulary = synthetic.vocabulary()
    made = [
        TokenRecord(f"k{i}", "t", (3 + np.arange(n) % 30).astype(np.int32), (Span(n, "text", "document", True),))
        for i, n in enumerate(lengths)
    ]
    shard = write_shard(root, "t/train/00000-of-00001", made)
    vocabulary.save(root / "vocabulary.json")
    Manifest(vocabulary.fingerprint, "none", {}, {"t": {"train": [shard]}}).save(root)
    return made


def test_long_records_are_split_into_pieces_that_lose_no_token(tmp_path):
    made = long_cache(tmp_path, [10, 70, 20, 129, 64])
    history = [Stage(0, MixtureSettings({"t": 1.0}))]
    batches = source(tmp_path, batch_size=8, history=history, long_records="split", steps=4)
    packer = batches.stages[0][1]
    scan = packer.mixture.too_long["t"]
    assert (scan.too_long, scan.too_long_tokens, scan.longest, scan.first_too_long) == (2, 199, 129, (1, 3))
    items = packer.items(0, 5)
    pieces = sorted(zip(items.record.tolist(), items.offset.tolist(), items.length.tolist(), strict=True))
    assert pieces == [
        (0, 0, 10), (1, 0, 64), (1, 64, 6), (2, 0, 20), (3, 0, 64), (3, 64, 64), (3, 128, 1), (4, 0, 64)
    ]  # fmt: skip
    # What the rows hold, piece by piece, is in the records where the plan says.
    for step in range(4):
        planned, starts = packer.plan(step * 8, step * 8 + 8)
        batch = batches[step]
        for row in range(8):
            for segment, i in enumerate(range(starts[row], starts[row + 1]), 1):
                held = batch["tokens"][row][batch["segment_ids"][row] == segment]
                begin, n = planned.offset[i], planned.length[i]
                np.testing.assert_array_equal(held, made[planned.record[i]].tokens[begin : begin + n])


def test_records_too_long_for_a_row_are_counted_and_not_drawn(tmp_path):
    long_cache(tmp_path, [10, 70, 20, 65, 64])
    packer = source(tmp_path, history=[Stage(0, MixtureSettings({"t": 1.0}))]).stages[0][1]
    scan = packer.mixture.too_long["t"]
    assert (scan.records, scan.too_long, scan.first_too_long) == (5, 2, (1, 3))
    assert set(packer.items(0, 50).record.tolist()) == {0, 2, 4}
    with pytest.raises(UserError, match="seq_len=5"):
        packers(
            Store(tmp_path, "train"),
            [Stage(0, MixtureSettings({"t": 1.0}))],
            batch_size=1, pack_rows=1, seq_len=5, seed=0,
        )  # fmt: skip
    with pytest.raises(UserError, match="long_records"):
        source(tmp_path, history=[Stage(0, MixtureSettings({"t": 1.0}))], long_records="truncate")


def test_bytes_that_are_not_what_the_plan_expects_are_refused():
    record = TokenRecord("k", "t", np.array([1, 2, 3], np.int32), (Span(3, "text", "document", True),))
    zero, starts, table = np.zeros(1, np.int64), np.array([0, 1]), np.zeros(60, np.int32)
    for data, length, match in (
        (b"not msgpack", 3, "damaged"),
        (record.to_bytes()[:-3], 3, "damaged"),
        (record.to_bytes(), 2, "lengths"),
        (TokenRecord("k", "t", np.array([1, 99, 3], np.int32), record.spans).to_bytes(), 3, "99"),
    ):
        with pytest.raises(UserError, match=match):
            pack_rows([data], zero, np.array([length]), starts, 8, 0, table)


def test_bad_mixtures_are_refused(cache):
    with pytest.raises(UserError, match="zero"):
        source(cache, history=[Stage(0, MixtureSettings({"documents": 0.0}))])
    with pytest.raises(UserError, match="no_such_task"):
        source(cache, history=[Stage(0, MixtureSettings({"no_such_task": 1.0}))])
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
