"""What becomes of an answer: it is read by the prompt's format, its media are saved, and it is described."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from anygpt_jax.generation import media
from anygpt_jax.generation.answer import Answer
from anygpt_jax.generation.automaton import Free
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.generation.voice import decode
from anygpt_jax.templates import TEXT

if TYPE_CHECKING:
    from anygpt_jax.generation.main import Command


def saved(
    pipeline: Pipeline, answer: Answer, voice: pathlib.Path | None, path_of: Callable[[str, int], pathlib.Path]
) -> list[dict[str, Any]]:
    """Saves the media of an answer, speech in the voice of a recording, and describes its parts in their order.

    {"modality": "text", "heard"} is what the model says that it heard, {"modality": "text", "text"} of the reply; a medium
    has its "codes" and its "file", which `path_of` names by its modality and its place among the reply's parts, from 1.
    """
    parsed = pipeline.formatter.parse(answer.segments)
    described: list[dict[str, Any]] = []
    if parsed.transcript is not None:
        described.append({"modality": TEXT, "heard": parsed.transcript})
    for place, (modality, content) in enumerate(((s.modality, s.content) for s in parsed.segments), 1):
        if modality == TEXT:
            described.append({"modality": TEXT, "text": content})
            continue
        tokenizer, codes, path = pipeline.tokenizers[modality], np.asarray(content), path_of(modality, place)
        media.write_media(path, decode(tokenizer, codes, voice), tokenizer)
        described.append({"modality": modality, "codes": codes.tolist(), "file": str(path)})
    return described


def report(
    pipeline: Pipeline,
    command: Command,
    prompt: np.ndarray,
    answers: Sequence[Answer],
    saved: Sequence[list[dict[str, Any]]],
    seconds: dict[str, float],
) -> bytes:
    """The JSON of --json: `saved` describes each of the answers, `prompt` int32[N] is what all of them answer."""
    sampling = pipeline.engine.settings.sampling
    told = {
        "checkpoint_step": pipeline.step,
        "vocabulary": pipeline.engine.vocabulary.fingerprint,
        "plan": dataclasses.asdict(command.plan) if isinstance(command.plan, Free) else command.plan,
        "prompt": {"text": command.prompt, "files": [[m, str(p)] for m, p in command.files], "ids": prompt.tolist()},
        "sampling": {modality: dataclasses.asdict(s) for modality, s in sampling.items()},
        "answers": [
            {"seed": answer.seed, "segments": segments, "ids": answer.ids.tolist()}
            for answer, segments in zip(answers, saved, strict=True)
        ],
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "versions": {"jax": jax.__version__, "python": sys.version.split()[0]},
    }
    return json.dumps(told, indent=1, ensure_ascii=False).encode() + b"\n"
