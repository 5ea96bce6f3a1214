"""Compiles decoding for TPUs that are not there, and says how far from the memory's limit it would run.

What the estimate leaves out: sampling (the largest logit is taken), the host between programs, and latencies of a
loop's small operations. What is bound by HBM is taken at `timeline.HBM_EFFICIENCY` of the bandwidth and the attention's
sums are taken to be so: the compiler's own cycles for them are several times as many, and the truth lies between.
"""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int32

from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decode_weights import compiler_options, for_decoding
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.kv_cache import KVCache, cache_specs, init_cache
from anygpt_jax.model.sharding import make_mesh, param_shardings
from anygpt_jax.planning.chips import Topology
from anygpt_jax.planning.compile import bytes_on_device, topology_devices
from anygpt_jax.planning.hlo import parse
from anygpt_jax.planning.timeline import Breakdown, Timeline

STEPS = 16  # tokens a program: the engine's default stride


@dataclasses.dataclass(frozen=True)
class DecodePlan:
    """One token for every row, on one device of a tensor-parallel slice. Bytes are a device's."""

    text: str  # the optimized program
    weights: int  # that a step reads
    cache: int
    temporaries: int
    arguments: int  # weights and cache as they lie in memory, padded to the chip's tiles
    step: Breakdown  # of one token a row
    limit: float  # seconds to read the weights and the cache once at the chip's bandwidth
    compile_seconds: float

    @property
    def of_limit(self) -> float:
        """The share of the estimated step that reading alone would take: 1 is the memory's limit."""
        return self.limit / self.step.seconds


def plan_decode(
    model: ModelConfig, topology: Topology, batch: int, length: int, cache_dtype: str | None = None
) -> DecodePlan:
    """`STEPS` greedy tokens a row with a cache of `length` slots, all attended, over all devices of the topology.

    Weights (`for_decoding`) and heads are cut over the tensor axis.
    """
    mesh = make_mesh({"tensor": topology.devices}, topology_devices(topology))
    graph, abstract = nnx.split(nnx.eval_shape(lambda: for_decoding(Decoder(model, rngs=nnx.Rngs(0)))), nnx.Param)
    params = jax.tree.map(
        lambda x, on: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on),
        nnx.to_pure_dict(abstract),
        param_shardings(abstract, mesh),
    )
    cache = jax.eval_shape(lambda: init_cache(model, batch, length, cache_dtype))
    cache = jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)),
        cache,
        cache_specs(cache),
    )
    ids = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=NamedSharding(mesh, P()))

    def write(
        params: dict, tokens: Int32[Array, " B"], positions: Int32[Array, " B"], cache: KVCache
    ) -> tuple[Int32[Array, " B"], KVCache]:
        decoder: Decoder = nnx.merge(graph, params)

        def step(i: Array, carry: tuple[Array, KVCache]) -> tuple[Array, KVCache]:
            tokens, cache = carry
            logits, cache = decoder.decode(tokens[:, None], positions[:, None] + i, cache)
            return jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, STEPS, step, (tokens, cache))

    on = jax.tree.map(lambda x: x.sharding, cache)
    with jax.set_mesh(mesh):
        lowered = jax.jit(write, donate_argnums=3, out_shardings=(ids.sharding, on)).lower(params, ids, ids, cache)
        began = time.perf_counter()
        compiled = lowered.compile(compiler_options=compiler_options("tpu"))
    compile_seconds = time.perf_counter() - began
    stats, text = compiled.memory_analysis(), compiled.as_text()
    assert stats is not None and text is not None
    step = Breakdown()
    step.add(Timeline(parse(text), topology, queued_memory=True).step(), 1 / STEPS)
    # Of the embedding a step reads a row a token, unless it is the head as well.
    read = dict(params) if model.tied_embeddings else {k: v for k, v in params.items() if k != "embedding"}
    weights, cached = bytes_on_device(read), bytes_on_device(cache)
    return DecodePlan(
        text=text,
        weights=weights,
        cache=cached,
        temporaries=stats.temp_size_in_bytes,
        arguments=stats.argument_size_in_bytes,
        step=step,
        limit=(weights + cached) / topology.chip.hbm_bandwidth,
        compile_seconds=compile_seconds,
    )
