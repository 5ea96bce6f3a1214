"""Mimi's transformer (Défossez et al. 2024, "Moshi", section 3.3.1): causal, each step sees a window of past steps.

Pre-norm, rotary positions, GELU, LayerScale. As it is causal, what lies beyond a row's end changes nothing before it,
and rows of unequal length need no mask.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from anygpt_jax.model.attention import Rotation, attention, rotate, rotation


@dataclasses.dataclass(frozen=True)
class TransformerSettings:
    """`window`: steps that a step sees, itself among them."""

    layers: int
    heads: int
    mlp: int
    window: int
    theta: float = 10_000.0
    epsilon: float = 1e-5


def windowed_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    window: int,
    first: int | Int[Array, ""] = 0,
) -> Float[Array, "B T H K"]:
    """Step t attends to steps max(first, t - window + 1) … t; steps before `first` get what means nothing.

    In blocks of one window, each of which needs the keys of its own and of the previous block: time and memory grow
    with T, not with its square.
    """
    batch, steps = q.shape[:2]
    size = min(window, steps)
    blocks = -(-steps // size)

    def blocked(x: Array) -> Float[Array, "B N W H K"]:
        x = jnp.pad(x, ((0, 0), (0, blocks * size - steps), (0, 0), (0, 0)))
        return x.reshape(batch, blocks, size, *x.shape[2:])

    def with_previous(x: Array) -> Float[Array, "B*N 2*W H K"]:
        x = blocked(x)
        previous = jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
        return jnp.concatenate([previous, x], 2).reshape(batch * blocks, 2 * size, *x.shape[3:])

    if blocks == 1:
        queries, keys = jnp.arange(steps)[None, :, None], jnp.arange(steps)[None, None]
    else:
        starts = jnp.arange(blocks)[:, None, None] * size
        queries = starts + jnp.arange(size)[:, None]
        keys = starts + jnp.arange(-size, size)
        q, k, v = blocked(q).reshape(batch * blocks, size, *q.shape[2:]), with_previous(k), with_previous(v)
    seen = (keys >= first) & (keys <= queries) & (keys > queries - window)
    mask = jnp.broadcast_to(seen, (batch, *seen.shape)).reshape(batch * blocks, *seen.shape[1:])
    return attention(q, k, v, mask).reshape(batch, blocks * size, *q.shape[2:])[:, :steps]


class Past(NamedTuple):
    """What one window of steps hands to the next: keys and values, before rotation, of the steps before `start` of the
    next window, of which the last `seen` are there."""

    states: Float[Array, "layers 2 B W-1 H K"]
    seen: Int[Array, ""]
    start: Int[Array, ""]


class Layer(nnx.Module):
    """x + scale · attention(norm(x)), then the same with two linear layers; the scales are LayerScale's."""

    def __init__(self, width: int, s: TransformerSettings, *, rngs: nnx.Rngs):
        self.heads, self.window = s.heads, s.window
        self.norm1 = nnx.LayerNorm(width, epsilon=s.epsilon, use_fast_variance=False, rngs=rngs)
        self.query, self.key, self.value, self.out = (
            nnx.Linear(width, width, use_bias=False, rngs=rngs) for _ in range(4)
        )
        self.scale1 = nnx.Param(jnp.full(width, 0.01))
        self.norm2 = nnx.LayerNorm(width, epsilon=s.epsilon, use_fast_variance=False, rngs=rngs)
        self.inner = nnx.Linear(width, s.mlp, use_bias=False, rngs=rngs)
        self.outer = nnx.Linear(s.mlp, width, use_bias=False, rngs=rngs)
        self.scale2 = nnx.Param(jnp.full(width, 0.01))

    def __call__(self, x: Float[Array, "B T D"], by: Rotation) -> Float[Array, "B T D"]:
        """Whole rows; `by` is the rotation for the positions of all T steps."""
        q, k, v = self._attended(x)
        return self._added(x, windowed_attention(rotate(q, by), rotate(k, by), v, self.window))

    def continued(
        self, x: Float[Array, "B T D"], states: Float[Array, "2 B W-1 H K"], past: Past, stop: int, by: Rotation
    ) -> tuple[Float[Array, "B T D"], Float[Array, "2 B W-1 H K"]]:
        """(outputs, the states before step `stop`); `by` is for the steps of the past and then those of x."""
        held = states.shape[2]
        q, *fresh = self._attended(x)
        # The past ends where `start` is; what x has before that means nothing.
        k, v = (
            jax.lax.dynamic_update_slice(jnp.pad(new, ((0, 0), (held, 0), (0, 0), (0, 0))), old, (0, past.start, 0, 0))
            for new, old in zip(fresh, states, strict=True)
        )
        q = jnp.pad(q, ((0, 0), (held, 0), (0, 0), (0, 0)))
        first = held + past.start - past.seen
        heard = windowed_attention(rotate(q, by), rotate(k, by), v, self.window, first)[:, held:]
        return self._added(x, heard), jnp.stack([k[:, stop : stop + held], v[:, stop : stop + held]])

    def _attended(self, x: Float[Array, "B T D"]) -> list[Float[Array, "B T H K"]]:
        """Queries, keys and values."""
        h = self.norm1(x)
        return [f(h).reshape(*h.shape[:2], self.heads, -1) for f in (self.query, self.key, self.value)]

    def _added(self, x: Float[Array, "B T D"], heard: Float[Array, "B T H K"]) -> Float[Array, "B T D"]:
        x = x + self.scale1[...] * self.out(heard.reshape(x.shape))
        return x + self.scale2[...] * self.outer(nnx.gelu(self.inner(self.norm2(x)), approximate=False))


class Transformer(nnx.Module):
    """There is no norm after the last layer."""

    def __init__(self, width: int, settings: TransformerSettings, *, rngs: nnx.Rngs):
        self.settings, self.width = settings, width
        self.layers = nnx.List([Layer(width, settings, rngs=rngs) for _ in range(settings.layers)])

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Whole rows, whose positions count from 0. Step t depends on steps up to t alone."""
        by = self._rotation(x.shape[1])
        for layer in self.layers:
            x = layer(x, by)
        return x

    def initial(self, batch: int) -> Past:
        """Before the first window."""
        s = self.settings
        shape = (s.layers, 2, batch, s.window - 1, s.heads, self.width // s.heads)
        nothing = jnp.zeros((), jnp.int32)
        return Past(jnp.zeros(shape, self.layers[0].scale1.dtype), nothing, nothing)

    def continued(
        self, x: Float[Array, "B T D"], past: Past, start: int, stop: int
    ) -> tuple[Float[Array, "B T D"], Past]:
        """A window of a longer row: its outputs, which before step `past.start` mean nothing, and what the next window
        needs, in which step `stop` of this one is step `start`."""
        held = self.settings.window - 1
        # Attention knows the distances of steps only, so the positions of every window may begin anew.
        by, found = self._rotation(held + x.shape[1]), []
        for layer, states in zip(self.layers, past.states, strict=True):
            x, states = layer.continued(x, states, past, stop, by)
            found.append(states)
        seen = jnp.minimum(past.seen + stop - past.start, held)
        return x, Past(jnp.stack(found), seen, jnp.full_like(past.start, start))

    def _rotation(self, steps: int) -> Rotation:
        return rotation(jnp.arange(steps)[None], self.width // self.settings.heads, self.settings.theta)
