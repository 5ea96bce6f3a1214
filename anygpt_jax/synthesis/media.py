"""The stage that makes the media of the kept scripts: pictures, music and voices, each a file with its trace."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anygpt_jax.synthesis.backends import Failure, Request, medium_request
from anygpt_jax.synthesis.backends.cached import Cached
from anygpt_jax.synthesis.dialogue import Dialogue, Made, Medium, Place, media_of, with_media
from anygpt_jax.synthesis.job import Job
from anygpt_jax.synthesis.script import HUMAN


def _with_voices(job: Job, dialogue: Dialogue) -> Dialogue:
    """The words of every turn as speech that is to be made, if this dialogue is one of the spoken."""
    rng = np.random.default_rng(job.seed_of("voices", dialogue.id))
    s = job.settings
    asking, answering = (names[int(rng.integers(len(names)))] for names in (s.voices, s.answering_voices))
    if rng.random() >= s.spoken:
        return dialogue
    turns = [
        dataclasses.replace(t, speech=Medium("speech", t.text, voice=asking if t.role == HUMAN else answering))
        if t.text
        else t
        for t in dialogue.turns
    ]
    return dataclasses.replace(dialogue, turns=tuple(turns))


def make(
    job: Job, dialogues: Sequence[Dialogue], backends: Mapping[str, Cached]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Items: the dialogues with files for all their media. One whose medium was refused fails, and no other."""
    spoken = [_with_voices(job, dialogue) for dialogue in dialogues]
    asked: dict[str, list[tuple[int, Place, Request]]] = {modality: [] for modality in backends}
    for d, dialogue in enumerate(spoken):
        for place, medium in media_of(dialogue):
            asked[medium.modality].append((d, place, _request(job, dialogue, place, medium)))
    found: list[dict[Place, Medium]] = [{} for _ in spoken]
    reasons: dict[int, str] = {}
    for modality, backend in backends.items():
        answers = backend.make([request for _, _, request in asked[modality]])
        for (d, place, request), answer in zip(asked[modality], answers, strict=True):
            if isinstance(answer, Failure):
                reasons.setdefault(d, f"{modality} of {request.content!r}: {answer.reason}")
            else:
                found[d][place] = _traced(job, request, answer, backend)
    items = [with_media(one, found[d]).to_json() for d, one in enumerate(spoken) if d not in reasons]
    return items, [{"id": spoken[d].id, "reason": reason} for d, reason in sorted(reasons.items())]


def _request(job: Job, dialogue: Dialogue, place: Place, medium: Medium) -> Request:
    """The same words in the same voice are asked for once, whoever says them."""
    parts = (medium.voice, medium.description) if medium.modality == "speech" else (dialogue.id, *place)
    about = {} if medium.modality == "speech" else {"split": dialogue.split}
    return medium_request(medium.modality, medium.description, about, job.seed_of("media", *parts), medium.voice)


def _traced(job: Job, request: Request, answer: bytes, backend: Cached) -> Medium:
    file = backend.file(request).relative_to(job.folder).as_posix()
    trace = Made(backend.name, request.content, request.seed, request.digest(backend.name))
    return Medium(request.modality, request.content, file, hashlib.sha256(answer).hexdigest(), request.voice, trace)
