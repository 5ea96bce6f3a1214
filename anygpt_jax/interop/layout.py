"""Where each parameter of the decoder lies in a Hugging Face LLaMA, and how the two layouts turn into another.

Hugging Face keeps a linear layer as [out, in] and multiplies x · Wᵀ; ours is [in, out] with heads as an axis of
their own and all layers stacked. Rows of theirs are therefore a slice of ours along the first `out` axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.interop.source import Source
from anygpt_jax.model.config import ModelConfig

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter. `shape` is ours without the layers; `axis` is where the rows of theirs begin in it."""

    path: tuple[str, ...]  # in the decoder's state
    name: str  # theirs; {layer} stands for the number of a stacked one
    shape: tuple[int, ...]
    axis: int
    layers: int  # 0: not stacked

    @property
    def unit(self) -> int:
        """Rows of theirs in one step of ours along `axis`: those of a head, or one."""
        return int(np.prod(self.shape[self.axis + 1 :])) if self.axis else 1

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Of one tensor of theirs: [out, in], where out are the axes of `shape` from `axis` on, and in those before.

        With `axis` 0 (norms and the embedding) it is `shape` itself.
        """
        if self.axis == 0:
            return self.shape
        return int(np.prod(self.shape[self.axis :])), int(np.prod(self.shape[: self.axis]))

    @property
    def full_shape(self) -> tuple[int, ...]:
        """Ours, with the axis of the layers in front where they are stacked."""
        return (self.layers, *self.shape) if self.layers else self.shape

    def names(self) -> list[str]:
        """Of all tensors of theirs that make this parameter, in the order of the layers."""
        return [self.name.format(layer=i) for i in range(self.layers)] if self.layers else [self.name]

    def to_ours(self, rows: np.ndarray) -> np.ndarray:
        """Rows of theirs [n · unit, in] as our slice of n steps along `axis`; a view."""
        if self.axis == 0:
            return rows
        return rows.T.reshape(*self.shape[: self.axis], -1, *self.shape[self.axis + 1 :])

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`, contiguous."""
        if self.axis == 0:
            return ours
        return np.ascontiguousarray(ours.reshape(int(np.prod(self.shape[: self.axis])), -1).T)


def leaves(model: ModelConfig) -> list[Leaf]:
    """Every parameter of the decoder, in the order of Hugging Face's files."""
    V, D, F = model.vocab_size, model.d_model, model.d_ff
    H, G, K = model.n_heads, model.n_kv_heads, model.head_dim

    def block(name: str, theirs: str, shape: tuple[int, ...], axis: int) -> Leaf:
        return Leaf(("blocks", name), f"model.layers.{{layer}}.{theirs}.weight", shape, axis, model.n_layers)

    norms = [block("q_norm", "self_attn.q_norm", (K,), 0), block("k_norm", "self_attn.k_norm", (K,), 0)]
    return [
        Leaf(("embedding",), EMBEDDING, (V, D), 0, 0),
        block("attention_norm", "input_layernorm", (D,), 0),
        block("q", "self_attn.q_proj", (D, H, K), 1),
        block("k", "self_attn.k_proj", (D, G, K), 1),
        block("v", "self_attn.v_proj", (D, G, K), 1),
        block("o", "self_attn.o_proj", (H, K, D), 2),
        *(norms if model.qk_norm else []),
        block("mlp_norm", "post_attention_layernorm", (D,), 0),
        block("gate", "mlp.gate_proj", (D, F), 1),
        block("up", "mlp.up_proj", (D, F), 1),
        block("down", "mlp.down_proj", (F, D), 1),
        Leaf(("norm",), "model.norm.weight", (D,), 0, 0),
        *([] if model.tied_embeddings else [Leaf(("head",), HEAD, (D, V), 1, 0)]),
    ]


def their_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors a Hugging Face folder of this model holds."""
    return {name: leaf.their_shape for leaf in leaves(model) for name in leaf.names()}


def _superfluous(name: str, tied: bool) -> bool:
    """Buffers that old files keep, and the second copy of a tied head."""
    return name.endswith("rotary_emb.inv_freq") or (tied and name == HEAD)


def check(source: Source) -> Source:
    """The source without superfluous tensors; UserError if a tensor is missing, unknown or of another shape."""
    wanted = their_shapes(source.model)
    found = {n: t for n, t in source.tensors.items() if not _superfluous(n, source.model.tied_embeddings)}
    problems = list(_problems(wanted, {name: tensor.shape for name, tensor in found.items()}))
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(
            f"The weights in {source.path} do not fit its config: {'; '.join(problems[:3])}{more}; "
            "take both from the same model."
        )
    return dataclasses.replace(source, tensors={name: found[name] for name in wanted})


def _problems(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    yield from (f"{name} is missing" for name in wanted if name not in found)
    yield from (f"{name} is no parameter of a LLaMA" for name in found if name not in wanted)
    for name, shape in wanted.items():
        if name in found and found[name] != shape:
            yield f"{name} is {list(found[name])} and should be {list(shape)}"
