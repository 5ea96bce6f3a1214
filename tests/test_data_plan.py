"""Orders, plans and histories: what is drawn when, and which rows it fills."""

import collections
import itertools

import ml_collections
import numpy as np
import pytest
import synthetic

from anygpt_jax.cache import Manifest, Shard
from anygpt_jax.data import mixture, store
from anygpt_jax.data.history import Stage, extended, from_json, recorded, to_json
from anygpt_jax.data.mixture import Mixture, MixtureSettings, TaskOrder
from anygpt_jax.data.packing import Packer, best_fit_decreasing
from anygpt_jax.data.shuffle import permute
from anygpt_jax.data.store import Store
from anygpt_jax.errors import UserError

SEQ_LEN, ROWS = 64, 16


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    synthetic.write_cache(root)
    return root


def lengths_only(root, tasks):
    """A cache of whose records only the lengths are there: enough to plan. `tasks`: name -> list of shards' lengths."""
    held = {}
    for task, shards in tasks.items():
        (root / task / "train").mkdir(parents=True)
        held[task] = {"train": []}
        for s, lengths in enumerate(shards):
            stem = f"{task}/train/{s:05d}-of-{len(shards):05d}"
            np.save(root / f"{stem}.lengths.npy", lengths.astype(np.uint32))
            (root / f"{stem}.array_record").touch()
            paths = {"path": f"{stem}.array_record", "lengths_path": f"{stem}.lengths.npy", "rejects_path": "none"}
            sums = {"rejects": 0, "sha256": "none", "lengths_sha256": "none"}
            held[task]["train"].append(Shard(**paths, records=len(lengths), tokens=int(lengths.sum()), **sums))
    Manifest("none", "none", {}, held).save(root)
    return Store(root, "train")


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_a_permutation_is_one(n):
    for seed in range(5):
        assert sorted(permute(np.arange(n), n, seed).tolist()) == list(range(n))


def test_permutations_are_uniform():
    """Where element 0 of 6 goes and which element follows it, over seeds: chi-square within its 99.9 % bounds."""
    trials, n = 3000, 6
    orders = np.stack([permute(np.arange(n), n, seed) for seed in range(trials)])
    for counted, kinds in ((orders[:, 0], n), (orders[:, 3], n), ((orders[:, 1] - orders[:, 0]) % n, n - 1)):
        found = np.array(list(collections.Counter(counted.tolist()).values()))
        assert len(found) == kinds
        expected = trials / kinds
        assert ((found - expected) ** 2 / expected).sum() < {6: 20.5, 5: 18.5}[kinds]


def test_best_fit_decreasing_on_cases_worked_by_hand():
    # 9 | 7 3 | 5 2: the 3 goes where least room is left.
    rows = best_fit_decreasing(np.array([3, 7, 5, 2, 9]), 3, 10).tolist()
    assert rows[0] == rows[1] and rows[2] == rows[3] and len(set(rows)) == 3
    # Best fit puts 3 beside 7, first fit in the emptier 6: then 4 finds room.
    rows = best_fit_decreasing(np.array([6, 7, 3, 4]), 2, 10).tolist()
    assert rows[0] == rows[3] and rows[1] == rows[2] and rows[0] != rows[1]
    assert sorted(best_fit_decreasing(np.array([6, 6, 6]), 2, 10).tolist()) == [-1, 0, 1]


@pytest.mark.parametrize("grouped", [False, True])
def test_an_epoch_draws_every_record_once_and_the_next_in_another_order(monkeypatch, grouped):
    if grouped:
        monkeypatch.setattr(mixture, "GROUP_RECORDS", 15)
    offsets = np.array([0, 10, 17, 30, 31, 40])
    order = TaskOrder(offsets, 3)
    epochs = [order.records_at(40 * e, 40 * e + 40).tolist() for e in range(4)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert all(a != b for a, b in itertools.combinations(epochs, 2))
    everything = [record for epoch in epochs for record in epoch]
    for start, stop in ((0, 1), (13, 14), (7, 95), (39, 41), (159, 160)):
        assert order.records_at(start, stop).tolist() == everything[start:stop]


def test_shares_by_weights_by_examples_and_with_temperature():
    weights, records = {"a": 1.0, "b": 3.0}, {"a": 900, "b": 100}
    assert MixtureSettings(weights).shares(records) == {"a": 0.25, "b": 0.75}
    assert MixtureSettings(weights, "examples").shares(records) == pytest.approx({"a": 0.75, "b": 0.25})
    # 900 and 300 examples at temperature 2: √900 : √300.
    tempered = MixtureSettings(weights, "examples", 2.0).shares(records)
    assert tempered == pytest.approx({"a": 30 / (30 + 300**0.5), "b": 300**0.5 / (30 + 300**0.5)})
    for bad in (MixtureSettings({}), MixtureSettings(weights, "size"), MixtureSettings(weights, "weights", 0.0)):
        assert len(bad.problems()) == 1


def test_too_long_records_do_not_lower_their_tasks_share(tmp_path):
    half = np.where(np.arange(200) % 2, 100, 30)
    cache = lengths_only(tmp_path, {"a": [half], "b": [np.full(300, 30)]})
    packer = Packer(Mixture(cache, MixtureSettings({"a": 1.0, "b": 1.0}), 0, SEQ_LEN), ROWS, SEQ_LEN, 0)
    drawn = np.bincount(packer.items(0, 3000).task)
    assert abs(drawn[0] - drawn[1]) <= 60


def test_nothing_is_lost_between_draws_and_rows(cache, monkeypatch):
    monkeypatch.setattr("anygpt_jax.data.packing.GROUP_DRAWS", 800)
    weights = {"image_to_text": 0.5, "text_to_image": 0.3, "documents": 0.2}
    packer = Packer(Mixture(Store(cache, "train"), MixtureSettings(weights), 0, SEQ_LEN), ROWS, SEQ_LEN, 0)
    for g in range(4):
        placed, _ = packer.plan(g * packer.group_rows, (g + 1) * packer.group_rows)
        drawn = packer.items(g * packer.draws, (g + 1) * packer.draws)
        left = packer.left_out[g]
        assert left <= 2
        found, expected = (
            collections.Counter(zip(i.task.tolist(), i.record.tolist(), strict=True)) for i in (placed, drawn)
        )
        assert (expected - found).total() == left and not found - expected
        for w in range(packer.windows):
            window = packer.window(g * packer.windows + w)
            row = np.repeat(np.arange(ROWS), np.diff(window.starts))
            assert np.bincount(row, window.items.length, ROWS).max() <= SEQ_LEN


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: 42 + rng.gamma(2, 15, n),  # captions and 32 codes
        lambda rng, n: 40 + 50 * rng.gamma(6, 2.2, n),  # speech at 50 tokens a second
        lambda rng, n: rng.lognormal(6.8, 0.8, n),  # documents
    ],
)
def test_rows_are_filled_to_99_percent(tmp_path, draw):
    lengths = np.clip(draw(np.random.default_rng(0), 60000), 8, 4096)
    cache = lengths_only(tmp_path, {"t": [lengths[:20000], lengths[20000:]]})
    packer = Packer(Mixture(cache, MixtureSettings({"t": 1.0}), 0, 4096), 256, 4096, 0)
    assert np.mean([packer.fill(w) for w in range(min(10, packer.windows))]) >= 0.99


def test_shards_are_closed_for_others_and_read_the_same(cache, monkeypatch):
    wanted = np.array([0, 59, 3, 31, 30, 3])
    whole = Store(cache, "train")
    expected = {task: whole.read(task, wanted) for task in synthetic.TASKS}
    monkeypatch.setattr(store, "OPEN_SHARDS", 1)
    narrow = Store(cache, "train")
    for _ in range(2):
        for task in synthetic.TASKS:
            assert narrow.read(task, wanted) == expected[task]
            assert len(narrow._open) == 1


class Unreliable:
    """A reader that fails so many times, as of a mounted bucket."""

    def __init__(self, monkeypatch, errors):
        self.errors, self.real = errors, store.ArrayRecordReader
        monkeypatch.setattr(store, "ArrayRecordReader", self)
        monkeypatch.setattr(store, "READ_PAUSE", 0.0)

    def __call__(self, *args, **kwargs):
        self.reader = self.real(*args, **kwargs)
        return self

    def ok(self):
        return True

    def num_records(self):
        return self.reader.num_records()

    def read(self, *where):
        if self.errors:
            self.errors -= 1
            raise RuntimeError("Input/output error")
        return self.reader.read(*where)


def test_an_error_of_the_mount_is_not_the_files(cache, monkeypatch):
    wanted = np.array([0, 59, 3])
    expected = Store(cache, "train").read("documents", wanted)
    Unreliable(monkeypatch, store.READS - 1)
    assert Store(cache, "train").read("documents", wanted) == expected
    Unreliable(monkeypatch, 10**6)
    with pytest.raises(OSError, match=r"is whole, but could not be read 3 times \(Input/output error"):
        Store(cache, "train").read("documents", wanted)


def test_damaged_shards_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "READ_PAUSE", 0.0)
    synthetic.write_cache(tmp_path)
    path = tmp_path / "documents/train/00001-of-00002.array_record"
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"00001-of-00002.*tokenize again"):
            Store(tmp_path, "train").read("documents", np.array([45]))
    flipped = bytearray(whole)
    flipped[len(whole) // 200] ^= 1  # among the records: the file ends with padding
    path.write_bytes(bytes(flipped))
    with pytest.raises(UserError, match="00001-of-00002"):
        Store(tmp_path, "train").read("documents", np.arange(30, 60))
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        Store(tmp_path, "train").shards("documents")


def config(**values):
    return ml_collections.ConfigDict({"mixture": {"a": 1.0, "b": 2.0}, **values})


def test_a_mixture_is_changed_only_as_the_config_states():
    first = extended((), config(), 0)
    assert first == (Stage(0, MixtureSettings({"a": 1.0, "b": 2.0})),)
    assert from_json(to_json(first)) == first == recorded({"mixture": {"a": 1.0, "b": 2.0}})
    assert extended(first, config(), 100) == first
    with pytest.raises(UserError, match=r"from step 0: a 1, b 2.*mixture_from_step=100"):
        extended(first, config(mixture={"a": 1.0}), 100)
    with pytest.raises(UserError, match="mixture_from_step=100"):
        extended(first, config(mixture_temperature=2.0), 100)
    with pytest.raises(UserError, match="trained to step 100"):
        extended(first, config(mixture={"a": 1.0}, mixture_from_step=99), 100)
    with pytest.raises(UserError, match="no checkpoint"):
        extended((), config(mixture_from_step=5), 0)
    changed = extended(first, config(mixture={"a": 1.0}, mixture_from_step=150), 100)
    assert changed == (*first, Stage(150, MixtureSettings({"a": 1.0})))
    assert recorded({"mixture": {"a": 1.0}, "mixture_history": to_json(changed)}) == changed
    # The same command goes on, before the change and after it; so does one that no longer states the step.
    for reached in (120, 200):
        assert extended(changed, config(mixture={"a": 1.0}, mixture_from_step=150), reached) == changed
        assert extended(changed, config(mixture={"a": 1.0}), reached) == changed
    # A change that has not come yet can be taken back.
    assert extended(changed, config(mixture_from_step=130), 120) == first


def test_settings_of_nothing_are_wrong_and_no_defaults():
    with pytest.raises(UserError, match=r"mixture_temperature must be above zero, not 0\.0"):
        extended((), config(mixture_temperature=0), 0)
    with pytest.raises(UserError, match="mixture_by must be one of weights, examples, not ''"):
        extended((), config(mixture_by=""), 0)
    assert extended((), config(mixture_by=None, mixture_temperature=None), 0) == extended((), config(), 0)
