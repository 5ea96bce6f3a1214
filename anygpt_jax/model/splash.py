"""Splash attention: JAX's own Pallas kernel for TPUs, on the shapes and with the numbers of `packed_attention`.

The kernel never writes an [L, L] matrix, skips the blocks that the causal mask empties, and saves its output
under the name "attention", so that a remat policy can keep it instead of running the kernel again.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from anygpt_jax.errors import UserError
from anygpt_jax.model.sharding import spec

LANES = 128  # a block is a multiple of the vector unit's width
SAVED_AS = "attention"  # the output's name for remat policies
BLOCKS = (1024, 512, 256, 128)  # queries and keys at a time: the largest that divides the length


def block_of(length: int) -> int | None:
    """The block for this many positions; None if there is none."""
    return next((block for block in BLOCKS if length % block == 0), None)


def length_problems(length: int, shards: int) -> list[str]:
    """Why the kernel cannot take sequences of this many positions over so many devices of the context axis."""
    if length % shards == 0 and block_of(length // shards):
        return []
    return [
        f"Splash attention takes sequences of a multiple of {LANES} positions on each of {shards} devices, "
        f"not {length} in all; change train.seq_len or mesh.context."
    ]


def splash_attention(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L G K"],
    v: Float[Array, "B L G K"],
    segment_ids: Int[Array, "B L"],
    interpret: bool = False,
) -> Float[Array, "B L H K"]:
    """Causal attention within segments. L over the mesh's context axis must be a multiple of 128.

    Under a mesh every device runs the kernel on its rows, heads and queries; keys and values are gathered
    over the context axis. `interpret` runs the kernel's interpreter, on any device, for tests.
    """
    L, H, K = q.shape[1:]
    q = q * jnp.asarray(K**-0.5, q.dtype)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        out = _on_device(_kernel(H, L, 1, interpret), q, k, v, segment_ids, segment_ids)
        return out.transpose(0, 2, 1, 3)
    kernel = _kernel(H // mesh.shape["tensor"], L, mesh.shape["context"], interpret)
    queries, keys = spec(("batch", "heads", "length", None)), spec(("batch", "kv_heads", None, None))
    mapped = jax.shard_map(
        _on_device,
        in_specs=(
            kernel.manual_sharding_spec(NamedSharding(mesh, spec((None, "length")))),
            queries, keys, keys, spec(("batch", "length")), spec(("batch", None)),
        ),
        out_specs=queries,
        check_vma=False,
    )  # fmt: skip
    return mapped(kernel, q, k, v, segment_ids, segment_ids).transpose(0, 2, 1, 3)


def _kernel(heads: int, length: int, shards: int, interpret: bool) -> kernels.SplashAttentionKernel:
    """The causal kernel of one device's heads, for `length` queries in `shards` parts. All heads' masks are alike."""
    block = block_of(length // shards)
    if block is None or length % shards:
        raise UserError(length_problems(length, shards)[0])
    causal = masks.CausalMask((length, length), shard_count=shards)
    # One backward kernel for all three gradients computes the scores once, not twice.
    sizes = kernels.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )  # fmt: skip
    return kernels.make_splash_mha(
        masks.MultiHeadMask([causal] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=shards,
        residual_checkpoint_name=SAVED_AS,
        interpret=interpret,
    )


def _on_device(kernel: kernels.SplashAttentionKernel, q: Array, k: Array, v: Array, q_ids: Array, kv_ids: Array):
    """One device's queries [b, h, l, K] against its keys [b, g, L, K]."""
    return jax.vmap(kernel)(q, k, v, kernels.SegmentIds(q_ids, kv_ids))
