"""What is asked of the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import ml_collections
import numpy as np
from jaxtyping import Int32

from anygpt_jax.generation.automaton import Plan
from anygpt_jax.generation.sampling import Sampling

MAX_SEED = 2**32


@dataclasses.dataclass(frozen=True)
class Request:
    """One answer. The prompt ends with the opening of the assistant's turn, or a begin marker after it.

    `max_new_tokens` caps the answer, its end included; what is written then still ends as the plan demands.
    `sampling` goes by modality over the engine's own. `without` is the prompt without the request, as guidance needs.
    """

    prompt: Int32[np.ndarray, " N"]
    plan: Plan
    seed: int
    max_new_tokens: int | None = None
    sampling: Mapping[str, Sampling] | None = None
    without: Int32[np.ndarray, " M"] | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How answers are drawn. `sampling` is by modality; a modality without an entry samples at temperature 1."""

    sampling: Mapping[str, Sampling] = dataclasses.field(default_factory=dict)
    max_text_tokens: int = 128  # of one stretch of text
    batch_size: int = 32  # answers that are written at the same time
    prefill_chunk: int = 64  # tokens of a prompt that are read at a time
    stride: int = 16  # tokens that every answer grows by before they are looked at
    context: int | None = None  # tokens of prompt and answer at most; None: as many as are asked for
    weights: str = "float"  # as the layers are kept for writing, or int8
    cache: str | None = None  # of keys and values: None for the model's own dtype, or int8
    beams: int = 1  # of the search for an answer of greedy text alone (beam.py)
    length_penalty: float = 1.0  # of that search
    round_trip: float = 0.0  # weight of the request's probability given the answer, when one beam is chosen

    @classmethod
    def from_config(cls, generate: ml_collections.ConfigDict) -> Settings:
        """`config.generate`: `batch_size`, and a section a modality; the text's has `max_tokens`, and may have `beams`."""
        sampling = {
            modality: Sampling.from_section(section)
            for modality, section in generate.items()
            if isinstance(section, ml_collections.ConfigDict)
        }
        text = generate.text
        return cls(
            sampling,
            int(text.max_tokens),
            int(generate.batch_size),
            weights=str(generate.get("weights", "float")),
            cache=generate.get("cache") or None,
            beams=int(text.get("beams", 1)),
            length_penalty=float(text.get("length_penalty", 1.0)),
            round_trip=float(text.get("round_trip", 0.0)),
        )
