"""SoundStorm (Borsos et al. 2023, arXiv 2305.09636) as AnyGPT runs it: semantic codes → all codes of SpeechTokenizer.

A conformer predicts the acoustic codes of all positions at once. The first acoustic level is decoded in `steps` + 1
passes in which the least certain codes are masked and predicted again (MaskGIT, arXiv 2202.04200); each of the other
levels takes one more pass. A prompt, whose codes are known, lends its voice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from anygpt_jax.modalities.codecs import weights
from anygpt_jax.modalities.codecs.conformer import Conformer, ConformerSettings

TINY = 1e-10  # keeps logarithms and quotients finite, as in the published sampler


@dataclasses.dataclass(frozen=True)
class SoundStormSettings:
    """`levels`: acoustic codebooks, those after the semantic one; each code is one of `codebook_size`."""

    conformer: ConformerSettings = dataclasses.field(default_factory=ConformerSettings)
    semantic: int = 1024
    levels: int = 7
    codebook_size: int = 1024


class Pass(NamedTuple):
    """One forward pass: the level it decodes, the share of positions that it masks again, its temperature."""

    level: Array
    masked: Array
    temperature: Array


def schedule(steps: int, levels: int, temperature: float | Float[Array, ""] = 1.0) -> Pass:
    """The `steps` + `levels` passes of a generation, along a leading axis.

    At level 0 pass i of 0 … `steps` masks cos(π/2 · i/steps) and draws at temperature · i/steps. Shares are rounded
    as those of the published code, in float32 from torch.linspace, which counts its second half from the end: where
    the exact product with a length is an integer, its floor would be one less otherwise.
    """
    if steps < 1:
        raise ValueError(f"SoundStorm takes 1 step or more, not {steps}")
    i, step = np.arange(steps + 1), np.float32(1 / steps)
    ramp = np.where(i < (steps + 1) // 2, step * i.astype(np.float32), 1 - step * (steps - i).astype(np.float32))
    masked = np.cos(ramp * np.float32(math.pi) / np.float32(2))
    rest = np.zeros(levels - 1, np.float32)
    level = np.concatenate([np.zeros(steps + 1, np.int32), np.arange(1, levels, dtype=np.int32)])
    heat = jnp.asarray(np.concatenate([i / steps, rest]), jnp.float32) * temperature
    return Pass(jnp.asarray(level), jnp.asarray(np.concatenate([masked, rest])), heat)


def uniform_noise(keys: Key[Array, " B"], i: int | Array, shape: tuple[int, ...]) -> Float[Array, "B T Q K"]:
    """Numbers in 0..1 for pass i, of shape [T, Q, K] a row. A position's depend on the row's key and on it alone."""

    def at(key: Array, t: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, t), shape[1:])

    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
    return jax.vmap(lambda key: jax.vmap(at, (None, 0))(key, jnp.arange(shape[0])))(keys)


def draw(
    logits: Float[Array, "B T Q K"], kept: int, temperature: float | Array, uniform: Float[Array, "B T Q K"]
) -> tuple[Int[Array, "B T Q"], Float[Array, "B T Q"]]:
    """A code from the `kept` most likely ones, by Gumbel's trick, and its probability among them at temperature 1."""
    least = jax.lax.top_k(logits, kept)[0][..., -1:]
    logits = jnp.where(logits >= least, logits, -jnp.inf)
    gumbel = -jnp.log(-jnp.log(uniform + TINY) + TINY)
    codes = jnp.argmax(logits / jnp.maximum(temperature, TINY) + gumbel, -1).astype(jnp.int32)
    return codes, jnp.take_along_axis(jax.nn.softmax(logits, -1), codes[..., None], -1)[..., 0]


def least_certain(
    probability: Float[Array, "B T Q"], valid: Bool[Array, "B T"], count: Int[Array, " B"]
) -> Bool[Array, "B T Q"]:
    """The `count` least likely codes of each row, over all its positions and levels; the earlier of two equal ones."""
    certainty = jnp.where(valid[..., None], probability, jnp.inf).reshape(len(probability), -1)
    rank = jnp.argsort(jnp.argsort(certainty, -1, stable=True), -1, stable=True)
    return (rank < count[:, None]).reshape(probability.shape)


class SoundStorm(nnx.Module):
    """`codebooks` are the semantic level and the acoustic ones."""

    def __init__(self, settings: SoundStormSettings, *, rngs: nnx.Rngs):
        self.settings = s = settings
        width, c = s.conformer.width, s.codebook_size
        self.codebooks, self.codebook_size, self.mask_code = 1 + s.levels, c, c
        self.semantic = nnx.Embed(s.semantic, width, rngs=rngs)
        self.codes = nnx.Embed(s.levels * (c + 1), width, rngs=rngs)  # level by level, the mask's last
        self.conformer = Conformer(s.conformer, rngs=rngs)
        self.heads = nnx.Linear(width, s.levels * width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (s.levels, width, c)) * width**-0.5)
        self.bias = nnx.Param(jnp.zeros((s.levels, c)))

    def __call__(
        self, semantic: Int[Array, "B T"], codes: Int[Array, "B T Q"], lengths: Int[Array, " B"]
    ) -> Float[Array, "B T Q K"]:
        """Logits, float32, of each level's codes, of which `mask_code` are not known yet."""
        levels = self.settings.levels
        x = self.codes(codes + jnp.arange(levels) * (self.codebook_size + 1)).sum(2) + self.semantic(semantic)
        x = self.heads(self.conformer(x, lengths))
        x = self.norm(x.reshape(*x.shape[:2], levels, -1))
        logits = jnp.einsum("btqd,qdk->btqk", x, self.kernel[...]) + self.bias[...]
        return logits.astype(jnp.float32)

    def generate(
        self,
        semantic: Int[Array, "B N"],
        lengths: Int[Array, " B"],
        keys: Key[Array, " B"],
        prompt: Int[Array, "B P Q+1"] | None = None,
        prompt_lengths: Int[Array, " B"] | None = None,
        *,
        steps: int = 3,
        greedy: bool | Bool[Array, ""] = True,
        temperature: float | Float[Array, ""] = 1.0,
        kept: float = 0.3,
    ) -> Int[Array, "B N Q+1"]:
        """Semantic codes and those of the voice's prompt → semantic and acoustic codes; `steps` + 7 passes for 7 levels.

        A row gets what it would get alone, whatever its padding and its batch-mates; beyond its length the codes
        mean nothing. Each row has its own key (`jax.random.split(key, B)`). Codes are drawn among the share `kept`
        of the likeliest, at `temperature` · i/steps in pass i; the last pass takes the most likely code if `greedy`,
        and so does every pass at temperature 0. `steps` and `kept` are static under `jit`.

        As in the published code (AnyGPT's soundstorm.py, 2024): how many codes are masked again is a share of the
        row's positions with its prompt's, yet they are the least certain of all levels together, so that level 0
        keeps most of its codes even after the first pass; the prompt's own positions are ranked too and never
        masked; what the last pass of level 0 says of the other levels is not masked but read by the pass of level
        1; and that pass and the later ones predict the prompt's acoustic codes anew.
        """
        if prompt is None:
            prompt = jnp.zeros((len(semantic), 0, self.codebooks), semantic.dtype)
            prompt_lengths = jnp.zeros_like(lengths)
        if prompt_lengths is None:
            raise ValueError("a prompt needs its lengths")
        known, total = prompt_lengths[:, None], prompt_lengths + lengths
        at = jnp.arange(prompt.shape[1] + semantic.shape[1])
        is_prompt, valid = at < known, at < total[:, None]
        padded = jnp.pad(prompt, ((0, 0), (0, semantic.shape[1]), (0, 0)))
        source = jnp.clip(at - known, 0, semantic.shape[1] - 1)
        condition = jnp.where(is_prompt, padded[..., 0], jnp.take_along_axis(semantic, source, 1))
        condition = jnp.where(valid, condition, 0)
        wanted = jnp.broadcast_to((valid & ~is_prompt)[..., None], padded[..., 1:].shape)
        start = jnp.where(is_prompt[..., None], padded[..., 1:], self.mask_code).astype(jnp.int32)

        levels = jnp.arange(self.settings.levels)
        # Rounded up from 0.3 · 1024 = 307.2, which 1 - 0.7 in the published code is too.
        amount = math.ceil(kept * self.codebook_size)

        def one(state: tuple[Array, Array], step: tuple[Array, Pass]) -> tuple[tuple[Array, Array], None]:
            (codes, masked), (i, now) = state, step
            logits = self(condition, codes, total)
            likeliest = jnp.argmax(logits, -1).astype(jnp.int32)

            def refine(_: Array) -> tuple[Array, Array]:
                uniform = uniform_noise(keys, i, logits.shape[1:])
                drawn, probability = draw(logits, amount, now.temperature, uniform)
                count = (now.masked * total.astype(jnp.float32)).astype(jnp.int32)
                last = (count == 0)[:, None, None]
                filled = jnp.where(masked, jnp.where(last & greedy, likeliest, drawn), codes)
                again = (least_certain(probability, valid, count) | (levels > 0)) & wanted
                return (
                    jnp.where(again & ~last, self.mask_code, filled),
                    jnp.where(last, masked, again),
                )

            def overwrite(_: Array) -> tuple[Array, Array]:
                return jnp.where(levels >= now.level, likeliest, codes), masked

            return jax.lax.cond(now.level == 0, refine, overwrite, i), None

        passes = schedule(steps, self.settings.levels, temperature)
        order = jnp.arange(len(passes.level))
        codes = jax.lax.scan(one, (start, wanted), (order, passes))[0][0]
        own = (jnp.arange(semantic.shape[1]) + known)[..., None]
        acoustic = jnp.take_along_axis(codes, own, 1)
        return jnp.concatenate([semantic[..., None].astype(jnp.int32), acoustic], -1)


def build(settings: Mapping[str, Any]) -> SoundStorm:
    """The network of settings as JSON has them."""
    conformer = ConformerSettings(**settings["conformer"])
    return SoundStorm(SoundStormSettings(**{**settings, "conformer": conformer}), rngs=weights.rngs())
