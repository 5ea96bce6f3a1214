"""SpeechTokenizer (Zhang et al. 2023, "SpeechTokenizer: Unified Speech Tokenizer for Speech Language Models").

EnCodec at 16 kHz with 8 codebooks of 1024, 50 frames a second, whose first codebook is trained to hold what is said.
Unlike EnCodec its encoder's LSTM looks both ways and residual units have a pointwise shortcut; AnyGPT's checkpoint
has Snake activations, the first release ELU.

Encoding in windows (`chunked`) is therefore not exact: an LSTM has `seanet.MEMORY` frames on both sides of a window
instead of the whole sound. Decoding is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anygpt_jax.modalities.codecs import encodec
from anygpt_jax.modalities.codecs.encodec import Encodec, EncodecSettings
from anygpt_jax.modalities.codecs.seanet import SeanetSettings


def published(activation: str) -> EncodecSettings:
    """The released sizes; AnyGPT's has "snake" activations."""
    network = SeanetSettings(
        latent=1024, filters=64, ratios=(8, 5, 4, 2), bidirectional=True, conv_shortcut=True, activation=activation
    )
    return EncodecSettings(16000, network, codebooks=8, codebook_size=1024)


def build(settings: Mapping[str, Any]) -> Encodec:
    """The network with random weights and empty codebooks, of EnCodec's settings."""
    return encodec.build(settings)
