"""A decoder's weights as they are read fastest when it writes token by token: float, or 8 bits.

Two things cost as much as the products themselves. A scan over stacked layers copies matrices out of the stack at
every token, on CPUs all of them, so here each layer has its own arrays. And the CPU's kernels for few rows want a
matrix by outputs, [out, in], each output's weights in one piece: so a product with one row runs on all cores, too.

With 8 bits an output channel has one scale, by its largest weight, and so has every row of activations when it comes;
products are added up in 32 bits. A matrix is then a quarter of the bytes, which is what a token takes its time for.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.model import lora
from anygpt_jax.model.config import LORA_TARGETS
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.transposed import Transposed

FORMATS = ("float", "int8")

# Of TPUs' VMEM what one operation may take for itself. Twice the usual lets the scores of attention stay there: of the
# 7B's estimated step at batch 64 2 % on v5p, with an 8-bit cache on v5e.
_TPU = {"xla_tpu_scoped_vmem_limit_kib": "32768"}


def for_decoding(decoder: Decoder, weights: str = "float") -> Decoder:
    """The same model with a layer's matrices as `Transposed`, in the compute dtype or in 8 bits; made once.

    The embedding stays as it is where tokens are looked up; with 8 bits a copy of it is a tied head. Norms and adapters
    stay float. The first one may be dropped: nothing but the embedding is shared. UserError if the format is unknown.
    """
    if weights not in FORMATS:
        raise UserError(f"Weights for decoding are {' or '.join(FORMATS)}, not '{weights}'.")
    config, int8 = decoder.config, weights == "int8"
    new: Any = nnx.merge(*nnx.split(decoder))
    graph, stacked = nnx.split(decoder.blocks)
    blocks = []
    for i in range(config.n_layers):
        block = nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], stacked))
        for name in LORA_TARGETS:
            w = getattr(block, name)
            delattr(block, name)
            setattr(
                block,
                name,
                Transposed(w[...].astype(config.dtype), w.get_metadata("axes"), lora.contracted(name), int8),
            )
        blocks.append(block)
    new.blocks = nnx.List(blocks)
    if int8 or not config.tied_embeddings:
        matrix: Any = decoder.head_matrix()
        if not config.tied_embeddings:
            del new.head
        new.head = Transposed(matrix, ("embed", "vocab"), 1, int8)
    return new


def compiler_options(platform: str) -> dict[str, Any]:
    """What the compiler is told of programs that write tokens."""
    return _TPU if platform == "tpu" else {}
