"""Long short-term memory over rows of unequal length (Hochreiter and Schmidhuber 1997; PyTorch's gates and order)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

State = tuple[Float[Array, "B H"], Float[Array, "B H"]]  # (output, cell)


class Direction(nnx.Module):
    """One layer in one direction. The four gates along the last axis are input, forget, cell and output."""

    def __init__(self, inputs: int, width: int, *, rngs: nnx.Rngs):
        def uniform(*shape: int) -> Array:
            bound = 1 / math.sqrt(width)
            return jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)

        self.kernel = nnx.Param(uniform(inputs, 4 * width))
        self.recurrent = nnx.Param(uniform(width, 4 * width))
        self.bias = nnx.Param(uniform(4 * width))

    def zeros(self, like: Float[Array, "B T I"]) -> State:
        """The state before a row's first step, for the rows and in the dtype of `like`."""
        zeros = jnp.zeros_like(like, shape=(like.shape[0], self.recurrent.shape[0]))
        return zeros, zeros

    def __call__(
        self, x: Float[Array, "B T I"], valid: Bool[Array, "B T"], state: State, reverse: bool = False
    ) -> tuple[Float[Array, "B T H"], State]:
        """(outputs, the state after the last step). Where a step of a row is not valid, its state stays."""
        recurrent = self.recurrent[...]

        def step(state: State, inputs: tuple[Array, Array]) -> tuple[State, Array]:
            gates, valid = inputs
            h, c = state
            i, f, g, o = jnp.split(gates + h @ recurrent, 4, -1)
            new_c = nnx.sigmoid(f) * c + nnx.sigmoid(i) * jnp.tanh(g)
            new_h = nnx.sigmoid(o) * jnp.tanh(new_c)
            h, c = jnp.where(valid[:, None], new_h, h), jnp.where(valid[:, None], new_c, c)
            return (h, c), h

        # What does not depend on the step before is one product for all steps.
        gates = x @ self.kernel[...] + self.bias[...]
        state, outputs = jax.lax.scan(step, state, (gates.swapaxes(0, 1), valid.T), reverse=reverse)
        return outputs.swapaxes(0, 1), state


class Lstm(nnx.Module):
    """Layers of width `width`, and the input added to the output; audiocraft's `StreamableLSTM`.

    With `bidirectional`, each layer's output is the forward direction's beside the backward one's, both of width
    `width`, and the input is added to both (SpeechTokenizer's `SLSTM`).
    """

    def __init__(self, width: int, layers: int, *, bidirectional: bool = False, rngs: nnx.Rngs):
        inputs = [width] + [width * (1 + bidirectional)] * (layers - 1)
        self.forward = nnx.List([Direction(n, width, rngs=rngs) for n in inputs])
        self.backward = nnx.List([Direction(n, width, rngs=rngs) for n in inputs] if bidirectional else [])

    def __call__(self, x: Float[Array, "B T C"], lengths: Int[Array, " B"]) -> tuple[Array, Int[Array, " B"]]:
        """The backward direction starts at each row's own end."""
        valid = jnp.arange(x.shape[1]) < lengths[:, None]
        y = x
        for i, layer in enumerate(self.forward):
            outputs, _ = layer(y, valid, layer.zeros(y))
            if self.backward:
                backward, _ = self.backward[i](y, valid, self.backward[i].zeros(y), reverse=True)
                outputs = jnp.concatenate([outputs, backward], -1)
            y = outputs
        return y + (jnp.concatenate([x, x], -1) if self.backward else x), lengths

    def initial(self, batch: int) -> Float[Array, "layers 2 B C"]:
        """The states before the first step, of a network that is not bidirectional."""
        recurrent = self.forward[0].recurrent
        return jnp.zeros((len(self.forward), 2, batch, recurrent.shape[0]), recurrent.dtype)

    def window(
        self,
        x: Float[Array, "B T C"],
        states: Float[Array, "layers 2 B C"],
        start: Int[Array, ""],
        stop: int,
    ) -> tuple[Float[Array, "B T C"], Float[Array, "layers 2 B C"]]:
        """(outputs, the states before step `stop`), where `states` are those before step `start` ≤ stop.

        Outputs before `start` mean nothing. Not for a bidirectional network.
        """
        valid = jnp.broadcast_to(jnp.arange(x.shape[1]) >= start, x.shape[:2])
        y, found = x, []
        for layer, (h, c) in zip(self.forward, states, strict=True):
            head, state = layer(y[:, :stop], valid[:, :stop], (h, c))
            tail, _ = layer(y[:, stop:], valid[:, stop:], state)
            y = jnp.concatenate([head, tail], 1)
            found.append(jnp.stack(state))
        return y + x, jnp.stack(found)
