"""`anygpt inspect --verify`: reads every byte of a token cache and names what is not as it was written."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tqdm import tqdm

from anygpt_jax.cache import Manifest, Shard, damaged_files
from anygpt_jax.errors import UserError
from anygpt_jax.records import TokenRecord
from anygpt_jax.vocabulary import Vocabulary

READ_TOGETHER = 512  # records


def problems(cache: pathlib.Path) -> Iterator[str]:
    """One line for every file that is damaged, missing or disagrees with another; nothing if the cache is whole."""
    try:
        manifest = Manifest.load(cache)
    except UserError as e:
        yield f"manifest.json: {e}"
        return
    if (cache / "manifest.json").read_bytes() != manifest.to_bytes():
        yield "manifest.json: its bytes are not those that were written"
    vocabulary = None
    try:
        vocabulary = Vocabulary.load(cache / "vocabulary.json")
        listed = (vocabulary.to_json() + "\n").encode()
        if vocabulary.fingerprint != manifest.vocabulary or (cache / "vocabulary.json").read_bytes() != listed:
            yield "vocabulary.json: it is not the vocabulary that the manifest names"
    except (UserError, OSError, ValueError) as e:
        yield f"vocabulary.json: {e}"
    for task, splits in manifest.tasks.items():
        for split in splits:
            try:
                manifest.counts(task, split)
            except ValueError as e:
                yield f"manifest.json: {e}"
    shards = [(task, s) for task, splits in manifest.tasks.items() for shards in splits.values() for s in shards]
    for task, shard in tqdm(shards, desc="verify", unit="shard", leave=False):
        yield from _of_shard(cache, task, shard, vocabulary)


def unlisted(cache: pathlib.Path, manifest: Manifest) -> list[str]:
    """Files that belong to no shard of the manifest: of tasks that the last run did not name, or of a killed run."""
    known = {"manifest.json", "vocabulary.json"}
    for splits in manifest.tasks.values():
        for shard in (shard for shards in splits.values() for shard in shards):
            known |= {shard.path, shard.lengths_path, shard.rejects_path, _entry(shard)}
    files = (str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())
    return sorted(set(files) - known)


def _entry(shard: Shard) -> str:
    return shard.path.removesuffix(".array_record") + ".json"


def _of_shard(cache: pathlib.Path, task: str, shard: Shard, vocabulary: Vocabulary | None) -> Iterator[str]:
    damaged = damaged_files(cache, shard)
    try:
        if (cache / _entry(shard)).read_bytes() != shard.to_bytes():
            yield f"{_entry(shard)}: it is not the entry that the manifest holds"
    except OSError as e:
        yield f"{_entry(shard)}: it cannot be read ({e.strerror or e})"
    for path, what in damaged.items():
        lost = _unreadable(cache / path, shard.records) if path == shard.path and (cache / path).is_file() else ""
        yield f"{path}: {what}{lost}"
    if damaged:
        return
    lengths = np.load(cache / shard.lengths_path)
    if len(lengths) != shard.records or int(lengths.sum()) != shard.tokens:
        yield f"{shard.lengths_path}: {len(lengths)} lengths of {int(lengths.sum())} tokens, not those of the manifest"
        return
    with (cache / shard.rejects_path).open("rb") as f:
        if (rejects := sum(1 for _ in f)) != shard.rejects:
            yield f"{shard.rejects_path}: {rejects} lines, but the manifest counts {shard.rejects} rejects"
    yield from _of_records(cache, task, shard, lengths, vocabulary)


def _of_records(
    cache: pathlib.Path, task: str, shard: Shard, lengths: np.ndarray, vocabulary: Vocabulary | None
) -> Iterator[str]:
    if not shard.records:
        return
    with ArrayRecordDataSource([str(cache / shard.path)]) as source:
        if len(source) != shard.records:
            yield f"{shard.path}: {len(source)} records, but the manifest counts {shard.records}"
            return
        for start in range(0, len(source), READ_TOGETHER):
            together = range(start, min(start + READ_TOGETHER, len(source)))
            for i, data in zip(together, source.__getitems__(list(together)), strict=True):
                try:
                    record = TokenRecord.from_bytes(data)
                except ValueError as e:
                    yield f"{shard.path}: record {i}: {e}"
                    continue
                if record.source != task or len(record.tokens) != lengths[i]:
                    yield (
                        f"{shard.path}: record {i} ({record.key}) is of {record.source} and has {len(record.tokens)} "
                        f"tokens; it should be of {task} and have {lengths[i]}"
                    )
                if vocabulary is not None and record.tokens.max() >= vocabulary.size:
                    yield f"{shard.path}: record {i} ({record.key}) has a token that is not in the vocabulary"


def _unreadable(path: pathlib.Path, records: int) -> str:
    """Which records of a damaged file are lost: ", record 3 of 40 cannot be read"."""
    try:
        with ArrayRecordDataSource([str(path)]) as source:
            if len(source) != records:
                return f", and it holds {len(source)} records instead of {records}"
            lost = [i for i in range(records) if not _readable(source, i)]
    except (RuntimeError, ValueError, OSError):
        return ", and none of its records can be read"
    if not lost:
        return "; all its records can still be read"
    shown = ", ".join(map(str, lost[:5])) + (", …" if len(lost) > 5 else "")
    return f"; {len(lost)} of {records} records cannot be read: {shown}"


def _readable(source: ArrayRecordDataSource, index: int) -> bool:
    try:
        TokenRecord.from_bytes(source[index])
    except (RuntimeError, ValueError):
        return False
    return True
