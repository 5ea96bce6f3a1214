"""What a modality must offer, and how one is found.

A modality is a codec (media ↔ discrete codes) plus the grammar of its code sequences. Packages register
a factory under the entry-point group `anygpt_jax.modalities`; nothing else in the system changes.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from anygpt_jax.errors import UserError

ENTRY_POINT_GROUP = "anygpt_jax.modalities"
SYMBOLS = {"image": "👀", "speech": "🗣️", "music": "🎶"}  # AnyGPT's: codes are written <👀5>


@dataclasses.dataclass(frozen=True)
class Audio:
    """Mono sound: float32[T] in -1..1, and samples a second."""

    samples: np.ndarray
    sample_rate: int

    @property
    def seconds(self) -> float:
        """The sound's duration by its own sample rate."""
        return len(self.samples) / self.sample_rate


@dataclasses.dataclass(frozen=True)
class Grammar:
    """Which code sequences are decodable.

    Position i of a sequence may hold the codes of `prefix[i]` (a half-open range), and past the prefix
    those of `cycle[(i - len(prefix)) % len(cycle)]`. A sequence may end at lengths from `min_length` to
    `max_length` at which the cycle is whole.
    """

    cycle: tuple[tuple[int, int], ...]
    min_length: int
    max_length: int
    prefix: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        if not self.cycle or any(lo >= hi for lo, hi in (*self.prefix, *self.cycle)):
            raise ValueError("a grammar needs a cycle, and its ranges must not be empty")
        if not any(self.may_end(n) for n in range(self.min_length, self.max_length + 1)):
            raise ValueError("no length between min_length and max_length ends on a whole cycle")

    def allowed(self, position: int) -> tuple[int, int]:
        """The half-open range of codes allowed at a position, counted from the begin marker."""
        if position < len(self.prefix):
            return self.prefix[position]
        return self.cycle[(position - len(self.prefix)) % len(self.cycle)]

    def may_end(self, length: int) -> bool:
        """Whether the prefix is over and the cycle whole after so many codes, and their number within bounds."""
        whole = length >= len(self.prefix) and (length - len(self.prefix)) % len(self.cycle) == 0
        return whole and self.min_length <= length <= self.max_length

    def problem(self, codes: Sequence[int] | np.ndarray) -> str | None:
        """Why these codes are not decodable, or None."""
        for i, code in enumerate(codes):
            low, high = self.allowed(i)
            if not low <= code < high:
                return f"code {code} at position {i} is outside {low}..{high - 1}"
        if not self.may_end(len(codes)):
            return f"a sequence may not have {len(codes)} codes"
        return None


@runtime_checkable
class ModalityTokenizer(Protocol):
    """Media ↔ codes. Media are numpy uint8[H, W, 3] for images and `Audio` for sound.

    A tokenizer of a modality that the system does not know may say more about it, all of it optional:

        extension: str                 of the files that `save` writes, ".png"; otherwise ".bin"
        instructions: Mapping[tuple[str, str], tuple[str, ...]]
                                       how (source, target) is asked for; the first one by `anygpt generate`
        html(media) -> str             how the report shows a medium; the fragment may load nothing from elsewhere
    """

    name: str  # the modality: "image", "speech", "music", …
    symbol: str  # codes are written <symbol i>
    codebook_size: int  # distinct codes over all codebooks
    rate: float  # codes a second of media; for images, codes an image
    fingerprint: str  # SHA-256 of weights and settings: equal fingerprints give equal codes
    grammar: Grammar

    def load(self, data: bytes) -> Any:
        """Encoded media (PNG, WAV, FLAC, …) → this modality's canonical media; UserError if it is bad.

        The tokenization job calls this in a thread of its own while `encode` runs.
        """
        ...

    def save(self, media: Any) -> bytes:
        """Canonical media → bytes of a common file format (PNG, WAV)."""
        ...

    def encode(self, media: Sequence[Any]) -> list[np.ndarray]:
        """A batch of media → int32[N] codes each. Codes do not depend on the batch's other members."""
        ...

    def decode(self, codes: Sequence[np.ndarray]) -> list[Any]:
        """A batch of decodable code sequences → media; ValueError for one the grammar forbids."""
        ...


@functools.cache
def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {p.name: p for p in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}


def available() -> list[str]:
    """Names of the registered tokenizers."""
    return sorted(_entry_points())


@functools.cache
def get(name: str, **settings: Any) -> ModalityTokenizer:
    """The tokenizer registered under `name`, made with these settings, once a process. They must be hashable.

    UserError for a name that is not registered, or settings that it does not take.
    """
    if name not in _entry_points():
        raise UserError(f"Unknown modality tokenizer '{name}'; registered ones: {', '.join(available())}.")
    factory: Callable[..., ModalityTokenizer] = _entry_points()[name].load()
    try:
        inspect.signature(factory).bind(**settings)
    except TypeError as e:
        raise UserError(f"The settings of the modality tokenizer '{name}' are wrong: {e}.") from e
    return factory(**settings)


def _setting(where: str, value: Any) -> Any:
    """A value as `get` can keep it: a list becomes a tuple. UserError for what cannot be told apart, as a dict."""
    if isinstance(value, list | tuple):
        return tuple(_setting(where, part) for part in value)
    try:
        hash(value)
    except TypeError as e:
        kind = type(value).__name__
        raise UserError(f"{where} must be a text, a number or a list of them, not a {kind}.") from e
    return value


def of_config(config: Any) -> dict[str, ModalityTokenizer]:
    """The tokenizers of `config.modalities`, in the order of their blocks in the vocabulary.

    A modality is served by the entry point of its own name, unless `config.tokenizers[modality]` names another as
    `entry`; that one is told which modality it serves, and gets the other settings there (files of weights, …).
    """
    chosen = config.get("tokenizers", {})
    if unknown := sorted(set(chosen) - set(config.modalities)):
        raise UserError(f"config.tokenizers names {', '.join(unknown)}, which config.modalities does not.")
    found = {}
    for modality in config.modalities:
        given = dict(chosen.get(modality, {}))
        settings = {name: _setting(f"config.tokenizers.{modality}.{name}", value) for name, value in given.items()}
        entry = settings.pop("entry", None)
        found[modality] = get(modality, **settings) if entry is None else get(entry, modality=modality, **settings)
    return found
