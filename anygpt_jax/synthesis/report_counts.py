"""What a set of dialogues has, gathered in one pass: its sizes, combinations of media, variety and scores."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from anygpt_jax.synthesis.dialogue import Dialogue, media_of
from anygpt_jax.synthesis.filters.selection import jaccard, shingles_of, words_of
from anygpt_jax.synthesis.script import HUMAN

DRAWN = 300  # dialogues whose likeness is measured, each with each
SHINGLE = 3
WHOLE = 6  # dialogues that the page shows
TEXT_ONLY = "text"


@dataclasses.dataclass(frozen=True)
class Counts:
    """What the report tells of a finished set, which may be empty."""

    dialogues: int
    media: Mapping[str, int]  # by modality
    turns: int
    topics: int
    meta_topics: int
    rounds: Mapping[int, int]  # dialogues by rounds
    words: Mapping[int, int]  # utterances by words
    taken: Mapping[str, int]  # dialogues by what the human gives, and below by what the assistant does
    given: Mapping[str, int]
    distinct: tuple[float, float]  # distinct words, and pairs of words, over all
    likeness: float  # mean Jaccard of two dialogues' shingles; of fewer than two 0
    scores: Mapping[tuple[str, str], Sequence[float]]  # (modality, score) → of every medium
    shown: Sequence[Dialogue]

    @classmethod
    def of(cls, dialogues: Iterable[Dialogue]) -> Counts:
        """In one pass; it holds the different words and pairs of words, and a few hundred dialogues."""
        media: collections.Counter[str] = collections.Counter()
        rounds: collections.Counter[int] = collections.Counter()
        words: collections.Counter[int] = collections.Counter()
        taken: collections.Counter[str] = collections.Counter()
        given: collections.Counter[str] = collections.Counter()
        topics: set[tuple[str, str]] = set()
        said: list[set[int]] = [set(), set()]
        total = [0, 0]
        scores: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
        drawn = Lowest(DRAWN)
        chosen: dict[tuple[str, str], Lowest] = collections.defaultdict(lambda: Lowest(WHOLE))
        n = turns = 0
        for dialogue in dialogues:
            n += 1
            turns += len(dialogue.turns)
            rounds[len(dialogue.turns) // 2] += 1
            topics.add((dialogue.meta_topic, dialogue.topic))
            for _, medium in media_of(dialogue):
                media[medium.modality] += 1
                for name, value in medium.scores.items():
                    scores[medium.modality, name].append(value)
            for turn in dialogue.turns:
                tokens = turn.text.casefold().split()
                words[len(tokens)] += bool(tokens)
                for k, grams in enumerate((tokens, [f"{a} {b}" for a, b in itertools.pairwise(tokens)])):
                    said[k].update(map(hash, grams))
                    total[k] += len(grams)
            sides = combination(dialogue, human=True), combination(dialogue, human=False)
            taken[sides[0]] += 1
            given[sides[1]] += 1
            drawn.add(dialogue)
            chosen[sides].add(dialogue)
        return cls(
            dialogues=n,
            media=media,
            turns=turns,
            topics=len(topics),
            meta_topics=len({meta for meta, _ in topics}),
            rounds=dict(sorted(rounds.items())),
            words={count: many for count, many in sorted(words.items()) if many},
            taken=dict(taken.most_common()),
            given=dict(given.most_common()),
            distinct=(len(said[0]) / max(total[0], 1), len(said[1]) / max(total[1], 1)),
            likeness=likeness(list(drawn)),
            scores={key: scores[key] for key in sorted(scores)},
            shown=_of_every(chosen),
        )


class Lowest:
    """The dialogues whose ids have the lowest hashes: a draw that does not depend on the order in which they come."""

    def __init__(self, most: int):
        self._most = most
        self._held: list[tuple[int, str, Dialogue]] = []  # a heap with the highest hash first

    def add(self, dialogue: Dialogue) -> None:
        """Keeps it for good, or until enough with lower hashes have come. An id must not come twice."""
        place = int.from_bytes(hashlib.blake2b(dialogue.id.encode(), digest_size=8).digest())
        if len(self._held) < self._most:
            heapq.heappush(self._held, (-place, dialogue.id, dialogue))
        elif -place > self._held[0][0]:
            heapq.heapreplace(self._held, (-place, dialogue.id, dialogue))

    def __iter__(self) -> Iterator[Dialogue]:
        return (dialogue for _, _, dialogue in sorted(self._held, key=lambda held: (-held[0], held[1])))


def combination(dialogue: Dialogue, human: bool) -> str:
    """ "image and music": the modalities of one speaker's media, speech aside, as every utterance may have it."""
    kinds = {m.modality for turn in dialogue.turns if (turn.role == HUMAN) == human for m in turn.media}
    return " and ".join(sorted(kinds)) or TEXT_ONLY


def likeness(dialogues: Sequence[Dialogue]) -> float:
    """Mean Jaccard of the shingles of every two."""
    shingles = [shingles_of(words_of(dialogue), SHINGLE) for dialogue in dialogues]
    pairs = [jaccard(a, b) for a, b in itertools.combinations(shingles, 2)]
    return sum(pairs) / len(pairs) if pairs else 0.0


def _of_every(chosen: Mapping[tuple[str, str], Iterable[Dialogue]]) -> list[Dialogue]:
    """WHOLE dialogues, one of every combination in turn."""
    rounds = itertools.zip_longest(*(chosen[key] for key in sorted(chosen)))
    return list(itertools.islice((d for one in rounds for d in one if d is not None), WHOLE))


def binned(values: Sequence[float], most: int = 24) -> tuple[list[float], list[int]]:
    """(edges, counts) of equal bins from the lowest to the highest value; one bin if they are the same."""
    low, high = min(values), max(values)
    n = most if high > low else 1
    width = (high - low) / n or 1.0
    counts = [0] * n
    for value in values:
        counts[min(int((value - low) / width), n - 1)] += 1
    return [low + i * width for i in range(n + 1)], counts
