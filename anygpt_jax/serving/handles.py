"""Ids of media that the model made: an id holds the medium's codes, so that a later turn can name it and no server
need remember it. What is decoded and encoded again would not be the same codes."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping

import numpy as np

from anygpt_jax.modalities.base import ModalityTokenizer
from anygpt_jax.serving.refusal import Refusal

_FINGERPRINT = 4  # bytes of it: of another tokenizer the codes would mean something else


def name(modality: str, codes: np.ndarray, tokenizer: ModalityTokenizer) -> str:
    """Codes int32[N] → `MODALITY-…`, in letters, digits, - and _."""
    raw = bytes.fromhex(tokenizer.fingerprint[: 2 * _FINGERPRINT]) + np.asarray(codes, "<u4").tobytes()
    packed = struct.pack(">I", binascii.crc32(raw)) + raw
    return f"{modality}-{base64.urlsafe_b64encode(packed).decode().rstrip('=')}"


def read(text: str, tokenizers: Mapping[str, ModalityTokenizer], param: str) -> tuple[str, np.ndarray]:
    """(modality, codes int32[N]) of an id; Refusal unless it is one that this model's tokenizers gave."""
    modality, _, packed = text.partition("-")
    tokenizer = tokenizers.get(modality)
    try:
        if tokenizer is None:
            raise ValueError(modality)
        raw = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
        codes = np.frombuffer(raw[4 + _FINGERPRINT :], "<u4").astype(np.int64)
        if (problem := tokenizer.grammar.problem(codes)) or name(modality, codes, tokenizer) != text:
            raise ValueError(problem)
    except (ValueError, binascii.Error):
        raise Refusal(400, "This id is of no medium that this model made; send the medium itself.", param) from None
    return modality, codes.astype(np.int32)
