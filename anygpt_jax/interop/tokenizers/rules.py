"""How a tensor of ours is made of official ones.

A codec's layout is a dictionary from the dotted path of each of its variables to a `Rule`. A rule lists
alternatives, since checkpoints of the same network come with weight norm folded or not and under old and new names;
the first whose tensors are all there is taken. PyTorch's layouts become ours here and nowhere else: channels last,
kernels [k, in, out], matrices [in, out].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from flax import nnx

from anygpt_jax.modalities.codecs import weights


@dataclasses.dataclass(frozen=True)
class Alternative:
    """`make(*tensors)`, in the order of `names`, gives float32 in our layout."""

    names: tuple[str, ...]
    make: Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What one variable of ours is made of: `alternatives` in the order in which they are looked for."""

    alternatives: tuple[Alternative, ...]

    def choose(self, available: Mapping[str, object]) -> Alternative | None:
        """The first alternative whose tensors are all there."""
        return next((a for a in self.alternatives if all(n in available for n in a.names)), None)

    def then(self, change: Callable[[np.ndarray], np.ndarray]) -> Rule:
        """The same, with `change` applied to what is made."""
        return Rule(tuple(Alternative(a.names, lambda *t, a=a: change(a.make(*t))) for a in self.alternatives))

    def prefixed(self, *prefixes: str) -> Rule:
        """The same under each of several prefixes."""
        return Rule(
            tuple(
                Alternative(tuple(p + n for n in a.names), a.make) for p in prefixes for a in self.alternatives
            )
        )  # fmt: skip


Layout = dict[str, Rule]


def _identity(x: np.ndarray) -> np.ndarray:
    return x


def same(*names: str) -> Rule:
    """A tensor as it is, under the first of several names."""
    return Rule(tuple(Alternative((name,), _identity) for name in names))


def made(make: Callable[..., np.ndarray], *names: str) -> Rule:
    """A function of several tensors."""
    return Rule((Alternative(names, make),))


def stacked(rules: list[Rule]) -> Rule:
    """Rules with one and the same set of alternatives each → their results along a new first axis."""
    alternatives = []
    for choice in zip(*(rule.alternatives for rule in rules), strict=True):
        counts = [len(a.names) for a in choice]

        def make(*tensors: np.ndarray, choice=choice, counts=counts) -> np.ndarray:
            parts, at = [], 0
            for alternative, count in zip(choice, counts, strict=True):
                parts.append(alternative.make(*tensors[at : at + count]))
                at += count
            return np.stack(parts)

        alternatives.append(Alternative(tuple(n for a in choice for n in a.names), make))
    return Rule(tuple(alternatives))


def weight_norm(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    """w = g · v / ‖v‖ over all axes but the first (torch.nn.utils.weight_norm, dim 0)."""
    norm = np.sqrt(np.sum(np.square(v, dtype=np.float64), axis=tuple(range(1, v.ndim)), keepdims=True))
    return (g * (v / norm)).astype(np.float32)


def weight(prefix: str) -> Rule:
    """`prefix.weight`, or the product of its weight norm under the old and the new names."""
    return Rule(
        (
            Alternative((f"{prefix}.weight",), _identity),
            Alternative((f"{prefix}.weight_g", f"{prefix}.weight_v"), weight_norm),
            Alternative(
                (f"{prefix}.parametrizations.weight.original0", f"{prefix}.parametrizations.weight.original1"),
                weight_norm,
            ),
        )
    )


def conv1d(prefix: str) -> Rule:
    """[out, in/g, k] → [k, in/g, out]."""
    return weight(prefix).then(lambda w: w.transpose(2, 1, 0))


def conv1d_transposed(prefix: str, groups: int = 1) -> Rule:
    """[in, out/g, k] → [k, in/g, out]."""

    def change(w: np.ndarray) -> np.ndarray:
        inputs, outputs, k = w.shape
        return w.reshape(groups, inputs // groups, outputs, k).transpose(3, 1, 0, 2).reshape(k, inputs // groups, -1)

    return weight(prefix).then(change)


def conv2d(prefix: str) -> Rule:
    """[out, in, kh, kw] → [kh, kw, in, out]."""
    return weight(prefix).then(lambda w: w.transpose(2, 3, 1, 0))


def linear(prefix: str) -> Rule:
    """[out, in] → [in, out]; a 1 × 1 convolution that serves as a matrix too."""
    return weight(prefix).then(lambda w: w.reshape(w.shape[:2]).T)


def conv_layer(ours: str, theirs: str, bias: bool = True, kernel: Callable[[str], Rule] = conv1d) -> Layout:
    """The kernel and bias of one layer; `kernel` may be `linear`, `conv2d` … too."""
    layout = {f"{ours}.kernel": kernel(theirs)}
    return layout | {f"{ours}.bias": same(f"{theirs}.bias")} if bias else layout


def norm(ours: str, theirs: str) -> Layout:
    """Scale and bias of a LayerNorm or GroupNorm."""
    return {f"{ours}.scale": same(f"{theirs}.weight"), f"{ours}.bias": same(f"{theirs}.bias")}


def mirrored(module: nnx.Module, names: Callable[[str], tuple[str, ...]]) -> Layout:
    """The layout of a network of dense layers, 2-D convolutions, norms and embeddings.

    `names(path)`: the official names that the layer at one of our dotted paths may have. Variables that are in no
    layer, but of the module itself, are left out.
    """
    layout = {}
    for keys, variable in nnx.to_flat_state(nnx.state(module)):
        path, _, leaf = weights.dotted(keys).rpartition(".")
        if not path:
            continue
        rules = []
        for name in names(path):
            if leaf == "kernel":
                rules.append(conv2d(name) if len(variable.shape) == 4 else linear(name))
            else:
                rules.append(same(f"{name}.bias" if leaf == "bias" else f"{name}.weight"))
        layout[f"{path}.{leaf}"] = Rule(tuple(a for rule in rules for a in rule.alternatives))
    return layout
