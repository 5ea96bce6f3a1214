"""EnCodec as it is published: transformers' `EncodecModel`, or the .th and .bin files of encodec and audiocraft.

Both number their layers alike. Only the 24 kHz and 32 kHz networks are mono with weight norm; the stereo 48 kHz one
has group norms and is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers.kinds import Kind
from anygpt_jax.interop.tokenizers.rules import Layout, Rule, conv1d, conv1d_transposed, linear, made, same, stacked
from anygpt_jax.modalities.codecs.conv1d import Conv, ConvTransposed
from anygpt_jax.modalities.codecs.encodec import MUSIC_32KHZ, SOUND_24KHZ, EncodecSettings, build
from anygpt_jax.modalities.codecs.lstm import Lstm
from anygpt_jax.modalities.codecs.seanet import Activation, SeanetSettings, Unit

Shapes = Mapping[str, tuple[int, ...]]
CODEBOOK = ("quantizer.layers.{}.codebook.embed", "quantizer.vq.layers.{}._codebook.embed")
# Of the codebooks' training.
IGNORED = (r"quantizer\.(vq\.)?layers\.\d+\._?codebook\.(inited|cluster_size|embed_avg)",)


def settings(config: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """From transformers' configuration; without one the weights must be of one of the two releases.

    audiocraft trained the 32 kHz network with zeros as padding, transformers' configuration of it mirrors. The
    latter is what AnyGPT's codes were made with, so it is taken where no configuration says otherwise.
    """
    if any(".norm." in name for name in shapes):
        raise UserError("This EnCodec has group norms, as the stereo 48 kHz one does; take the 24 or 32 kHz one.")
    codebooks, size = codebook_shapes(shapes)
    if config:
        if config["audio_channels"] != 1 or config["normalize"] or config.get("chunk_length_s"):
            raise UserError("This EnCodec is stereo, normalizes or overlaps chunks; take the 24 or 32 kHz one.")
        network = SeanetSettings(
            latent=config["hidden_size"],
            filters=config["num_filters"],
            ratios=tuple(config["upsampling_ratios"]),
            residual_layers=config["num_residual_layers"],
            kernel=config["kernel_size"],
            last_kernel=config["last_kernel_size"],
            residual_kernel=config["residual_kernel_size"],
            dilation_base=config["dilation_growth_rate"],
            compress=config["compress"],
            lstm_layers=config["num_lstm_layers"],
            conv_shortcut=config["use_conv_shortcut"],
            causal=config["use_causal_conv"],
            pad_mode=config["pad_mode"],
            trim_right_ratio=config["trim_right_ratio"],
        )
        return dataclasses.asdict(EncodecSettings(config["sampling_rate"], network, codebooks, size))
    for release in (SOUND_24KHZ, MUSIC_32KHZ):
        if (codebooks, size) == (release.codebooks, release.codebook_size):
            return dataclasses.asdict(release)
    raise UserError(
        f"No config.json lies beside these EnCodec weights, and {codebooks} codebooks of {size} are none of the "
        "releases; copy the one of the same network in transformers' format there."
    )


def codebook_shapes(shapes: Shapes) -> tuple[int, int]:
    """(codebooks, their size)."""
    found = [shapes[name.format(q)] for name in CODEBOOK for q in range(len(shapes)) if name.format(q) in shapes]
    if not found:
        raise UserError(f"There is no {CODEBOOK[0].format(0)} in this checkpoint; it is not of EnCodec, or not whole.")
    return len(found), found[0][0]


def layout(settings: Mapping[str, Any]) -> Layout:
    """Hugging Face's names and the original ones, for EnCodec and whatever is built of the same layers."""
    network = nnx.eval_shape(lambda: build(settings))
    found: Layout = {"vectors": stacked([same(*(n.format(q) for n in CODEBOOK)) for q in range(network.codebooks)])}
    for side in ("encoder", "decoder"):
        for i, layer in enumerate(getattr(network, side).layers):
            ours, at = f"{side}.layers.{i}", str(i)
            if isinstance(layer, Conv):
                found |= _layer(ours, _names(side, at, "conv"), conv1d(""))
            elif isinstance(layer, ConvTransposed):
                found |= _layer(ours, _names(side, at, "convtr"), conv1d_transposed(""))
            elif isinstance(layer, Unit):
                found |= _layer(f"{ours}.conv", _names(side, f"{at}.block.1", "conv"), conv1d(""))
                found |= _layer(f"{ours}.out", _names(side, f"{at}.block.3", "conv"), linear(""))
                if layer.shortcut is not None:
                    found |= _layer(f"{ours}.shortcut", _names(side, f"{at}.shortcut", "conv"), linear(""))
                found |= _activation(f"{ours}.activation1", layer.activation1, f"{side}.model.{at}.block.0")
                found |= _activation(f"{ours}.activation2", layer.activation2, f"{side}.model.{at}.block.2")
            elif isinstance(layer, Activation):
                found |= _activation(ours, layer, f"{side}.model.{at}")
            elif isinstance(layer, Lstm):
                found |= _lstm(ours, layer, (f"{side}.layers.{at}.lstm", f"{side}.model.{at}.lstm"))
    return found


def _names(side: str, at: str, conv: str) -> tuple[str, str]:
    """A convolution's names, in transformers and originally."""
    return f"{side}.layers.{at}.conv", f"{side}.model.{at}.{conv}.{conv}"


def _layer(ours: str, theirs: tuple[str, ...], kernel: Rule) -> Layout:
    return {f"{ours}.kernel": kernel.prefixed(*theirs), f"{ours}.bias": same(*(f"{name}.bias" for name in theirs))}


def _activation(ours: str, layer: Activation, theirs: str) -> Layout:
    return {} if layer.alpha is None else {f"{ours}.alpha": same(f"{theirs}.alpha").then(lambda x: x.reshape(-1))}


def _lstm(ours: str, layer: Lstm, theirs: tuple[str, ...]) -> Layout:
    """PyTorch adds two biases to the gates, and matrices are [gates, in]."""
    found: Layout = {}
    for direction, end in (("forward", ""), ("backward", "_reverse")):
        for i in range(len(getattr(layer, direction))):
            path, name = f"{ours}.{direction}.{i}", f"l{i}{end}"
            found[f"{path}.kernel"] = made(np.transpose, f".weight_ih_{name}").prefixed(*theirs)
            found[f"{path}.recurrent"] = made(np.transpose, f".weight_hh_{name}").prefixed(*theirs)
            found[f"{path}.bias"] = made(np.add, f".bias_ih_{name}", f".bias_hh_{name}").prefixed(*theirs)
    return found


KIND = Kind(settings=settings, build=build, layout=layout, ignored=IGNORED)
