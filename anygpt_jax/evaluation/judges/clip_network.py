"""CLIP's two towers (Radford et al. 2021, arXiv 2103.00020) and how Hugging Face's CLIPModel is laid out."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.judges.folders import read_json
from anygpt_jax.interop.tokenizers.rules import Layout, conv2d, linear, made, norm, same, stacked
from anygpt_jax.interop.tokenizers.unclip import text_layout
from anygpt_jax.modalities.codecs import vit
from anygpt_jax.modalities.codecs.clip_text import ClipText, ClipTextSettings

LEGACY_END = 2  # in configurations from before it meant anything: texts end where the highest id is
# Of training, and numbers of positions that old files keep.
IGNORED = ("logit_scale", r"(text|vision)_model\.embeddings\.position_ids")
# What Transformers takes where a configuration is silent: it writes only what differs.
TEXT = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}  # fmt: skip
VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class VisionSettings:
    """Pixels of the square picture and of a patch; `inner`: the width within the feed-forward layers."""

    image: int
    patch: int
    width: int
    layers: int
    heads: int
    inner: int
    activation: str
    epsilon: float


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """`projection`: the width of what is compared; `end`: the id after a text, or LEGACY_END."""

    text: ClipTextSettings
    vision: VisionSettings
    projection: int
    end: int

    @classmethod
    def from_json(cls, path: pathlib.Path) -> ClipConfig:
        """Of a Hugging Face CLIPModel's config.json. UserError if it is of another network."""
        config = read_json(path, "CLIPModel")
        if config.get("model_type") != "clip":
            raise UserError(f"{path} describes a '{config.get('model_type')}' model; take the folder of a CLIPModel.")
        text, vision = _part(config, "text_config", TEXT), _part(config, "vision_config", VISION)
        if vision["num_channels"] != 3 or vision["hidden_act"] != text["hidden_act"]:
            raise UserError(f"{path} has not 3 channels, or two activations, which no released CLIP has.")
        try:
            return cls(
                text=ClipTextSettings(vocabulary=text["vocab_size"], positions=text["max_position_embeddings"],
                                      **_common(text)),
                vision=VisionSettings(image=vision["image_size"], patch=vision["patch_size"], **_common(vision)),
                projection=config.get("projection_dim", 512),
                end=text["eos_token_id"],
            )  # fmt: skip
        except ValueError as e:
            raise UserError(f"{path} does not fit: {e}; take the folder of a CLIPModel.") from e


def _part(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """As Transformers reads it: where an old configuration has `…_dict` too, that one and the defaults alone count."""
    return {**defaults, **(config.get(f"{name}_dict") or config.get(name) or {})}


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "inner": config["intermediate_size"],
        "activation": config["hidden_act"],
        "epsilon": config["layer_norm_eps"],
    }


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), all patches seeing one another."""

    def __init__(self, settings: VisionSettings, *, rngs: nnx.Rngs):
        self.settings = s = settings
        self.norm1 = vit.layer_norm(s.width, s.epsilon, rngs=rngs)
        self.qkv = nnx.Linear(s.width, 3 * s.width, rngs=rngs)
        self.out = nnx.Linear(s.width, s.width, rngs=rngs)
        self.norm2 = vit.layer_norm(s.width, s.epsilon, rngs=rngs)
        self.fc1 = nnx.Linear(s.width, s.inner, rngs=rngs)
        self.fc2 = nnx.Linear(s.inner, s.width, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """T counts the class token. Where the activation is not "gelu" it is CLIP's own: x · sigmoid(1.702 x)."""
        qkv = self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3, self.settings.heads, -1)
        attended = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        x = x + self.out(attended.reshape(x.shape))
        h = self.fc1(self.norm2(x))
        h = vit.gelu(h) if self.settings.activation == "gelu" else h * nnx.sigmoid(1.702 * h)
        return x + self.fc2(h)


class ClipNetwork(nnx.Module):
    """Both towers and their projections; what they give is of unit length."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.end = config.end
        self.text = ClipText(config.text, rngs=rngs)
        self.text_projection = nnx.Linear(config.text.width, config.projection, use_bias=False, rngs=rngs)
        v, patch = config.vision, (config.vision.patch,) * 2
        self.patches = nnx.Conv(3, v.width, patch, strides=patch, padding="VALID", use_bias=False, rngs=rngs)
        self.cls = nnx.Param(jnp.zeros(v.width))
        self.positions = nnx.Param(jnp.zeros((1 + (v.image // v.patch) ** 2, v.width)))
        self.norm_in = vit.layer_norm(v.width, v.epsilon, rngs=rngs)
        self.blocks = vit.stack(lambda rngs: Block(v, rngs=rngs), v.layers, rngs=rngs)
        self.norm_out = vit.layer_norm(v.width, v.epsilon, rngs=rngs)
        self.vision_projection = nnx.Linear(v.width, config.projection, use_bias=False, rngs=rngs)

    def images(self, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B P"]:
        """Of normalised pixels (`Preprocessing`): the class token's projection."""
        x = self.patches(pixels).reshape(pixels.shape[0], -1, self.cls.shape[0])
        x = jnp.concatenate([jnp.broadcast_to(self.cls[...], (x.shape[0], 1, x.shape[-1])), x], 1)
        x = vit.scan(self.blocks, Block.__call__, self.norm_in(x + self.positions[...]))
        return unit(self.vision_projection(self.norm_out(x[:, 0])))

    def texts(self, ids: Int[Array, "B N"]) -> Float[Array, "B P"]:
        """The projection of where each text ends first; the padding after it is not seen."""
        at = jnp.argmax(ids if self.end == LEGACY_END else ids == self.end, -1)
        states = jnp.take_along_axis(self.text(ids), at[:, None, None], 1)[:, 0]
        return unit(self.text_projection(states))


def unit(x: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
    """Each row over its Euclidean norm, so that products of two are cosines; NaN for a row of zeros."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def layout(config: ClipConfig) -> Layout:
    """Transformers' CLIPModel → `ClipNetwork`."""
    vision = "vision_model"
    layers = [_block(f"{vision}.encoder.layers.{i}") for i in range(config.vision.layers)]
    return {
        **{f"text.{path}": rule for path, rule in text_layout(config.text, "text_model.").items()},
        "text_projection.kernel": linear("text_projection"),
        "patches.kernel": conv2d(f"{vision}.embeddings.patch_embedding"),
        "cls": same(f"{vision}.embeddings.class_embedding"),
        "positions": same(f"{vision}.embeddings.position_embedding.weight"),
        **norm("norm_in", f"{vision}.pre_layrnorm"),  # so spelt in the files
        **{f"blocks.{path}": stacked([layer[path] for layer in layers]) for path in layers[0]},
        **norm("norm_out", f"{vision}.post_layernorm"),
        "vision_projection.kernel": linear("visual_projection"),
    }


def _block(theirs: str) -> Layout:
    found = norm("norm1", f"{theirs}.layer_norm1") | norm("norm2", f"{theirs}.layer_norm2")
    parts = [f"{theirs}.self_attn.{part}_proj" for part in "qkv"]
    found["qkv.kernel"] = made(lambda *w: np.concatenate(w).T, *(f"{part}.weight" for part in parts))
    found["qkv.bias"] = made(lambda *b: np.concatenate(b), *(f"{part}.bias" for part in parts))
    for ours, name in (("out", "self_attn.out_proj"), ("fc1", "mlp.fc1"), ("fc2", "mlp.fc2")):
        found |= {f"{ours}.kernel": linear(f"{theirs}.{name}"), f"{ours}.bias": same(f"{theirs}.{name}.bias")}
    return found
