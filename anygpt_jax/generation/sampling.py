"""Drawing the next token: greedy, temperature, top-k, top-p, min-p, repetition penalty; a modality its own settings.

Top-k and top-p need no sort: the threshold is found by bisection over the bits of a float, which order as
integers do. That is exact, and on a CPU an order of magnitude faster than sorting the vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from anygpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy; top_p 1, top_k 0 and min_p 0 cut nothing; penalty and guidance 1 change nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0  # of the likeliest token's probability; arXiv 2407.01082
    repetition_penalty: float = 1.0  # of ids that are in the prompt or written already; arXiv 1909.05858
    guidance: float = 1.0  # classifier-free: away from what is likely without the request; arXiv 2306.17806

    def __post_init__(self):
        if not self.temperature >= 0:
            raise UserError(f"The temperature must be 0 (greedy) or more, not {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be more than 0 and at most 1, not {self.top_p}.")
        if self.top_k < 0:
            raise UserError(f"top_k must be 0 (no limit) or more, not {self.top_k}.")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p must lie from 0 to 1, not be {self.min_p}.")
        for name in ("repetition_penalty", "guidance"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} must be more than 0 (1 changes nothing), not {getattr(self, name)}.")

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> Sampling:
        """A modality's section of `config.generate`, whose other names are not ours."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in section.items() if name in names})


class SamplingTable(NamedTuple):
    """The settings on the device: of every modality (index 0 text, 1 + i the i-th block), or one entry a sequence."""

    temperature: Float[Array, "*n"]
    top_p: Float[Array, "*n"]
    top_k: Int32[Array, "*n"]
    min_p: Float[Array, "*n"]
    repetition_penalty: Float[Array, "*n"]
    guidance: Float[Array, "*n"]

    @classmethod
    def build(cls, rows: Sequence[Sampling]) -> SamplingTable:
        """One entry a setting, in order, as NumPy arrays [n]."""
        kinds = {name: np.int32 if name == "top_k" else np.float32 for name in cls._fields}
        columns = (np.asarray([getattr(row, name) for row in rows], kind) for name, kind in kinds.items())
        return cls(*columns)  # type: ignore[arg-type]

    def at(self, modality: Int32[Array, " B"]) -> SamplingTable:
        """What holds for each sequence [B], of tables [B, M], while it writes this modality."""
        return SamplingTable(*(jnp.take_along_axis(column, modality[:, None], 1)[:, 0] for column in self))


def _largest(good: Callable[[Array], Array], rows: int, bits: int) -> Int32[Array, " B"]:
    """The largest int32 of so many bits for which a monotone (true, then false) condition holds; 0 must be good."""

    def set_bit(i: Array, found: Array) -> Array:
        candidate = found | (jnp.int32(1) << (bits - 1 - i))
        return jnp.where(good(candidate), candidate, found)

    return jax.lax.fori_loop(0, bits, set_bit, jnp.zeros(rows, jnp.int32))


def keep_top_k(logits: Float[Array, "B V"], top_k: Int32[Array, " B"]) -> Bool[Array, "B V"]:
    """True for the k largest logits of a row, and for all that tie with the k-th. 0 keeps all."""
    # Logits relative to the row's largest are <= 0; negated they are non-negative, and then order as ints.
    below = jnp.max(logits, axis=1, keepdims=True) - logits
    rank = jnp.int32(0x7F800000) - jax.lax.bitcast_convert_type(below.astype(jnp.float32), jnp.int32)
    threshold = _largest(lambda t: jnp.sum(rank >= t[:, None], axis=1) >= top_k, len(top_k), 31)
    return (rank >= threshold[:, None]) | (top_k == 0)[:, None]


def keep_top_p(probs: Float[Array, "B V"], top_p: Float[Array, " B"]) -> Bool[Array, "B V"]:
    """True for the smallest set of likeliest tokens whose probability reaches top_p, ties included."""
    bits = jax.lax.bitcast_convert_type(probs.astype(jnp.float32), jnp.int32)

    def reaches(t: Array) -> Array:
        return jnp.sum(jnp.where(bits >= t[:, None], probs, 0), axis=1) >= top_p

    threshold = _largest(reaches, len(top_p), 30)  # 1.0 is 0x3F800000: 30 bits
    return (bits >= threshold[:, None]) | (top_p >= 1)[:, None] | (probs == jnp.max(probs, axis=1, keepdims=True))


def restrict(logits: Float[Array, "B V"], settings: SamplingTable) -> Float[Array, "B V"]:
    """Logits over the temperature, with -inf outside top-k, then top-p, then min-p. Temperature 0 divides by 1."""
    scaled = logits / jnp.where(settings.temperature > 0, settings.temperature, 1)[:, None]
    scaled = jax.lax.cond(
        jnp.any(settings.top_k > 0),
        lambda x: jnp.where(keep_top_k(x, settings.top_k), x, -jnp.inf),
        lambda x: x,
        scaled,
    )
    scaled = jax.lax.cond(
        jnp.any(settings.top_p < 1),
        lambda x: jnp.where(keep_top_p(jax.nn.softmax(x, axis=1), settings.top_p), x, -jnp.inf),
        lambda x: x,
        scaled,
    )
    lowest = jnp.max(scaled, axis=1) + jnp.log(settings.min_p)
    return jnp.where(scaled >= lowest[:, None], scaled, -jnp.inf)


def penalize(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float[Array, " B"]) -> Float[Array, "B V"]:
    """Positive logits of seen ids divided by the penalty, negative ones multiplied by it (arXiv 1909.05858)."""
    less = jnp.where(logits > 0, logits / penalty[:, None], logits * penalty[:, None])
    return jnp.where(seen, less, logits)


def guide(
    logits: Float[Array, "B V"], without: Int32[Array, " B"], guidance: Float[Array, " B"]
) -> Float[Array, "B V"]:
    """Classifier-free guidance: l' + g (l - l'), where l' are the logits of row `without[b]`, which lacks the request.

    A row that is its own `without` stays as it is.
    """
    base = logits[without]
    return jnp.where((guidance == 1)[:, None], logits, base + guidance[:, None] * (logits - base))


def draw(probs: Float[Array, "B V"], uniform: Float[Array, " B"]) -> Int32[Array, " B"]:
    """The inverse of the cumulative distribution at `uniform` in [0, 1). `probs` need not sum to 1.

    One random number a row where Gumbel noise takes V. A masked sum adds in one fixed order, and rounding
    is monotone; so the bisection is sound and a token of probability 0 is never drawn.
    """
    vocab_size = probs.shape[1]
    index = jnp.arange(vocab_size, dtype=jnp.int32)

    def mass_before(t: Array) -> Array:
        return jnp.sum(jnp.where(index < t[:, None], probs, 0), axis=1)

    point = uniform * mass_before(jnp.full(len(probs), vocab_size, jnp.int32))
    return _largest(lambda t: mass_before(t) <= point, len(probs), (vocab_size - 1).bit_length())


def sample(
    logits: Float[Array, "B V"],
    mask: Bool[Array, "B V"],
    settings: SamplingTable,
    keys: PRNGKeyArray,
) -> Int32[Array, " B"]:
    """One token a row among those the mask allows. Row b sees keys[b] only, never its batch-mates."""
    logits = jnp.where(mask, logits.astype(jnp.float32), -jnp.inf)
    greedy = jnp.argmax(logits, axis=1).astype(jnp.int32)

    def drawn(greedy: Array) -> Array:
        uniform = jax.vmap(jax.random.uniform)(keys)
        token = draw(jax.nn.softmax(restrict(logits, settings), axis=1), uniform)
        return jnp.where(settings.temperature > 0, token, greedy)

    return jax.lax.cond(jnp.any(settings.temperature > 0), drawn, lambda g: g, greedy)
