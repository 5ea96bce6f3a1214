import collections
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anygpt_jax import cache
from anygpt_jax.errors import UserError
from anygpt_jax.records import ROLES, Span, TokenRecord


def record(key: str, tokens: list[int], source: str = "task") -> TokenRecord:
    return TokenRecord(key, source, np.array(tokens, np.int32), (Span(len(tokens), "text", "document", True),))


spans = st.builds(Span, st.integers(1, 9), st.sampled_from(["text", "image"]), st.sampled_from(ROLES), st.booleans())


@given(st.lists(spans, min_size=1, max_size=6), st.integers(0, 2**31 - 1), st.text(min_size=1))
def test_bytes_round_trip(parts, largest, key):
    length = sum(s.length for s in parts)
    tokens = np.linspace(0, largest, length).astype(np.int32)
    before = TokenRecord(key, "task", tokens, tuple(parts))
    after = TokenRecord.from_bytes(before.to_bytes())
    assert (after.tokens == before.tokens).all()
    assert after.tokens.dtype == np.int32
    assert (after.key, after.source, after.spans) == (before.key, before.source, before.spans)


def test_small_ids_take_two_bytes():
    small, large = record("a", [1] * 1000), record("a", [2**16] * 1000)
    assert len(small.to_bytes()) < 2200 < 4000 < len(large.to_bytes())


def test_loss_mask_follows_spans():
    parts = (Span(2, "text", "human", False), Span(3, "image", "assistant", True), Span(1, "text", "assistant", False))
    mask = TokenRecord("k", "s", np.arange(6, dtype=np.int32), parts).loss_mask()
    assert mask.tolist() == [False, False, True, True, True, False]


@pytest.mark.parametrize(
    ("tokens", "parts", "problem"),
    [
        (np.zeros(3, np.int32), (Span(2, "text", "human", True),), "do not cover"),
        (np.zeros(3, np.int64), (Span(3, "text", "human", True),), "int32"),
        (np.zeros(0, np.int32), (), "no tokens"),
        (np.full(1, -1, np.int32), (Span(1, "text", "human", True),), "negative"),
        (np.zeros(1, np.int32), (Span(1, "text", "robot", True),), "roles"),
    ],
)
def test_invalid_records_cannot_be_made(tokens, parts, problem):
    with pytest.raises(ValueError, match=problem):
        TokenRecord("k", "s", tokens, parts)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x80", b"not msgpack at all"])
def test_damaged_bytes_are_a_value_error(data):
    with pytest.raises(ValueError, match="not a TokenRecord"):
        TokenRecord.from_bytes(data)


def build(root, rows=(5, 3)):
    shards = []
    for i, n in enumerate(rows):
        items = [record(f"{i}-{j}", [i] * (j + 1)) for j in range(n)]
        ledger = cache.Ledger(n + 3, [("bad", "cut at 17 of 40")], collections.Counter({"length": 2}))
        shards.append(cache.write_shard(root, f"task/train/{i:05d}-of-{len(rows):05d}", items, ledger))
    manifest = cache.Manifest("v", "t", {"image": "f"}, {"task": {"train": shards}})
    manifest.save(root)
    return manifest


def test_reader_sees_every_record_in_order(tmp_path):
    manifest = build(tmp_path)
    assert cache.Manifest.load(tmp_path) == manifest
    reader = cache.CacheReader(tmp_path, "task", "train")
    assert [reader[i].key for i in range(len(reader))] == ["0-0", "0-1", "0-2", "0-3", "0-4", "1-0", "1-1", "1-2"]
    assert reader.lengths.tolist() == [len(reader[i].tokens) for i in range(len(reader))]


def test_writing_again_gives_the_same_bytes(tmp_path):
    assert build(tmp_path / "a").tasks == build(tmp_path / "b").tasks  # entries hold every file's SHA-256


def test_a_shard_with_changed_bytes_is_not_finished(tmp_path):
    build(tmp_path)
    stem = "task/train/00000-of-00002"
    assert cache.finished_shard(tmp_path, stem) is not None
    data = tmp_path / f"{stem}.array_record"
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    assert cache.finished_shard(tmp_path, stem) is None
    assert cache.finished_shard(tmp_path, "task/train/00009-of-00002") is None


def test_a_failing_writer_leaves_nothing_that_looks_whole(tmp_path):
    def records():
        yield record("a", [1])
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cache.write_shard(tmp_path, "task/train/00000-of-00001", records())
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_rejects_are_listed(tmp_path):
    build(tmp_path)
    lines = (tmp_path / "task/train/00000-of-00002.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"key": "bad", "reason": "cut at 17 of 40"}]


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UserError, match="run `anygpt tokenize`"):
        cache.Manifest.load(tmp_path)
    build(tmp_path)
    with pytest.raises(UserError, match=r"no task/test; it has: task/train"):
        cache.CacheReader(tmp_path, "task", "test")
    (tmp_path / "task/train/00001-of-00002.array_record").unlink()
    with pytest.raises(UserError, match="missing; tokenize again"):
        cache.CacheReader(tmp_path, "task", "train")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        cache.Manifest.load(tmp_path)
