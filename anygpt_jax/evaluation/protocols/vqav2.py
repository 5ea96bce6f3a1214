"""Questions about pictures: VQA v2's validation split, accuracy over ten people's answers."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Iterator

from anygpt_jax.evaluation.measures.answers import VQA_ACCURACY
from anygpt_jax.evaluation.protocols import SPLIT, Protocol
from anygpt_jax.generation.sampling import Sampling
from anygpt_jax.tasks.sources.source import Example, File, MediaSource, Unit, read_medium

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANSWERS = "v2_mscoco_val2014_annotations.json"


def questions(folder: pathlib.Path) -> MediaSource:
    """The two JSON files of visualqa.org beside val2014/. Fields: image, answer (the commonest)."""
    return MediaSource({SPLIT: str(folder / QUESTIONS)}, _read, fields=("image", "answer"))


def _read(file: File) -> Iterator[Unit]:
    folder = file.path.parent
    answers = {
        entry["question_id"]: entry
        for entry in json.loads((folder / ANSWERS).read_text(encoding="utf-8"))["annotations"]
    }
    for entry in json.loads(file.path.read_text(encoding="utf-8"))["questions"]:
        yield functools.partial(_question, folder, entry, answers[entry["question_id"]])


def _question(folder: pathlib.Path, entry: dict, answered: dict) -> Iterator[Example]:
    yield {
        "key": str(entry["question_id"]),
        "image": read_medium(folder / "val2014" / f"COCO_val2014_{entry['image_id']:012}.jpg"),
        "answer": answered["multiple_choice_answer"],
        "attributes": {"question": entry["question"], "answers": [a["answer"] for a in answered["answers"]]},
    }


PROTOCOLS = {
    "vqav2": Protocol(
        name="vqav2",
        title="VQA v2, validation",
        data=questions,
        files=(QUESTIONS, ANSWERS, "val2014"),
        source="image",
        target="text",
        fields=("image", "answer"),
        reference=lambda attributes: attributes["answers"],
        measures=(VQA_ACCURACY,),
        sampling=Sampling(temperature=0.0),
        beams=1,
        max_new_tokens=16,
        citation="Goyal et al. 2017 (arXiv 1612.00837)",
        examples=214_354,
        # AnyGPT's own words for it (its repository, prompter.py).
        question=lambda a: f"{a['question']} Please provide an accurate answer consisting of only one word or phrase.",
    )
}
