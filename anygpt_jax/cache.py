"""The token cache: ArrayRecord shards of TokenRecords and the manifest that vouches for them.

cache/vocabulary.json
cache/manifest.json                              written last; without it there is no cache
cache/TASK/SPLIT/00000-of-00004.array_record     group_size:1, so that shuffled reads are cheap
cache/TASK/SPLIT/00000-of-00004.lengths.npy      uint32[records], what the packer plans with
cache/TASK/SPLIT/00000-of-00004.json             the shard's entry; its presence means the shard is whole
cache/TASK/SPLIT/00000-of-00004.rejects.jsonl    one line a bad input: key and reason

Every file is written to a temporary name (NAME.tmp-…), flushed to the disk with its folder, and renamed.
Every input of a shard is a record, filtered by a named rule, or rejected; the entry holds all three counts.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from anygpt_jax.errors import UserError
from anygpt_jax.records import TokenRecord
from anygpt_jax.vocabulary import Vocabulary

FORMAT_VERSION = 2
WRITER_OPTIONS = "group_size:1,zstd:1"
MOST_REASONS = 50  # kinds of rejects that an entry counts one by one; the rest are together
DROPPED = "dropped by the task's own steps"  # examples that a source counts and the task's tf.data did not give


@dataclasses.dataclass
class Ledger:
    """What becomes of a shard's inputs, filled while its records are made."""

    inputs: int = 0
    rejects: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # key, reason
    filtered: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # by rule


def kind_of_reason(reason: str) -> str:
    """Reasons that differ only in their numbers are one kind."""
    return re.sub(r"\d+(?:[.,]\d+)*", "N", reason)[:200]


def reasons_by_count(reasons: Iterable[str]) -> dict[str, int]:
    """Kinds of reasons, the most frequent first."""
    counts = collections.Counter(map(kind_of_reason, reasons))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard's entry. Paths are relative to the cache."""

    path: str
    lengths_path: str
    rejects_path: str
    records: int
    tokens: int
    rejects: int
    sha256: str
    lengths_sha256: str
    recipe: str = ""  # hashes of everything that decided its bytes; a shard of another recipe is never reused
    rejects_sha256: str = ""
    inputs: int = 0  # records + filtered + rejects
    filtered: dict[str, int] = dataclasses.field(default_factory=dict)  # rule -> inputs that it refused first
    rejected: dict[str, int] = dataclasses.field(default_factory=dict)  # kind of reason -> rejects
    modalities: dict[str, int] = dataclasses.field(default_factory=dict)  # modality -> tokens, markers included

    def to_bytes(self) -> bytes:
        """JSON of all fields: what the shard's .json holds, and `read_entry` reads."""
        return json.dumps(dataclasses.asdict(self)).encode()


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of the inputs of one task and split: inputs = records + filtered + rejected."""

    inputs: int
    records: int
    tokens: int
    filtered: dict[str, int]
    rejected: dict[str, int]

    @property
    def rejects(self) -> int:
        """Of all kinds of reasons together."""
        return sum(self.rejected.values())

    def to_json(self) -> dict[str, Any]:
        """The counts, and the sum of the rejected."""
        return {**dataclasses.asdict(self), "rejects": self.rejects}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the cache holds: fingerprints of everything that decided its bytes, and every shard."""

    vocabulary: str  # fingerprint
    text: str  # fingerprint of the text tokenizer
    tokenizers: dict[str, str]  # modality tokenizer -> fingerprint
    tasks: dict[str, dict[str, list[Shard]]]  # task -> split -> shards in order
    version: int = FORMAT_VERSION
    # task -> split -> examples as the source itself counts them, where it can
    sources: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all the rest: equal fingerprints mean the same bytes in every shard."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """JSON of the fields, with the fingerprint as "sha256" beside them, which `load` compares."""
        return json.dumps({**dataclasses.asdict(self), "sha256": self.fingerprint}, indent=1).encode()

    def save(self, cache: str | pathlib.Path) -> None:
        """Writes CACHE/manifest.json, whole or not at all: from then on there is a cache."""
        write_atomically(pathlib.Path(cache) / "manifest.json", self.to_bytes())

    @classmethod
    def load(cls, cache: str | pathlib.Path) -> Manifest:
        """Reads CACHE/manifest.json. UserError if it is missing, of another format, or not what its checksum says."""
        path = pathlib.Path(cache) / "manifest.json"
        if not path.is_file():
            raise UserError(f"No token cache at {cache} (manifest.json is missing); run `anygpt tokenize` first.")
        try:
            fields = json.loads(path.read_text())
            if fields["version"] != FORMAT_VERSION:
                raise UserError(
                    f"{path} has format {fields['version']}, this program reads {FORMAT_VERSION}; tokenize again."
                )
            promised = fields.pop("sha256")
            fields["tasks"] = {
                task: {split: [Shard(**s) for s in shards] for split, shards in splits.items()}
                for task, splits in fields["tasks"].items()
            }
            manifest = cls(**fields)
            if manifest.fingerprint != promised:
                raise ValueError("its contents do not have the checksum they came with")
            return manifest
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path} is damaged ({type(e).__name__}: {e}); tokenize again.") from e

    def shards(self, task: str, split: str) -> list[Shard]:
        """One split's entries, in order. UserError, which says what there is, if the cache has no such split."""
        if split not in self.tasks.get(task, {}):
            held = ", ".join(f"{t}/{s}" for t, splits in self.tasks.items() for s in splits)
            raise UserError(f"The token cache has no {task}/{split}; it has: {held or 'nothing'}.")
        return self.tasks[task][split]

    def counts(self, task: str, split: str) -> Counts:
        """Summed over shards. Raises ValueError if an input is unaccounted for."""
        shards = self.shards(task, split)
        filtered, rejected = collections.Counter[str](), collections.Counter[str]()
        for shard in shards:
            filtered.update(shard.filtered)
            rejected.update(shard.rejected)
        seen = sum(shard.inputs for shard in shards)
        inputs = max(seen, self.sources.get(task, {}).get(split, 0))
        if inputs > seen:
            filtered[DROPPED] += inputs - seen
        records, tokens = sum(s.records for s in shards), sum(s.tokens for s in shards)
        counts = Counts(inputs, records, tokens, dict(filtered.most_common()), dict(rejected.most_common()))
        if inputs != records + sum(filtered.values()) + counts.rejects:
            raise ValueError(f"{task}/{split} had {inputs} inputs, but {counts} does not add up to them")
        return counts


def sha256(path: str | pathlib.Path) -> str:
    """Of a file's bytes, in hexadecimal, read piece by piece. OSError if it cannot be read."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextlib.contextmanager
def _temporary(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A name to write `path` under; at the end it is on the disk by its own name, or gone if there was an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)  # the new name itself
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: pathlib.Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """A reader sees the old file or the whole new one, never a part."""
    with _temporary(path) as temporary:
        temporary.write_bytes(data)


def whole_lines(path: pathlib.Path) -> list[bytes]:
    """The lines of a file that is appended to, none if there is none; a last one that was cut off is removed from it."""
    data = path.read_bytes() if path.is_file() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        write_atomically(path, whole)
    return whole.splitlines()


def write_shard(
    cache: str | pathlib.Path,
    stem: str,
    records: Iterable[TokenRecord],
    ledger: Ledger | None = None,
    recipe: str = "",
) -> Shard:
    """Writes one shard and its side files; `stem` is TASK/SPLIT/00000-of-00004. The entry comes last.

    `ledger` is read after `records` is exhausted, so a generator of records may fill it; without one, every input
    is taken to have given a record. Raises RuntimeError if an input is neither a record, filtered nor rejected.
    """
    base = pathlib.Path(cache) / stem
    data = base.with_name(base.name + ".array_record")
    lengths: list[int] = []
    modalities = collections.Counter[str]()
    with _temporary(data) as temporary:
        writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
        for record in records:
            writer.write(record.to_bytes())
            lengths.append(len(record.tokens))
            for span in record.spans:
                modalities[span.modality] += span.length
        writer.close()
        ledger = ledger or Ledger(inputs=len(lengths))
        if ledger.inputs != len(lengths) + ledger.filtered.total() + len(ledger.rejects):
            raise RuntimeError(
                f"{stem}: {ledger.inputs} inputs gave {len(lengths)} records, {ledger.filtered.total()} filtered and "
                f"{len(ledger.rejects)} rejected: some are lost"
            )
    rejected = sorted(ledger.rejects)
    lengths_path = base.with_name(base.name + ".lengths.npy")
    rejects_path = base.with_name(base.name + ".rejects.jsonl")
    write_atomically(lengths_path, _npy(np.array(lengths, np.uint32)))
    write_atomically(rejects_path, "".join(json.dumps({"key": k, "reason": r}) + "\n" for k, r in rejected).encode())
    shard = Shard(
        path=f"{stem}.array_record",
        lengths_path=f"{stem}.lengths.npy",
        rejects_path=f"{stem}.rejects.jsonl",
        records=len(lengths),
        tokens=int(sum(lengths)),
        rejects=len(rejected),
        sha256=sha256(data),
        lengths_sha256=sha256(lengths_path),
        recipe=recipe,
        rejects_sha256=sha256(rejects_path),
        inputs=ledger.inputs,
        filtered=dict(sorted(ledger.filtered.items())),
        rejected=_most(reasons_by_count(reason for _, reason in rejected)),
        modalities=dict(sorted(modalities.items())),
    )
    write_atomically(base.with_name(base.name + ".json"), shard.to_bytes())
    return shard


def _most(reasons: dict[str, int]) -> dict[str, int]:
    """The most frequent kinds, and the rest as one."""
    kinds = list(reasons.items())
    kept, rest = dict(kinds[:MOST_REASONS]), sum(count for _, count in kinds[MOST_REASONS:])
    return {**kept, "other reasons": rest} if rest else kept


def read_entry(cache: str | pathlib.Path, stem: str) -> Shard | None:
    """The entry that some run wrote for a shard, whatever its recipe; None if there is no whole one."""
    try:
        return Shard(**json.loads((pathlib.Path(cache) / f"{stem}.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def finished_shard(cache: str | pathlib.Path, stem: str, recipe: str = "") -> Shard | None:
    """The entry of a shard that an earlier run finished by this recipe and whose bytes are still what it wrote."""
    shard = read_entry(cache, stem)
    if shard is None or shard.recipe != recipe:
        return None
    return None if damaged_files(cache, shard) else shard


def damaged_files(cache: str | pathlib.Path, shard: Shard) -> dict[str, str]:
    """Path -> what is wrong, for every file of a shard that is missing or not what was written."""
    promised = {
        shard.path: shard.sha256,
        shard.lengths_path: shard.lengths_sha256,
        shard.rejects_path: shard.rejects_sha256,
    }
    found = {}
    for path, digest in promised.items():
        try:
            if sha256(pathlib.Path(cache) / path) != digest:
                found[path] = "its bytes are not those that were written"
        except OSError as e:
            found[path] = f"it cannot be read ({e.strerror or e})"
    return found


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


class CacheReader:
    """Random access to one task and split of a cache: `lengths`, `len`, and records by index."""

    def __init__(self, cache: str | pathlib.Path, task: str, split: str):
        self.root = pathlib.Path(cache)
        manifest = Manifest.load(self.root)
        # ArrayRecord refuses an empty file list and has nothing to read in an empty shard.
        shards = [s for s in manifest.shards(task, split) if s.records]
        if not shards:
            raise UserError(f"{cache}: {task}/{split} holds no records; see its rejects.jsonl for the reasons.")
        self.task, self.split = task, split
        for shard in shards:
            if not (self.root / shard.path).is_file():
                raise UserError(f"{self.root / shard.path} is in the manifest but missing; tokenize again.")
        self.lengths = np.concatenate([np.load(self.root / s.lengths_path) for s in shards]).astype(np.int64)
        self._source = ArrayRecordDataSource([str(self.root / s.path) for s in shards])
        if len(self._source) != sum(s.records for s in shards) or len(self.lengths) != len(self._source):
            raise UserError(f"{cache}: {task}/{split} does not hold the records its manifest counts; tokenize again.")

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> TokenRecord:
        return TokenRecord.from_bytes(self._source[int(index)])


def load_vocabulary(cache: str | pathlib.Path) -> Vocabulary:
    """The cache's vocabulary, checked against its manifest."""
    vocabulary = Vocabulary.load(pathlib.Path(cache) / "vocabulary.json")
    if vocabulary.fingerprint != Manifest.load(cache).vocabulary:
        raise UserError(f"{cache}/vocabulary.json is not the vocabulary its manifest was made with; tokenize again.")
    return vocabulary
