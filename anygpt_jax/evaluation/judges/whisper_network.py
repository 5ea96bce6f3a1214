"""Whisper's transformer (Radford et al. 2022, arXiv 2212.04356): an encoder of 30 s of sound, a decoder of its words."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from anygpt_jax.modalities.codecs import vit

EPSILON = 1e-5
HOP = 160  # samples at 16 kHz from one frame of mels to the next; the encoder halves their number
# (width, layers of the encoder, of the decoder) → the name under which it was released.
SIZES = {
    (384, 4, 4): "tiny",
    (512, 6, 6): "base",
    (768, 12, 12): "small",
    (1024, 24, 24): "medium",
    (1280, 32, 32): "large",
    (1280, 32, 4): "large_turbo",
}
MULTILINGUAL = 51865  # ids of the first vocabulary of many languages; the English one has one less

KeysValues: TypeAlias = tuple[Float[Array, "B T H K"], Float[Array, "B T H K"]]


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
    """`inner`: the width within feed-forward layers; `sound`: states of the encoder, `text`: tokens of the decoder."""

    mels: int
    width: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    inner: int
    vocabulary: int
    sound: int = 1500
    text: int = 448

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 1 or self.width % self.heads:
            raise ValueError(f"a number is not positive, or {self.width} is no multiple of {self.heads} heads")

    @property
    def samples(self) -> int:
        """At 16 kHz, that are heard at once: those of 30 s."""
        return 2 * self.sound * HOP

    @property
    def size(self) -> str:
        """For people and for names of measures: "base", "large_v3"; "WIDTHxLAYERSxLAYERS" if none was released so.

        large and large-v2 are one network with two sets of weights and cannot be told apart.
        """
        layers = (self.width, self.encoder_layers, self.decoder_layers)
        name = SIZES.get(layers, "x".join(map(str, layers)))
        if self.mels == 128:
            return name.replace("large", "large_v3")
        return name + ("_en" if self.vocabulary == MULTILINGUAL - 1 else "")


class EncoderLayer(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), all of the sound seeing all of it."""

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        width, self.heads = config.width, config.heads
        self.norm1 = vit.layer_norm(width, EPSILON, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.norm2 = vit.layer_norm(width, EPSILON, rngs=rngs)
        self.fc1 = nnx.Linear(width, config.inner, rngs=rngs)
        self.fc2 = nnx.Linear(config.inner, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """T is `WhisperConfig.sound`: of a shorter sound the silence after it is seen as well."""
        q, k, v = split(self.qkv(self.norm1(x)), 3, self.heads)
        x = x + self.out(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))
        return x + self.fc2(vit.gelu(self.fc1(self.norm2(x))))


class DecoderLayer(nnx.Module):
    """The same of the tokens so far, with an attention to the sound between."""

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        width, self.heads = config.width, config.heads
        self.norm1 = vit.layer_norm(width, EPSILON, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.norm_sound = vit.layer_norm(width, EPSILON, rngs=rngs)
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.sound = nnx.Linear(width, 2 * width, rngs=rngs)
        self.out_sound = nnx.Linear(width, width, rngs=rngs)
        self.norm2 = vit.layer_norm(width, EPSILON, rngs=rngs)
        self.fc1 = nnx.Linear(width, config.inner, rngs=rngs)
        self.fc2 = nnx.Linear(config.inner, width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B N D"], start: Int[Array, ""] | int, written: KeysValues, sound: KeysValues
    ) -> tuple[Float[Array, "B N D"], KeysValues]:
        """Of the tokens from `start` on; `written` has room for all, and comes back with these in it."""
        q, *new = split(self.qkv(self.norm1(x)), 3, self.heads)
        k, v = (jax.lax.dynamic_update_slice(old, now, (0, start, 0, 0)) for old, now in zip(written, new, strict=True))
        seen = jnp.arange(k.shape[1]) <= start + jnp.arange(x.shape[1])[:, None]
        x = x + self.out(jax.nn.dot_product_attention(q, k, v, mask=seen[None, None]).reshape(x.shape))
        (q,) = split(self.query(self.norm_sound(x)), 1, self.heads)
        x = x + self.out_sound(jax.nn.dot_product_attention(q, *sound).reshape(x.shape))
        return x + self.fc2(vit.gelu(self.fc1(self.norm2(x)))), (k, v)


def split(x: Float[Array, "B T PD"], parts: int, heads: int) -> list[Float[Array, "B T H K"]]:
    """The parts of what one matrix made, by heads."""
    found = x.reshape(*x.shape[:2], parts, heads, -1)
    return [found[:, :, i] for i in range(parts)]


class WhisperNetwork(nnx.Module):
    """The encoder's layers are scanned; the decoder's are not, which would copy keys and values at every token."""

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        self.config = c = config
        self.conv1 = nnx.Conv(c.mels, c.width, (3,), padding=1, rngs=rngs)
        self.conv2 = nnx.Conv(c.width, c.width, (3,), strides=2, padding=1, rngs=rngs)
        self.sound_positions = nnx.Param(jnp.zeros((c.sound, c.width)))
        self.encoder = vit.stack(lambda rngs: EncoderLayer(c, rngs=rngs), c.encoder_layers, rngs=rngs)
        self.encoder_norm = vit.layer_norm(c.width, EPSILON, rngs=rngs)
        self.tokens = nnx.Embed(c.vocabulary, c.width, rngs=rngs)
        self.text_positions = nnx.Param(jnp.zeros((c.text, c.width)))
        self.decoder = nnx.List([DecoderLayer(c, rngs=rngs) for _ in range(c.decoder_layers)])
        self.decoder_norm = vit.layer_norm(c.width, EPSILON, rngs=rngs)

    def encode(self, mels: Float[Array, "B F M"]) -> Float[Array, "B F/2 D"]:
        """F is twice `config.sound`."""
        x = vit.gelu(self.conv2(vit.gelu(self.conv1(mels)))) + self.sound_positions[...]
        return self.encoder_norm(vit.scan(self.encoder, EncoderLayer.__call__, x))

    def heard(self, states: Float[Array, "B T D"]) -> list[KeysValues]:
        """What each layer of the decoder sees of a sound's states: made once for all tokens."""
        found = (split(layer.sound(states), 2, self.config.heads) for layer in self.decoder)
        return [(k, v) for k, v in found]

    def unwritten(self, batch: int, length: int) -> list[KeysValues]:
        """Room for the keys and values of `length` tokens."""
        empty = jnp.zeros((batch, length, self.config.heads, self.config.width // self.config.heads))
        return [(empty, empty) for _ in self.decoder]

    def decode(
        self,
        ids: Int[Array, "B N"],
        start: Int[Array, ""] | int,
        written: list[KeysValues],
        sound: list[KeysValues],
    ) -> tuple[Float[Array, "B N V"], list[KeysValues]]:
        """Logits of what follows each of the tokens from `start` on, and `written` with these in it."""
        x = self.tokens(ids) + jax.lax.dynamic_slice_in_dim(self.text_positions[...], start, ids.shape[1])
        kept = []
        for layer, of_tokens, of_sound in zip(self.decoder, written, sound, strict=True):
            x, of_tokens = layer(x, start, of_tokens, of_sound)
            kept.append(of_tokens)
        return self.tokens.attend(self.decoder_norm(x)), kept
