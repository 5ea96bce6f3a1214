"""The token cache: ArrayRecord shards of TokenRecords and the manifest that vouches for them.

cache/vocabulary.json
cache/manifest.json                              written last; without it there is no cache
cache/TASK/SPLIT/00000-of-00004.array_record     group_size:1, so that shuffled reads are cheap
cache/TASK/SPLIT/00000-of-00004.lengths.npy      uint32[records], what the packer plans with
cache/TASK/SPLIT/00000-of-00004.json             the shard's entry; its presence means the shard is whole
cache/TASK/SPLIT/00000-of-00004.rejects.jsonl    one line a bad input: key and reason
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from anygpt_jax.errors import UserError
from anygpt_jax.records import TokenRecord
from anygpt_jax.vocabulary import Vocabulary

FORMAT_VERSION = 1
WRITER_OPTIONS = "group_size:1,zstd:1"


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
    recipe: str = ""  # hash of everything that decided its bytes; a shard of another recipe is never reused


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the cache holds: fingerprints of everything that decided its bytes, and every shard."""

    vocabulary: str  # fingerprint
    text: str  # fingerprint of the text tokenizer
    tokenizers: dict[str, str]  # modality tokenizer -> fingerprint
    tasks: dict[str, dict[str, list[Shard]]]  # task -> split -> shards in order
    version: int = FORMAT_VERSION

    def save(self, cache: str | pathlib.Path) -> None:
        write_atomically(pathlib.Path(cache) / "manifest.json", json.dumps(dataclasses.asdict(self), indent=1).encode())

    @classmethod
    def load(cls, cache: str | pathlib.Path) -> Manifest:
        path = pathlib.Path(cache) / "manifest.json"
        if not path.is_file():
            raise UserError(f"No token cache at {cache} (manifest.json is missing); run `anygpt tokenize` first.")
        try:
            fields = json.loads(path.read_text())
            if fields["version"] != FORMAT_VERSION:
                raise UserError(
                    f"{path} has format {fields['version']}, this program reads {FORMAT_VERSION}; tokenize again."
                )
            fields["tasks"] = {
                task: {split: [Shard(**s) for s in shards] for split, shards in splits.items()}
                for task, splits in fields["tasks"].items()
            }
            return cls(**fields)
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path} is damaged ({type(e).__name__}: {e}); tokenize again.") from e

    def shards(self, task: str, split: str) -> list[Shard]:
        if split not in self.tasks.get(task, {}):
            held = ", ".join(f"{t}/{s}" for t, splits in self.tasks.items() for s in splits)
            raise UserError(f"The token cache has no {task}/{split}; it has: {held or 'nothing'}.")
        return self.tasks[task][split]


def sha256(path: str | pathlib.Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """A reader sees the old file or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_shard(
    cache: str | pathlib.Path,
    stem: str,
    records: Iterable[TokenRecord],
    rejects: Iterable[tuple[str, str]] = (),
    recipe: str = "",
) -> Shard:
    """Writes one shard and its side files; `stem` is TASK/SPLIT/00000-of-00004. The entry comes last.

    `rejects` (key, reason) is read after `records` is exhausted, so a generator of records may fill it.
    """
    base = pathlib.Path(cache) / stem
    base.parent.mkdir(parents=True, exist_ok=True)
    data = base.with_name(base.name + ".array_record")
    temporary = data.with_name(f"{data.name}.tmp-{os.getpid()}")
    lengths: list[int] = []
    try:
        writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
        for record in records:
            writer.write(record.to_bytes())
            lengths.append(len(record.tokens))
        writer.close()
        os.replace(temporary, data)
    finally:
        temporary.unlink(missing_ok=True)
    rejected = sorted(rejects)
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
    )
    write_atomically(base.with_name(base.name + ".json"), json.dumps(dataclasses.asdict(shard)).encode())
    return shard


def finished_shard(cache: str | pathlib.Path, stem: str, recipe: str = "") -> Shard | None:
    """The entry of a shard that an earlier run finished by this recipe and whose bytes are still what it wrote."""
    entry = pathlib.Path(cache) / f"{stem}.json"
    if not entry.is_file():
        return None
    try:
        shard = Shard(**json.loads(entry.read_text()))
        whole = shard.recipe == recipe
        whole = whole and sha256(pathlib.Path(cache) / shard.path) == shard.sha256
        whole = whole and sha256(pathlib.Path(cache) / shard.lengths_path) == shard.lengths_sha256
        return shard if whole else None
    except (OSError, ValueError, TypeError):
        return None


def _npy(array: np.ndarray) -> bytes:
    import io

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
