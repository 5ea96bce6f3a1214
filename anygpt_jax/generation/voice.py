"""Speech in the voice of a recording."""

from __future__ import annotations

import inspect
import pathlib
from typing import Any

import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.audio import load_audio
from anygpt_jax.modalities.base import Audio, ModalityTokenizer


def decode(
    tokenizer: ModalityTokenizer, codes: np.ndarray, voice: pathlib.Path | None, seconds: float | None = None
) -> Any:
    """Codes int32[N] → media; speech in the voice of a recording, if there is one, or of its first `seconds`.

    UserError if the recording cannot be used.
    """
    if voice is None or tokenizer.name != "speech":
        return tokenizer.decode([codes])[0]
    if "prompt" not in inspect.signature(tokenizer.decode).parameters:
        raise UserError("This config's speech tokenizer has one voice only; leave the recording out.")
    try:
        prompt = load_audio(voice.read_bytes())
    except UserError as e:
        raise UserError(f"{voice}: {e}") from e
    if seconds is not None:
        prompt = Audio(prompt.samples[: round(seconds * prompt.sample_rate)], prompt.sample_rate)
    return tokenizer.decode([codes], prompt=prompt)[0]  # type: ignore[call-arg]
