"""What is chosen of a whole set: one of several alike, and no combination of media far above its share.

The order in which dialogues come does not matter, so a set may be read in parts from many workers.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt32

from anygpt_jax.errors import UserError
from anygpt_jax.synthesis.dialogue import Dialogue
from anygpt_jax.synthesis.filters import texts_of

EXACT, NEAR, BALANCE = "exact_duplicate", "near_duplicate", "balance"
SEED = 1  # of MinHash's permutations: another one would choose another set
# Of the pairs just alike enough the share that the search must find. What it finds too much the exact figure takes back.
FOUND = 0.99


@dataclasses.dataclass(frozen=True)
class SelectionSettings:
    """`target` names shares of the dialogues by `Dialogue.requirement`; what it does not name is left as it is."""

    likeness: float = 0.8  # of Jaccard, from which two dialogues are nearly the same; 1: only exact duplicates go
    shingle: int = 3  # words that follow one another
    permutations: int = 128
    target: Mapping[str, float] = dataclasses.field(default_factory=dict)
    factor: float = 2.0  # a combination may have at most so many times its target share

    def __post_init__(self):
        if not 0 < self.likeness <= 1:
            raise UserError(f"The likeness of duplicates is {self.likeness}; it must be above 0 and at most 1.")
        if self.shingle < 1 or self.permutations < 2:
            raise UserError("Duplicates are told by shingles of at least one word and at least two permutations.")
        if any(share < 0 for share in self.target.values()) or (self.target and not sum(self.target.values())):
            raise UserError("The shares of the target mix must not be negative, and one must be above 0.")
        if self.factor < 1:
            raise UserError(f"The factor of the target mix is {self.factor}; below 1 no set could fulfil it.")


class Choice(NamedTuple):
    """Of one dialogue: EXACT, NEAR or BALANCE and a sentence, or twice "" if it stays."""

    removed_by: str = ""
    reason: str = ""


def select(dialogues: Iterable[Dialogue], settings: SelectionSettings) -> dict[str, Choice]:
    """What becomes of every dialogue, by id. Those that a filter removed before are passed over.

    Of a group of duplicates the smallest id stays; a group is all that are joined by pairs, so its ends may be less alike.
    Of an over-represented combination stay those whose ids have the smallest hashes. Of every dialogue some kilobytes are
    held, no texts. UserError for two dialogues of one id.
    """
    requirements: dict[str, str] = {}
    same: dict[str, bytes] = {}  # id → digest of its words
    first: dict[bytes, str] = {}  # digest → smallest id
    shingles: dict[bytes, np.ndarray] = {}
    for dialogue in dialogues:
        if dialogue.removed_by:
            continue
        if dialogue.id in requirements:
            raise UserError(f"Two dialogues have the id {dialogue.id!r}; give every one its own.")
        words = words_of(dialogue)
        digest = _hash(" ".join(words).encode(), 16)
        requirements[dialogue.id], same[dialogue.id] = dialogue.requirement, digest
        first[digest] = min(first.get(digest, dialogue.id), dialogue.id)
        if digest not in shingles:
            shingles[digest] = shingles_of(words, settings.shingle)
    chosen = dict.fromkeys(requirements, Choice())
    for i, digest in same.items():
        if first[digest] != i:
            chosen[i] = Choice(EXACT, f"It has the same words as {first[digest]}.")
    alike = {i: shingles[digest] for digest, i in sorted(first.items(), key=lambda item: item[1])}
    for i, stays in _near_duplicates(alike, settings).items():
        likeness = jaccard(alike[i], alike[stays])
        chosen[i] = Choice(NEAR, f"It has nearly the words of {stays}: they share {likeness:.0%} of their shingles.")
    left = {i: requirement for i, requirement in requirements.items() if not chosen[i].removed_by}
    return chosen | _thinned(left, settings)


def words_of(dialogue: Dialogue) -> list[str]:
    """Of all that is written and described, without case and punctuation."""
    return [word for text in texts_of(dialogue) for word in re.findall(r"\w+", text.casefold())]


def shingles_of(words: Sequence[str], n: int) -> UInt32[np.ndarray, " K"]:
    """Sorted 32-bit hashes of every n words that follow one another; of fewer words, of all of them."""
    runs = {" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}
    return np.unique(np.array([int.from_bytes(_hash(run.encode(), 4), "little") for run in runs], np.uint32))


def jaccard(a: UInt32[np.ndarray, " K"], b: UInt32[np.ndarray, " L"]) -> float:
    """The share of the shingles of either that both have."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(len(a) + len(b) - both, 1)


def _near_duplicates(shingles: Mapping[str, UInt32[np.ndarray, " K"]], settings: SelectionSettings) -> dict[str, str]:
    """id → the smallest id of its group, of all others in groups. Pairs are found by MinHash and measured exactly."""
    if settings.likeness == 1:
        return {}
    import datasketch

    search = datasketch.MinHashLSH(num_perm=settings.permutations, params=_bands(settings))
    groups = _Groups()
    for i, signature in zip(shingles, _signatures(shingles.values(), settings.permutations), strict=True):
        for other in search.query(signature):
            if groups.of(i) != groups.of(other) and jaccard(shingles[i], shingles[other]) >= settings.likeness:
                groups.join(i, other)
        search.insert(i, signature, check_duplication=False)
    return {i: stays for i in shingles if (stays := groups.of(i)) != i}


def _bands(settings: SelectionSettings) -> tuple[int, int]:
    """(bands, rows of each): the longest bands, which find the fewest pairs, that find FOUND of those just alike enough.

    A band of r rows is the same in two signatures with probability s^r, so that a pair is found with 1 - (1 - s^r)^b.
    """
    s, n = settings.likeness, settings.permutations
    fit = [r for r in range(1, n + 1) if 1 - (1 - s**r) ** (n // r) >= FOUND]
    rows = max(fit, default=1)
    return n // rows, rows


def _signatures(shingles: Iterable[np.ndarray], permutations: int) -> Iterator[Any]:
    import datasketch

    # The scheme is named, as another default of the library would choose another set.
    return datasketch.MinHash.generator(
        (row.tolist() for row in shingles), num_perm=permutations, seed=SEED, hashfunc=int, scheme="affine32"
    )


class _Groups:
    """Sets of ids that only grow together, each called by its smallest."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def of(self, i: str) -> str:
        while (above := self._above.get(i, i)) != i:
            self._above[i] = self._above.get(above, above)
            i = above
        return i

    def join(self, i: str, other: str) -> None:
        low, high = sorted((self.of(i), self.of(other)))
        self._above[high] = low


def _thinned(requirements: Mapping[str, str], settings: SelectionSettings) -> dict[str, Choice]:
    """What goes of combinations with more than `factor` times their share of all that the target names."""
    members: dict[str, list[str]] = collections.defaultdict(list)
    for i, requirement in requirements.items():
        if requirement in settings.target:
            members[requirement].append(i)
    count, whole = sum(map(len, members.values())), sum(settings.target.values())
    removed: dict[str, Choice] = {}
    for requirement, ids in members.items():
        most = math.ceil(settings.factor * settings.target[requirement] / whole * count)
        reason = f"Of {requirement!r} there are {len(ids)} and {most} may stay."
        removed |= {i: Choice(BALANCE, reason) for i in sorted(ids, key=lambda i: _hash(i.encode(), 16))[most:]}
    return removed


def _hash(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()
