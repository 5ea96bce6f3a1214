"""What clients send as files: from text in JSON to media, with everything hostile refused before it costs much.

A file says itself what it is; the type that a client claims is not believed, and none is written anywhere. Nothing is
fetched: a URL must be a data URL.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from anygpt_jax.errors import UserError
from anygpt_jax.modalities import audio, pictures
from anygpt_jax.modalities.base import Audio, ModalityTokenizer
from anygpt_jax.serving.limits import Limits
from anygpt_jax.serving.refusal import Refusal

_DATA_URL = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w.+-]+=[\w.+-]*)*;base64,", re.ASCII | re.IGNORECASE)


def from_data_url(url: str, param: str) -> bytes:
    """The bytes in a data URL of base64; Refusal for any other URL, which would have to be fetched."""
    head = url[:256]
    found = _DATA_URL.match(head)
    if found is None:
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]{0,15}:", head)
        if scheme and scheme.group().lower() != "data:":
            raise Refusal(
                400, f"This server fetches no URLs ({scheme.group()}…); send the file as data:…;base64,…", param
            )
        raise Refusal(400, "A medium must be a URL of the form data:image/png;base64,…", param)
    return from_base64(url[found.end() :], param)


def from_base64(text: str, param: str) -> bytes:
    """Strict base64, its padding optional; Refusal for anything else."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, "The data is not base64; encode the file's bytes as RFC 4648 says.", param) from None


def load(tokenizer: ModalityTokenizer, data: bytes, limits: Limits, param: str) -> Any:
    """The canonical medium in a file's bytes; Refusal (400) with one sentence for everything that it cannot be."""
    try:
        if tokenizer.name == "image":
            return pictures.load_picture(data, limits.pixels)
        if tokenizer.name in ("speech", "music"):
            audio.load_audio(data, longest=limits.media_seconds)  # a tokenizer may take an hour
        return tokenizer.load(data)
    except UserError as e:
        raise Refusal(400, str(e), param, "bad_media") from e


def recording(data: bytes, limits: Limits, param: str) -> Audio:
    """A recording in whose voice the model is to speak."""
    try:
        sound = audio.load_audio(data, longest=limits.media_seconds)
    except UserError as e:
        raise Refusal(400, str(e), param, "bad_media") from e
    if audio.is_silent(sound):
        raise Refusal(400, "The recording of a voice is silent; record it again.", param, "bad_media")
    return sound
