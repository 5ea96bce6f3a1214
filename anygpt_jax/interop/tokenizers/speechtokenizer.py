"""SpeechTokenizer as it is published: a state dict (SpeechTokenizer.pt, AnyGPT's ckpt.dev) and its config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers import encodec
from anygpt_jax.interop.tokenizers.kinds import Kind
from anygpt_jax.modalities.codecs.encodec import EncodecSettings
from anygpt_jax.modalities.codecs.seanet import SeanetSettings
from anygpt_jax.modalities.codecs.speechtokenizer import build, published

# What the first codebook learnt from: the projection to HuBERT's features.
IGNORED = (*encodec.IGNORED, r"transform\.(weight|bias)")


def settings(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """From config.json; without one the published sizes. The weights tell the activation."""
    activation = "snake" if any(name.endswith(".alpha") for name in shapes) else "elu"
    if not config:
        return dataclasses.asdict(published(activation))
    if (named := config["activation"].lower()) != activation:
        raise UserError(f"The configuration says activation {named!r}, and the weights are of {activation!r}.")
    codebooks, size = encodec.codebook_shapes(shapes)
    network = SeanetSettings(
        latent=config["dimension"],
        filters=config["n_filters"],
        ratios=tuple(config["strides"]),
        residual_layers=config["n_residual_layers"],
        residual_kernel=config["residual_kernel_size"],
        dilation_base=config["dilation_base"],
        lstm_layers=config["lstm_layers"],
        bidirectional=config["bidirectional"],
        conv_shortcut=True,
        activation=activation,
    )
    return dataclasses.asdict(EncodecSettings(config["sample_rate"], network, codebooks, size))


KIND = Kind(settings=settings, build=build, layout=encodec.layout, ignored=IGNORED)
