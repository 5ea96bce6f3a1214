"""Examples → TokenRecords: decode the media, encode them in batches, interleave. No TensorFlow, no Beam."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from anygpt_jax.cache import Ledger
from anygpt_jax.errors import UserError
from anygpt_jax.modalities.base import ModalityTokenizer
from anygpt_jax.records import TokenRecord
from anygpt_jax.templates import TEXT, Formatter, Segment

CHUNK = 8  # batches of examples that are looked at together, so that media of like length share a batch
FAILED = "!"  # begins `Example.filtered` if a step of the task failed on the example: it is rejected
REMEMBERED = 50_000  # media whose codes a process keeps: both directions of a pair encode them once


Address = tuple[str, bytes]  # modality, SHA-256 of the encoded media
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Example:
    """One example as the tasks give it; `content[i]` is UTF-8 text or encoded media."""

    key: str
    modality: tuple[str, ...]
    content: tuple[bytes, ...]
    role: tuple[str, ...]
    loss: tuple[bool, ...]
    filtered: str = ""  # the rule that refused it; FAILED and a reason if a step of its task failed on it

    @classmethod
    def from_numpy(cls, fields: Mapping[str, Any]) -> Example:
        """`fields` are those of `tasks.preprocessors`, as NumPy has them; `filtered` may be absent."""
        return cls(
            _name(fields["key"]),
            tuple(_name(m) for m in fields["modality"]),
            tuple(bytes(c) for c in fields["content"]),
            tuple(_name(r) for r in fields["role"]),
            tuple(bool(x) for x in fields["loss"]),
            _name(fields.get("filtered", b"")),
        )


def _name(data: bytes) -> str:
    """Keys come from outside too: one that is not UTF-8 must not stop the job."""
    return data.decode("utf-8", "backslashreplace")


class Reject(Exception):
    """Why one input is not tokenized. It costs only itself."""


class Stop(UserError):
    """Raised by a rule of a task where not the example is wrong, but what the rule itself is made of: the job ends.

    Any other error of a rule is the example's, UserError too: those that read media raise it for bad ones.
    """


def reason(error: Exception) -> str:
    """One line, the same in every process: addresses of objects, which Pillow's messages hold, are left out."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(error).split())) or "no reason given"
    return text if isinstance(error, UserError | Reject) else f"{type(error).__name__}: {text}"


class Encoder:
    """Encodes examples with the tokenizers of one vocabulary. Codes do not depend on batches or order."""

    def __init__(
        self,
        tokenizers: Mapping[str, ModalityTokenizer],
        formatter: Formatter,
        *,
        batch_size: int,
        max_tokens: int,
    ):
        self._tokenizers = tokenizers
        self._formatter = formatter
        self._batch_size = batch_size
        self._max_tokens = max_tokens
        # codes, or why there are none
        self._codes: collections.OrderedDict[Address, np.ndarray | Reject] = collections.OrderedDict()

    def records(self, examples: Iterable[Example], source: str, ledger: Ledger) -> Iterator[TokenRecord]:
        """A record for every good example, in order; what becomes of every other one goes to `ledger`."""
        chunks = _chunks(examples, CHUNK * self._batch_size)
        # Reading and decoding go on in a thread while the tokenizers encode: an accelerator does not wait for them.
        for chunk, loaded in _one_ahead((chunk, self._load(chunk)) for chunk in chunks):
            ledger.inputs += len(chunk)
            self._encode_media(chunk, loaded)
            for example in chunk:
                if example.filtered and not example.filtered.startswith(FAILED):
                    ledger.filtered[example.filtered] += 1
                    continue
                try:
                    record = self._record(example, source)
                except Exception as e:  # any failure of one input is that input's own
                    ledger.rejects.append((example.key, reason(e)))
                else:
                    yield record
            while len(self._codes) > REMEMBERED:
                self._codes.popitem(last=False)

    def _record(self, example: Example, source: str) -> TokenRecord:
        if example.filtered:
            raise Reject(example.filtered.removeprefix(FAILED))
        segments = [
            Segment(modality, self._content(modality, content), role, loss)
            for modality, content, role, loss in zip(
                example.modality, example.content, example.role, example.loss, strict=True
            )
        ]
        record = self._formatter.record(example.key, source, segments)
        if len(record.tokens) > self._max_tokens:
            raise Reject(f"it has {len(record.tokens)} tokens, more than tokenize.max_tokens={self._max_tokens}")
        return record

    def _content(self, modality: str, content: bytes) -> str | np.ndarray:
        if modality == TEXT:
            text = content.decode("utf-8")
            if not text.strip():
                raise Reject("a text is empty")
            return text
        if modality not in self._tokenizers:
            raise Reject(f"unknown modality '{modality}'")
        codes = self._codes[_address(modality, content)]
        if isinstance(codes, Reject):
            raise codes
        return codes

    def _media(self, chunk: Sequence[Example]) -> dict[Address, bytes]:
        """The encoded media of a chunk that are to be tokenized."""
        return {
            _address(modality, content): content
            for example in chunk
            if not example.filtered
            for modality, content in zip(example.modality, example.content, strict=False)
            if modality in self._tokenizers
        }

    def _load(self, chunk: Sequence[Example]) -> dict[Address, Any]:
        """The media of a chunk whose codes are not known yet, decoded; a Reject for those that cannot be."""
        return {a: self._decoded(a, content) for a, content in self._media(chunk).items() if a not in self._codes}

    def _decoded(self, address: Address, content: bytes) -> Any:
        try:
            return self._tokenizers[address[0]].load(content)
        except Exception as e:
            return Reject(reason(e))

    def _encode_media(self, chunk: Sequence[Example], loaded: Mapping[Address, Any]) -> None:
        """Fills the codes of every medium that is not known yet. `loaded` was made while the chunk before was encoded."""
        wanted: dict[str, dict[Address, Any]] = collections.defaultdict(dict)
        for address, content in self._media(chunk).items():
            if address in self._codes:
                self._codes.move_to_end(address)
            else:
                medium = loaded[address] if address in loaded else self._decoded(address, content)
                wanted[address[0]][address] = medium
        for modality, media in wanted.items():
            self._codes.update(self._encode(self._tokenizers[modality], media))

    def _encode(self, tokenizer: ModalityTokenizer, media: Mapping[Address, Any]) -> dict[Address, np.ndarray | Reject]:
        codes: dict[Address, np.ndarray | Reject] = {a: m for a, m in media.items() if isinstance(m, Reject)}
        loaded = [(address, medium) for address, medium in media.items() if address not in codes]
        loaded.sort(key=lambda item: _size(item[1]))
        for batch in _chunks(loaded, self._batch_size):
            try:
                encoded: Sequence[np.ndarray | Reject] = tokenizer.encode([medium for _, medium in batch])
                if len(encoded) != len(batch):
                    raise ValueError(f"{len(batch)} media gave {len(encoded)} sequences of codes")
            except Exception:  # find the culprit: its neighbours are encoded one by one
                encoded = [_encode_alone(tokenizer, medium) for _, medium in batch]
            for (address, _), sequence in zip(batch, encoded, strict=True):
                codes[address] = _checked(tokenizer, sequence)
        return codes


def _one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; while one is used, the next is being made in a thread."""
    with concurrent.futures.ThreadPoolExecutor(1, "decode") as thread:
        upcoming = thread.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, items, None)
            yield item


def _chunks(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _address(modality: str, content: bytes) -> Address:
    return modality, hashlib.sha256(content).digest()


def _size(medium: Any) -> int:
    """Samples or pixels: media of like size make batches with little padding."""
    return int(np.size(getattr(medium, "samples", medium)))


def _encode_alone(tokenizer: ModalityTokenizer, medium: Any) -> np.ndarray | Reject:
    try:
        return tokenizer.encode([medium])[0]
    except Exception as e:
        return Reject(reason(e))


def _checked(tokenizer: ModalityTokenizer, codes: np.ndarray | Reject) -> np.ndarray | Reject:
    """What the grammar calls undecodable would train the model to write it."""
    if isinstance(codes, Reject):
        return codes
    try:
        problem = tokenizer.grammar.problem(codes)
    except Exception as e:
        return Reject(reason(e))
    return Reject(f"{tokenizer.name}: {problem}") if problem else codes
