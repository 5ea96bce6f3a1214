"""Dialogues as AnyInstruct has them: the true history is given, and the model answers last by its own free plan.

What the true answer holds is what was asked for. Nothing is published to compare with: these are checks that an answer is
of the right modalities, that its media are something, and that its speech says what its text does (AnyGPT's chain of
modality). A model is not asked to say what the true answer says.
"""

from __future__ import annotations

import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from anygpt_jax.evaluation.judges.chosen import Judges
from anygpt_jax.evaluation.measures import Measure, mean, ratio
from anygpt_jax.evaluation.measures.transcripts import word_errors
from anygpt_jax.evaluation.protocols import SPLIT, Protocol
from anygpt_jax.formats.released import split_reply
from anygpt_jax.generation.sampling import Sampling
from anygpt_jax.modalities.audio import is_silent
from anygpt_jax.modalities.base import Audio
from anygpt_jax.tasks.sources import any_instruct
from anygpt_jax.tasks.sources.metadata import json_items, rows
from anygpt_jax.tasks.sources.mmc4 import FIELDS, LISTS
from anygpt_jax.tasks.sources.source import Example, File, MediaSource, Unit
from anygpt_jax.templates import TEXT

# Of the release, or of a set in shards as `anygpt synthesize` writes them.
METADATA = "metadata*.json*"
TARS = {"image": "images*.tar", "music": "music*.tar", "speech": "speech*.tar"}
NAMES = any_instruct.Names()
ERRORS = word_errors("whisper")

Answer = Sequence[tuple[str, Any]]  # (modality, str or medium)


def rate(found: Float[np.ndarray, "N 2"]) -> float:
    """`ratio`, NaN where there is nothing to be wrong."""
    return ratio(found) if found[:, 1].any() else math.nan


def dialogues(folder: pathlib.Path, spoken: bool) -> MediaSource:
    """metadata.json or metadata….jsonl beside the tars that it names, as `any_instruct.any_instruct` reads them.

    Attributes: "answer", the last one's segments as (modality, text), and if `spoken`, "heard", what is said in the
    human's turn before it, "" where nothing is.
    """
    tars = {m: tuple(sorted(folder.glob(name))) for m, name in TARS.items() if spoken or m != "speech"}
    reader = functools.partial(_read, tars=tars, spoken=spoken)
    return MediaSource({SPLIT: str(folder / METADATA)}, reader, fields=FIELDS, lists=LISTS)


def _read(file: File, tars: Mapping[str, Sequence[pathlib.Path]], spoken: bool) -> Iterator[Unit]:
    items = rows(file.path) if file.path.suffix == ".jsonl" else json_items(file.path)
    for n, row in enumerate(items):
        yield functools.partial(_dialogue, n, row, tars, spoken)


def _dialogue(n: int, row: Any, tars: Mapping[str, Sequence[pathlib.Path]], spoken: bool) -> Iterator[Example]:
    for example in any_instruct.dialogue(n, row, tars, NAMES, spoken):
        if "unreadable" in example:
            yield example
            continue
        roles = example["role"]
        answered = [i for i, pair in enumerate(itertools.pairwise(roles)) if pair == ("human", "assistant")]
        if not answered or roles[0] != "human":
            yield {"key": example["key"], "unreadable": "no answer, or none that follows the human's first turn"}
            continue
        after = zip(roles, example["modality"], example["content"], strict=True)
        answer = itertools.takewhile(lambda p: p[0] == "assistant", itertools.islice(after, answered[-1] + 1, None))
        told = [(modality, content if modality == TEXT else "") for _, modality, content in answer]
        heard = _heard(row[NAMES.turns]) if spoken else ""
        yield {**example, "attributes": {**example["attributes"], "answer": _joined(told), "heard": heard}}


def _joined(segments: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Text beside text is one segment."""
    found: list[tuple[str, str]] = []
    for modality, same in itertools.groupby(segments, key=lambda segment: segment[0]):
        texts = [text for _, text in same]
        found += [(TEXT, " ".join(texts))] if modality == TEXT else [(modality, "")] * len(texts)
    return found


def _heard(turns: Sequence[Mapping[str, Any]]) -> str:
    """The text of what is spoken in the last human turn that is answered."""
    speech = dict(NAMES.media)["speech"]
    human = [str(turn.get(NAMES.role, "")).strip().lower() in any_instruct.HUMAN for turn in turns]
    last = max(i for i, pair in enumerate(itertools.pairwise(human)) if pair == (True, False))
    first = max((i + 1 for i in range(last) if not human[i]), default=0)
    return " ".join(str(turn.get(NAMES.text) or "") for turn in turns[first : last + 1] if turn.get(speech)).strip()


def is_something(medium: Any) -> bool:
    """Text with a word; sound that is finite and not silent; a picture of more than one colour. None is nothing."""
    if medium is None:
        return False
    if isinstance(medium, str):
        return bool(medium.strip())
    if isinstance(medium, Audio):
        return bool(np.isfinite(medium.samples).all()) and not is_silent(medium)
    values = np.asarray(medium)
    return bool(np.isfinite(values).all()) and bool((values != values[:1, :1]).any())


def _of_each(right: Callable[[Mapping[str, Any], Answer], bool]) -> Callable[..., Float[np.ndarray, "N 1"]]:
    """`Measure.rows`: 1 where the answer is right; no answer is wrong."""

    def found(references: Sequence[Mapping[str, Any]], predictions: Sequence[Answer | None]) -> np.ndarray:
        pairs = zip(references, predictions, strict=True)
        return np.array([p is not None and right(r, p) for r, p in pairs], np.float64).reshape(-1, 1)

    return found


# Does an answer hold the true one's modalities in their order, and no others?
MODALITIES = Measure(
    "modalities", True, _of_each(lambda truth, answer: [m for m, _ in truth["answer"]] == [m for m, _ in answer]), mean
)
# Is every segment of an answer something? An answer in text alone has no medium that could fail.
DECODABLE = Measure(
    "decodable", True, _of_each(lambda _, answer: bool(answer) and all(is_something(x) for _, x in answer)), mean
)


def written_before(answer: Answer) -> tuple[str | None, str]:
    """What an answer marks as heard, None if it marks nothing, and the rest of its text before its first speech."""
    before = itertools.takewhile(lambda segment: segment[0] != "speech", answer)
    return split_reply(" ".join(text for modality, text in before if modality == TEXT))


def transcript(truth: Mapping[str, Any], answer: Answer) -> str | None:
    """What an answer says that it heard: where it is marked, or its first text where the true one begins by that."""
    first = next((text for modality, text in answer if modality == TEXT), None)
    if first is None:
        return None
    marked, rest = split_reply(first)
    begins = [text.strip() for modality, text in truth["answer"][:1] if modality == TEXT] == [truth["heard"]]
    return rest if marked is None and begins else marked


def _transcript_errors(references: Sequence[Mapping[str, Any]], predictions: Sequence[Answer | None]) -> np.ndarray:
    pairs = zip(references, predictions, strict=True)
    return ERRORS.rows(
        [r["heard"] for r in references], [transcript(r, p) if r["heard"] and p else "" for r, p in pairs]
    )


# Words that were heard wrongly, of all that are spoken in the last human turn; without a transcript all are.
TRANSCRIPT = Measure("transcript_wer_whisper", False, _transcript_errors, rate)


def _chain(judges: Judges) -> tuple[Measure, ...]:
    """Words that an answer's speech says otherwise than the text before it, where the true answer has text and speech.

    An answer that lacks either has the words of the true text wrong.
    """

    def errors(references: Sequence[Mapping[str, Any]], predictions: Sequence[Answer | None]) -> np.ndarray:
        found = np.zeros((len(references), 2))
        wanted, texts, sounds = [], [], []
        for i, (truth, answer) in enumerate(zip(references, predictions, strict=True)):
            if not {TEXT, "speech"} <= {modality for modality, _ in truth["answer"]}:
                continue
            _, said = written_before(answer or ())
            sound = next((medium for modality, medium in answer or () if modality == "speech"), None)
            whole = bool(said.strip()) and sound is not None
            wanted.append(i)
            texts.append(said if whole else written_before(truth["answer"])[1])
            sounds.append(sound if whole else None)
        heard = iter(judges.heard([sound for sound in sounds if sound is not None]))
        found[wanted] = ERRORS.rows(texts, [None if sound is None else next(heard) for sound in sounds])
        return found

    return (Measure("chain_wer_pocketsphinx", False, errors, rate),)


def _protocol(name: str, title: str, spoken: bool) -> Protocol:
    return Protocol(
        name=name,
        title=title,
        data=functools.partial(dialogues, spoken=spoken),
        files=(METADATA, TARS["speech"]) if spoken else (METADATA,),
        source=None,
        target=None,
        fields=None,
        reference=lambda attributes: attributes,
        measures=(MODALITIES, DECODABLE, TRANSCRIPT) if spoken else (MODALITIES, DECODABLE),
        judged=_chain if spoken else None,
        sampling=Sampling(temperature=1.0, top_p=0.7),  # AnyGPT, table 9, of speech and of pictures
        beams=1,
        max_new_tokens=4096,
        citation="Layout of AnyInstruct (Zhan et al. 2024, arXiv 2402.12226)",
        examples=None,
    )


PROTOCOLS = {
    "dialogue": _protocol("dialogue", "Dialogues in writing", spoken=False),
    "dialogue_spoken": _protocol("dialogue_spoken", "Dialogues in speech", spoken=True),
}
