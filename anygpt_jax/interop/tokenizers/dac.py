"""Descript's audio codec as it is published: transformers' `DacModel`, or weights.pth of descript-audio-codec."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers.kinds import Kind
from anygpt_jax.interop.tokenizers.rules import Layout, Rule, conv1d, conv1d_transposed, linear, same
from anygpt_jax.modalities.codecs.dac import DILATIONS, DacSettings, build

Shapes = Mapping[str, tuple[int, ...]]
UNITS = range(len(DILATIONS))
# (strides, codebooks) → samples a second of the releases, for weights without a configuration.
RATES: dict[tuple[tuple[int, ...], int], int] = {
    ((2, 4, 8, 8), 9): 44100,
    ((2, 4, 8, 8), 18): 44100,
    ((2, 4, 5, 8), 32): 24000,
    ((2, 4, 5, 8), 12): 16000,
}


def settings(config: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Everything but the sample rate is in the shapes; UserError if neither they nor the configuration tell it."""
    # A strided kernel has two taps a stride.
    ratios = tuple(
        k[2] // 2 for k in _kernels(shapes, lambda i: (f"encoder.block.{i}.conv1", f"encoder.block.{i + 1}.block.4"))
    )
    codebooks = len(_kernels(shapes, lambda q: (f"quantizer.quantizers.{q}.in_proj",)))
    size, width = _shape(shapes, "quantizer.quantizers.0.codebook.weight")
    rate = config.get("sampling_rate") or config.get("sample_rate") or RATES.get((ratios, codebooks))
    if rate is None:
        raise UserError(
            f"No config.json lies beside these DAC weights, and strides {ratios} with {codebooks} codebooks are none "
            'of the releases; write a config.json with {"sampling_rate": …} there.'
        )
    last = len(ratios) + 2
    found = DacSettings(
        sample_rate=int(rate),
        ratios=ratios,
        encoder_width=_shape(shapes, *_weight("encoder.conv1", "encoder.block.0"))[0],
        decoder_width=_shape(shapes, *_weight("decoder.conv1", "decoder.model.0"))[0],
        latent=_shape(shapes, *_weight("encoder.conv2", f"encoder.block.{last}"))[0],
        codebooks=codebooks,
        codebook_size=size,
        codebook_width=width,
    )
    return dataclasses.asdict(found)


def layout(settings: Mapping[str, Any]) -> Layout:
    """Each variable under transformers' names, then under those of descript-audio-codec."""
    n = len(settings["ratios"])
    found: Layout = {}
    for side, original in (("encoder", "encoder.block"), ("decoder", "decoder.model")):
        found |= _layer(f"{side}.inward", f"{side}.conv1", f"{original}.0")
        found |= _snake(f"{side}.snake", f"{side}.snake1", f"{original}.{n + 1}")
        found |= _layer(f"{side}.outward", f"{side}.conv2", f"{original}.{n + 2}")
    for i in range(n):
        ours, theirs, original = f"encoder.blocks.{i}", f"encoder.block.{i}", f"encoder.block.{i + 1}.block"
        for u in UNITS:
            found |= _unit(f"{ours}.units.{u}", f"{theirs}.res_unit{u + 1}", f"{original}.{u}.block")
        found |= _snake(f"{ours}.snake", f"{theirs}.snake1", f"{original}.3")
        found |= _layer(f"{ours}.down", f"{theirs}.conv1", f"{original}.4")
        ours, theirs, original = f"decoder.blocks.{i}", f"decoder.block.{i}", f"decoder.model.{i + 1}.block"
        found |= _snake(f"{ours}.snake", f"{theirs}.snake1", f"{original}.0")
        found |= _layer(f"{ours}.up", f"{theirs}.conv_t1", f"{original}.1", kernel=conv1d_transposed(""))
        for u in UNITS:
            found |= _unit(f"{ours}.units.{u}", f"{theirs}.res_unit{u + 1}", f"{original}.{u + 2}.block")
    for q in range(settings["codebooks"]):
        ours, theirs = f"levels.{q}", f"quantizer.quantizers.{q}"
        found |= _layer(f"{ours}.inward", f"{theirs}.in_proj", kernel=linear(""))
        found |= _layer(f"{ours}.outward", f"{theirs}.out_proj", kernel=linear(""))
        found[f"{ours}.codebook"] = same(f"{theirs}.codebook.weight")
    return found


def _layer(ours: str, *theirs: str, kernel: Rule | None = None) -> Layout:
    kernel = kernel or conv1d("")
    return {f"{ours}.kernel": kernel.prefixed(*theirs), f"{ours}.bias": same(*(f"{name}.bias" for name in theirs))}


def _snake(ours: str, *theirs: str) -> Layout:
    return {f"{ours}.alpha": same(*(f"{name}.alpha" for name in theirs)).then(lambda alpha: alpha.reshape(-1))}


def _unit(ours: str, theirs: str, original: str) -> Layout:
    return {
        **_snake(f"{ours}.snake1", f"{theirs}.snake1", f"{original}.0"),
        **_layer(f"{ours}.conv", f"{theirs}.conv1", f"{original}.1"),
        **_snake(f"{ours}.snake2", f"{theirs}.snake2", f"{original}.2"),
        **_layer(f"{ours}.out", f"{theirs}.conv2", f"{original}.3", kernel=linear("")),
    }


def _weight(*layers: str) -> list[str]:
    """What a layer's weight [out, in, k] may be called."""
    ends = ("weight", "weight_v", "parametrizations.weight.original1")
    return [f"{layer}.{end}" for layer in layers for end in ends]


def _kernels(shapes: Shapes, layers: Callable[[int], tuple[str, ...]]) -> list[tuple[int, ...]]:
    """Of layers 0, 1, … as many as there are, each under one of several names."""
    found: list[tuple[int, ...]] = []
    while names := [name for name in _weight(*layers(len(found))) if name in shapes]:
        found.append(shapes[names[0]])
    return found


def _shape(shapes: Shapes, *names: str) -> tuple[int, ...]:
    for name in names:
        if name in shapes:
            return shapes[name]
    raise UserError(f"There is no {names[0]} in this checkpoint; it is not of DAC, or not whole.")


KIND = Kind(settings=settings, build=build, layout=layout)
