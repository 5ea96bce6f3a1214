"""The segments of an answer: which modalities they are of, and what they are as media."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from anygpt_jax.generation.answer import Segment
from anygpt_jax.generation.pipeline import Pipeline


def modalities(segments: Sequence[Segment]) -> list[str]:
    """In order; text beside text is one segment."""
    return [segment.modality for segment in segments]


def decode(pipeline: Pipeline, answers: Sequence[Sequence[Segment]]) -> list[list[Any]]:
    """What every segment of every answer is: str, or what its tokenizer decodes."""
    media: list[list[Any]] = [[segment.content for segment in segments] for segments in answers]
    for modality, tokenizer in pipeline.tokenizers.items():
        where = [(i, j) for i, segments in enumerate(answers) for j, s in enumerate(segments) if s.modality == modality]
        codes = [np.asarray(media[i][j]) for i, j in where]
        for (i, j), medium in zip(where, tokenizer.decode(codes) if codes else (), strict=True):
            media[i][j] = medium
    return media
