"""OmniBench: a picture, a sound and a question with four options; guessing makes 25 %.

Speech goes through the tokenizer of speech; music, and sound events, which have none of their own, through that of music.
The words of the question are those of the authors' code (inference/demo_api_call.py). Their parser takes the last of
several letters in an answer; here such an answer takes none.
"""

from __future__ import annotations

import functools
import math
import pathlib
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from anygpt_jax.evaluation.measures import Measure, ratio
from anygpt_jax.evaluation.measures.answers import MULTIPLE_CHOICE, Choice
from anygpt_jax.evaluation.protocols import SPLIT, Protocol, Published
from anygpt_jax.generation.sampling import Sampling
from anygpt_jax.tasks.sources.metadata import rows
from anygpt_jax.tasks.sources.mmc4 import FIELDS, LISTS
from anygpt_jax.tasks.sources.source import Example, File, MediaSource, Unit, Unreadable, read_medium

ANNOTATIONS = "dataset/batch-5_1142_20240817.jsonl"
PICTURES, SOUNDS = "mm_data/image", "mm_data/audio"
# What the data call a sound -> whose tokenizer it goes through.
HEARD_AS = {"speech": "speech", "sound event": "music", "music": "music"}


def questions(folder: pathlib.Path) -> MediaSource:
    """The authors' repository: a JSONL file of questions, and the media that it names in mm_data/.

    Examples are for `preprocessors.interleaved`: picture, sound and question of the human's, and the right option.
    """
    return MediaSource({SPLIT: str(folder / ANNOTATIONS)}, _read, fields=FIELDS, lists=LISTS)


def _read(file: File) -> Iterator[Unit]:
    for n, row in enumerate(rows(file.path)):
        yield functools.partial(_question, n, row, file.path.parents[1])


def _question(n: int, row: Mapping[str, Any] | Unreadable, folder: pathlib.Path) -> Iterator[Example]:
    if isinstance(row, Unreadable):
        yield {"key": f"#{n}", "unreadable": row.reason}
        return
    kind = row["audio type"].strip().lower()
    options = [option.strip() for option in row["options"]]
    right = options.index(row["answer"].strip())
    listed = [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]
    sound = read_medium(folder / SOUNDS / row["audio_path"])
    yield {
        "key": str(row["index"]),
        "kind": "dialogue",
        "modality": ["image", HEARD_AS[kind], "text", "text"],
        "role": ["human", "human", "human", "assistant"],
        "content": [
            read_medium(folder / PICTURES / row["image_path"]),
            sound,
            _asked(row["question"], listed),
            listed[right],
        ],
        "attributes": {"options": options, "answer": right, "audio": kind},
    }


def _asked(question: str, options: Sequence[str]) -> str:
    """The words of the authors' code, inference/demo_api_call.py; `options` have their letters already: "A. a dog"."""
    return (
        f"Please answer the following question based on the given image and audio:\n{question.strip()}.\n"
        "Please choose only one answer from the following options:\n" + "\n".join(options) + "."
    )


def _choices(references: Sequence[Mapping[str, Any]], predictions: Sequence[str | None]) -> Float[np.ndarray, "N 1"]:
    """`Measure.rows` of references that are examples' attributes: 1.0 where the right option is taken, else 0.0."""
    return MULTIPLE_CHOICE.rows([Choice(r["options"], r["answer"]) for r in references], predictions)


def _of_kind(kind: str) -> Measure:
    """The accuracy where the sound is of one kind; NaN where none is."""

    def rows_of(references: Sequence[Mapping[str, Any]], predictions: Sequence[str | None]) -> np.ndarray:
        of_kind = np.array([[r["audio"] == kind] for r in references], np.float64).reshape(-1, 1)
        return np.concatenate([_choices(references, predictions) * of_kind, of_kind], axis=1)

    def score(found: Float[np.ndarray, "N 2"]) -> float:
        return ratio(found) if found[:, 1].any() else math.nan

    return Measure(f"{MULTIPLE_CHOICE.name}_{kind.replace(' ', '_')}", True, rows_of, score)


def _published(system: str, overall: float, *by_kind: float) -> Published:
    """Shares, of speech, sound events and music."""
    names = (MULTIPLE_CHOICE.name, *(_of_kind(kind).name for kind in HEARD_AS))
    return Published(system, dict(zip(names, (overall, *by_kind), strict=True)), "OmniBench's leaderboard (2409.15272)")


PROTOCOLS = {
    "omnibench": Protocol(
        name="omnibench",
        title="OmniBench, picture and sound",
        data=questions,
        files=(ANNOTATIONS, PICTURES, SOUNDS),
        source=None,
        target="text",
        fields=None,
        reference=lambda attributes: attributes,
        measures=(
            Measure(MULTIPLE_CHOICE.name, True, _choices, MULTIPLE_CHOICE.score),
            *(_of_kind(kind) for kind in HEARD_AS),
        ),
        sampling=Sampling(temperature=0.0),
        beams=1,
        max_new_tokens=64,
        citation="Li et al. 2024 (arXiv 2409.15272)",
        examples=1_142,
        published=(
            _published("AnyGPT 7B", 0.1804, 0.1777, 0.2075, 0.1321),
            _published("UnifiedIO2-xlarge 3.2B", 0.3800, 0.3956, 0.3698, 0.2925),
            _published("UnifiedIO2-xxlarge 6.8B", 0.3398, 0.3424, 0.3698, 0.2453),
            _published("video-SALMONN 13B", 0.3564, 0.3411, 0.3170, 0.5660),
            _published("Gemini-1.5-Pro", 0.4291, 0.4267, 0.4226, 0.4623),
        ),
    )
}
