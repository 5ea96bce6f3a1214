"""CLAP's two towers (Wu et al. 2023, arXiv 2211.06687) and how Hugging Face's ClapModel is laid out."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.judges.clap_roberta import Roberta, RobertaSettings
from anygpt_jax.evaluation.judges.clap_swin import Swin, SwinSettings
from anygpt_jax.evaluation.judges.clip_network import unit
from anygpt_jax.evaluation.judges.folders import read_json
from anygpt_jax.interop.tokenizers.rules import Layout, conv2d, conv_layer, linear, made, norm, same, stacked

# Of training, and numbers of positions and kinds that follow from the configuration.
IGNORED = (
    r"logit_scale_[at]",
    r"text_model\.embeddings\.(position|token_type)_ids",
    r"audio_model\..*\.relative_position_index",
    r"audio_model\.audio_encoder\.batch_norm\.num_batches_tracked",
)
# What Transformers takes where a configuration is silent: it writes only what differs.
TEXT = {
    "vocab_size": 50265, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 514, "layer_norm_eps": 1e-12, "pad_token_id": 1,
    "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
AUDIO = {
    "window_size": 8, "num_mel_bins": 64, "spec_size": 256, "patch_size": 4, "patch_stride": 4, "hidden_size": 768,
    "depths": (2, 2, 6, 2), "num_attention_heads": (4, 8, 16, 32), "patch_embeds_hidden_size": 96, "mlp_ratio": 4.0,
    "layer_norm_eps": 1e-5, "enable_fusion": False,
}  # fmt: skip
# What this implementation computes; a configuration that names anything else is another network.
FIXED = {
    "text_config": {"hidden_act": "gelu", "type_vocab_size": 1, "position_embedding_type": "absolute"},
    "audio_config": {
        "hidden_act": "gelu", "patch_embed_input_channels": 1, "flatten_patch_embeds": True,
        "enable_patch_layer_norm": True, "qkv_bias": True,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ClapConfig:
    """`projection`: the width of what is compared."""

    audio: SwinSettings
    text: RobertaSettings
    projection: int

    @classmethod
    def from_json(cls, path: pathlib.Path) -> ClapConfig:
        """Of a Hugging Face ClapModel's config.json. UserError if it is of another network, or of one with fusion."""
        config = read_json(path, "ClapModel")
        if config.get("model_type") != "clap":
            raise UserError(f"{path} describes a '{config.get('model_type')}' model; take the folder of a ClapModel.")
        text, audio = TEXT | (config.get("text_config") or {}), AUDIO | (config.get("audio_config") or {})
        if audio["enable_fusion"]:
            raise UserError(
                f"{path} asks for the fusion of several crops (enable_fusion), which is drawn at random; take a model "
                "without, such as laion/larger_clap_music or laion/clap-htsat-unfused."
            )
        _require(path, config, {"projection_hidden_act": "relu"})
        _require(path, text, FIXED["text_config"])
        _require(path, audio, FIXED["audio_config"])
        try:
            patch, stride = _square(audio["patch_size"]), _square(audio["patch_stride"])
            if patch != stride:
                raise ValueError(f"patches of {patch} lie {stride} apart")
            made_audio, made_text = _audio(audio, patch), _text(text)
            if audio["hidden_size"] != made_audio.widths[-1]:
                raise ValueError(f"the sound's width {audio['hidden_size']} is not that of the last stage")
        except ValueError as e:
            raise UserError(f"{path} does not fit: {e}; take the folder of a ClapModel.") from e
        return cls(made_audio, made_text, config.get("projection_dim", 512))


def _require(path: pathlib.Path, config: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if config.get(name, value) != value:
            raise UserError(
                f"{path} has {name} = {config[name]!r}, and released models without fusion have {value!r}; take the "
                "folder of one."
            )


def _square(value: Any) -> int:
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise ValueError(f"{value} is no square")
    return sides.pop()


def _audio(config: Mapping[str, Any], patch: int) -> SwinSettings:
    return SwinSettings(
        mels=config["num_mel_bins"],
        size=config["spec_size"],
        patch=patch,
        window=config["window_size"],
        width=config["patch_embeds_hidden_size"],
        depths=tuple(config["depths"]),
        heads=tuple(config["num_attention_heads"]),
        inner_ratio=config["mlp_ratio"],
        epsilon=config["layer_norm_eps"],
    )


def _text(config: Mapping[str, Any]) -> RobertaSettings:
    return RobertaSettings(
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        inner=config["intermediate_size"],
        epsilon=config["layer_norm_eps"],
        pad=config["pad_token_id"],
        begin=config["bos_token_id"],
        end=config["eos_token_id"],
    )


class Projection(nnx.Module):
    """Two dense layers with a ReLU between them."""

    def __init__(self, inputs: int, width: int, *, rngs: nnx.Rngs):
        self.linear1 = nnx.Linear(inputs, width, rngs=rngs)
        self.linear2 = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B P"]:
        """Of unit length."""
        return unit(self.linear2(jax.nn.relu(self.linear1(x))))


class ClapNetwork(nnx.Module):
    """Both towers and their projections; what they give is of unit length."""

    def __init__(self, config: ClapConfig, *, rngs: nnx.Rngs):
        self.audio = Swin(config.audio, rngs=rngs)
        self.audio_projection = Projection(config.audio.widths[-1], config.projection, rngs=rngs)
        self.text = Roberta(config.text, rngs=rngs)
        self.text_projection = Projection(config.text.width, config.projection, rngs=rngs)

    def sounds(self, mels: Float[Array, "B T M"]) -> Float[Array, "B P"]:
        """Of mels in dB as `ClapMels` gives them, of at most `SwinSettings.frames` frames."""
        return self.audio_projection(self.audio(mels))

    def texts(self, ids: Int[Array, "B N"]) -> Float[Array, "B P"]:
        """Of ids with `RobertaSettings.pad` after their end; N is at most `RobertaSettings.longest`."""
        return self.text_projection(self.text(ids))


def layout(config: ClapConfig) -> Layout:
    """Transformers' ClapModel → `ClapNetwork`."""
    projections: Layout = {}
    for name in ("audio_projection", "text_projection"):
        for part in ("linear1", "linear2"):
            projections |= conv_layer(f"{name}.{part}", f"{name}.{part}", kernel=linear)
    towers = (("audio", _audio_layout(config.audio)), ("text", _text_layout(config.text)))
    return projections | {f"{tower}.{path}": rule for tower, found in towers for path, rule in found.items()}


def _audio_layout(settings: SwinSettings) -> Layout:
    theirs = "audio_model.audio_encoder"
    mels = f"{theirs}.batch_norm"
    found = {
        "scale": made(_batch_scale, f"{mels}.weight", f"{mels}.running_var"),
        "offset": made(_batch_offset, *(f"{mels}.{x}" for x in ("weight", "running_var", "bias", "running_mean"))),
        **conv_layer("patches", f"{theirs}.patch_embed.proj", kernel=conv2d),
        **norm("norm_in", f"{theirs}.patch_embed.norm"),
        **norm("norm_out", f"{theirs}.norm"),
    }
    for i, depth in enumerate(settings.depths):
        for j in range(depth):
            name = f"{theirs}.layers.{i}.blocks.{j}"
            block = norm("norm1", f"{name}.layernorm_before") | norm("norm2", f"{name}.layernorm_after")
            block |= _attention(name) | {"bias": same(f"{name}.attention.self.relative_position_bias_table")}
            found |= {f"stages.{i}.{j}.{path}": rule for path, rule in block.items()}
    for i in range(len(settings.depths) - 1):
        name = f"{theirs}.layers.{i}.downsample"
        found |= {f"merging.{i}.reduction.kernel": linear(f"{name}.reduction")}
        found |= norm(f"merging.{i}.norm", f"{name}.norm")
    return found


def _text_layout(settings: RobertaSettings) -> Layout:
    theirs = "text_model"
    layers = [_text_layer(f"{theirs}.encoder.layer.{i}") for i in range(settings.layers)]
    kinds = f"{theirs}.embeddings.token_type_embeddings.weight"  # there is one kind, which is added everywhere
    return {
        "tokens.embedding": same(f"{theirs}.embeddings.word_embeddings.weight"),
        "positions": made(np.add, f"{theirs}.embeddings.position_embeddings.weight", kinds),
        **norm("norm", f"{theirs}.embeddings.LayerNorm"),
        **{f"layers.{path}": stacked([layer[path] for layer in layers]) for path in layers[0]},
        **conv_layer("pooler", f"{theirs}.pooler.dense", kernel=linear),
    }


def _text_layer(name: str) -> Layout:
    return (
        _attention(name)
        | norm("norm1", f"{name}.attention.output.LayerNorm")
        | norm("norm2", f"{name}.output.LayerNorm")
    )


def _attention(name: str) -> Layout:
    """The dense layers of a block, which both towers name alike."""
    parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
    found = {
        "qkv.kernel": made(lambda *w: np.concatenate(w).T, *(f"{part}.weight" for part in parts)),
        "qkv.bias": made(lambda *b: np.concatenate(b), *(f"{part}.bias" for part in parts)),
    }
    for ours, theirs in (("out", "attention.output.dense"), ("fc1", "intermediate.dense"), ("fc2", "output.dense")):
        found |= conv_layer(ours, f"{name}.{theirs}", kernel=linear)
    return found


def _batch_scale(weight: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return weight / np.sqrt(variance + np.float32(1e-5))


def _batch_offset(weight: np.ndarray, variance: np.ndarray, bias: np.ndarray, mean: np.ndarray) -> np.ndarray:
    return bias - mean * _batch_scale(weight, variance)
