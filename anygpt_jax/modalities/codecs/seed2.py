"""SEED-2 (Ge et al. 2023, arXiv 2310.01218): a picture ↔ 32 codes; the tokenizer of AnyGPT's images.

Codes are made of a vision transformer's features by a causal Q-Former; they decode to the 1024-d image embedding
that Stable unCLIP 2.1 makes pictures of. Published without `use_qformer_image`, as AnyGPT loads it: the way back
has vision-transformer layers and no second Q-Former.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from anygpt_jax.modalities.codecs import quantize, vit, weights
from anygpt_jax.modalities.codecs.melcodec import Codebook
from anygpt_jax.modalities.codecs.qformer import QFormer, QFormerSettings
from anygpt_jax.modalities.codecs.vit import VisionTransformer, VitSettings

# CLIP's mean and deviation of red, green and blue (arXiv 2103.00020, openai/CLIP).
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclasses.dataclass(frozen=True)
class Seed2Settings:
    """`decoder_*`: the vision-transformer layers after the codes; `shrink`: the widths that follow them."""

    vit: VitSettings = dataclasses.field(default_factory=VitSettings)
    qformer: QFormerSettings = dataclasses.field(default_factory=QFormerSettings)
    codebook_size: int = 8192
    code_width: int = 32
    decoder_depth: int = 4
    decoder_heads: int = 12
    decoder_mlp: int = 3072
    shrink: tuple[int, ...] = (256, 128, 32)
    embedding: int = 1024


class Mlp(nnx.Module):
    """Two dense layers with tanh between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, rngs: nnx.Rngs):
        self.inner = nnx.Linear(inputs, hidden, rngs=rngs)
        self.outer = nnx.Linear(hidden, outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "*N I"]) -> Float[Array, "*N O"]:
        """Each vector by itself."""
        return self.outer(jnp.tanh(self.inner(x)))


class Seed2(nnx.Module):
    """A picture's codes, and the image embedding of codes; `preprocess` prepares pictures, `unclip` makes them."""

    def __init__(self, settings: Seed2Settings, *, rngs: nnx.Rngs):
        self.settings = s = settings
        width = s.qformer.width
        self.vit = VisionTransformer(s.vit, rngs=rngs)
        self.vit_norm = vit.layer_norm(s.vit.width, 1e-5, rngs=rngs)  # not the 1e-6 of the layers
        self.qformer = QFormer(s.qformer, rngs=rngs)
        self.to_code = Mlp(width, width, s.code_width, rngs=rngs)
        self.codebook = Codebook(jnp.zeros((s.codebook_size, s.code_width)))
        self.of_code = Mlp(s.code_width, s.code_width, width, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((s.qformer.queries, width)))
        self.blocks = vit.stack(
            lambda rngs: vit.Block(width, s.decoder_heads, s.decoder_mlp, rngs=rngs), s.decoder_depth, rngs=rngs
        )
        widths = (width, *s.shrink)
        self.shrink = nnx.List([nnx.Linear(a, b, use_bias=False, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.out = nnx.Linear(s.qformer.queries * widths[-1], s.embedding, rngs=rngs)

    def latents(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B Q D"]:
        """Normalised pixels (`preprocess`) → vectors, one a query, before quantization."""
        features = self.vit(pixels)
        normed = self.vit_norm(features.astype(jnp.float32)).astype(features.dtype)
        return self.to_code(self.qformer(normed))

    def encode(self, pixels: Float[Array, "B H W 3"]) -> Int[Array, "B Q"]:
        """Normalised pixels (`preprocess`) → codes in reading order: each depends on the picture and is made knowing
        the queries before it alone."""
        return quantize.nearest(self.latents(pixels), self.codebook[...])

    def embedding(self, codes: Int[Array, "B Q"]) -> Float[Array, "B E"]:
        """Codes → the image embedding of CLIP ViT-H/14 that Stable unCLIP 2.1 is conditioned on."""
        x = self.of_code(self.codebook[...][codes]) + self.positions[...]
        x = vit.scan(self.blocks, vit.Block.__call__, x)
        for i, linear in enumerate(self.shrink):
            x = linear(jax.nn.relu(x) if i else x)
        return self.out(x.reshape(x.shape[0], -1))


def preprocess(pictures: Sequence[UInt8[np.ndarray, "h w 3"]], size: int = 224) -> Float[np.ndarray, "B S S 3"]:
    """Pictures of any size → what `encode` takes: squares (bicubic, the aspect is not kept), CLIP's normalisation.

    The arithmetic of torchvision's Resize on PIL images, ToTensor and Normalize, in float32.
    """
    squares = [Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC) for p in pictures]
    unit = np.stack([np.asarray(square) for square in squares]).astype(np.float32) / np.float32(255)
    return (unit - MEAN) / STD


def build(settings: Mapping[str, Any]) -> Seed2:
    """The network of settings as JSON has them."""
    parts = {"vit": VitSettings(**settings["vit"]), "qformer": QFormerSettings(**settings["qformer"])}
    return Seed2(
        Seed2Settings(**{**settings, **parts, "shrink": tuple(settings["shrink"])}),
        rngs=weights.rngs(),
    )
