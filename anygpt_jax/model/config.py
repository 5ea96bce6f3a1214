"""The decoder's shape, and the checks that refuse an impossible one before anything is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from anygpt_jax.errors import UserError
from anygpt_jax.model.quantized import QUANTIZATIONS
from anygpt_jax.model.remat import POLICIES
from anygpt_jax.vocabulary import Vocabulary

ATTENTIONS = ("xla", "splash")
# Between matrix products and what reads them, everywhere, or but for the gate's and up's in the forward pass.
BARRIERS = ("none", "all", "all_but_gates")
LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")  # a layer's matrices


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's change of RoPE's frequencies for a context longer than the original; see `attention.py`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int  # positions


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A LLaMA-shaped decoder. Parameters are kept in `param_dtype`, matrices multiply in `compute_dtype`."""

    vocab_size: int  # rows of the embedding: the vocabulary's size, padded so that it divides the mesh
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    ids: int | None = None  # of the vocabulary: rows from there on are padding, and are never predicted
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tied_embeddings: bool = False
    qk_norm: bool = False
    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    attention: str = "xla"  # or splash, the TPU's kernel: the same numbers
    quantization: str = "none"  # of the layers' matrix products: a name in `quantized.QUANTIZATIONS`
    remat: str = "none"  # a name in `remat.POLICIES`
    matmul_barriers: str = "none"  # what keeps XLA from fusing into matrix products on TPUs: one of BARRIERS
    unroll: int = 1  # layers a step of the scan: all of them is faster on a CPU, one compiles fastest
    lora_rank: int = 0  # of the adapters beside the layers' matrices (`lora.py`); 0: there are none
    lora_alpha: float = 16.0  # adapters are scaled by alpha / rank
    lora_targets: str = ",".join(LORA_TARGETS)  # the matrices that have one, by LORA_TARGETS, separated by commas

    def __post_init__(self):
        problems = self.problems()
        if problems:
            raise UserError("The model's config is impossible: " + "; ".join(problems) + ".")

    def problems(self) -> list[str]:
        """Everything that is wrong with the shape, each in a few words."""
        found = []
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "unroll"):
            if getattr(self, name) < 1:
                found.append(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.n_kv_heads > 0 and self.n_heads % self.n_kv_heads:
            found.append(f"n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 2:
            found.append(f"head_dim {self.head_dim} must be even, RoPE rotates pairs")
        if self.rope_scaling is not None:
            found.extend(_scaling_problems(self.rope_scaling))
        if self.remat not in POLICIES:
            found.append(f"remat '{self.remat}' must be one of {', '.join(POLICIES)}")
        if self.quantization not in QUANTIZATIONS:
            found.append(f"quantization '{self.quantization}' must be one of {', '.join(QUANTIZATIONS)}")
        if self.attention not in ATTENTIONS:
            found.append(f"attention '{self.attention}' must be one of {', '.join(ATTENTIONS)}")
        if self.matmul_barriers not in BARRIERS:
            found.append(f"matmul_barriers '{self.matmul_barriers}' must be one of {', '.join(BARRIERS)}")
        found.extend(self._lora_problems())
        for name in ("param_dtype", "compute_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                found.append(f"{name} '{getattr(self, name)}' must be float32 or bfloat16")
        return found

    def _lora_problems(self) -> list[str]:
        if self.lora_rank < 0:
            return [f"lora_rank must not be negative, as {self.lora_rank} is"]
        unknown = [name for name in self.adapted if name not in LORA_TARGETS]
        if unknown:
            return [f"lora_targets has '{unknown[0]}'; a layer's matrices are {', '.join(LORA_TARGETS)}"]
        return []

    @property
    def adapted(self) -> tuple[str, ...]:
        """The layers' matrices with an adapter."""
        return tuple(name.strip() for name in self.lora_targets.split(",")) if self.lora_rank > 0 else ()

    @classmethod
    def from_config(cls, model: Mapping, vocabulary: Vocabulary) -> ModelConfig:
        """`config.model` (its `vocab_multiple` decides the padding) for one vocabulary."""
        fields = dict(model)
        multiple = fields.pop("vocab_multiple", 1)
        known = {f.name for f in dataclasses.fields(cls)} - {"vocab_size", "ids"}
        if set(fields) - known:
            raise UserError(
                f"Unknown model setting '{min(set(fields) - known)}'; known ones: {', '.join(sorted(known))}."
            )
        if fields.get("rope_scaling") is not None:
            fields["rope_scaling"] = _rope_scaling(fields["rope_scaling"])
        return cls(vocab_size=vocabulary.padded_size(multiple), ids=vocabulary.size, **fields)

    @property
    def dtype(self) -> jnp.dtype:
        """`compute_dtype` as a dtype: that of activations, and of matrices when they multiply."""
        return jnp.dtype(self.compute_dtype)


def _rope_scaling(fields: Mapping) -> RopeScaling:
    names = {f.name for f in dataclasses.fields(RopeScaling)}
    if set(fields) != names:
        raise UserError(f"model.rope_scaling has {sorted(fields)}; it needs exactly {', '.join(sorted(names))}.")
    return RopeScaling(**fields)


def _scaling_problems(scaling: RopeScaling) -> list[str]:
    found = []
    if scaling.factor < 1 or scaling.original_context < 1:
        found.append(f"rope_scaling's factor {scaling.factor} and original_context must be at least 1")
    if not 0 < scaling.low_freq_factor < scaling.high_freq_factor:
        found.append("rope_scaling needs 0 < low_freq_factor < high_freq_factor")
    return found
