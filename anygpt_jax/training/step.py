"""The compiled train step: one program over the whole mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from anygpt_jax.data.loader import Batch, pack_row
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.sharding import (
    batch_sharding,
    between_steps,
    by_replica,
    like_params,
    param_shardings,
    rows_by_replica,
    sum_within_slices,
)
from anygpt_jax.training.checks import layout_problems, refuse
from anygpt_jax.training.compiler import compiler_options
from anygpt_jax.training.loss import LossSums, losses
from anygpt_jax.training.optimizer import make_optimizer

State = dict[str, Any]  # {"params": nested dict of arrays, "optimizer": optax state}


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What a step tells; on the device until it is read."""

    sums: LossSums
    loss: jax.Array
    grad_norm: jax.Array  # before clipping


jax.tree_util.register_dataclass(Metrics)


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions of a run and the layout of what they take.

    `init(seed)` → state; `step(state, batch)` → (state, Metrics), the given state is consumed;
    `evaluate(params, batch)` → LossSums; `gradients(params, batch)` → (loss, LossSums, gradients). Batches are global arrays, see `place`.
    """

    mesh: Mesh
    abstract_state: State  # ShapeDtypeStructs with shardings: what a checkpoint is restored to
    init: Callable[[int], State]
    step: Callable[[State, Any], tuple[State, Metrics]]
    evaluate: Callable[[Any, Any], LossSums]
    gradients: Callable[[Any, Any], tuple[jax.Array, LossSums, Any]]  # before clipping; what a step begins with
    lower_step: Callable[[int, int], jax.stages.Lowered]  # (batch_size, seq_len); on devices that need not exist
    parameters: int
    compiler_options: dict[str, Any]  # that the step is compiled with

    def place(self, batch: Batch, rows: range, batch_size: int) -> dict[str, jax.Array]:
        """This process's rows of a global batch [batch_size, L] onto its devices."""
        sharding = batch_sharding(self.mesh)

        def one(local: np.ndarray) -> jax.Array:
            def piece(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None
                start, stop, _ = index[0].indices(batch_size)
                return local[start - rows.start : stop - rows.start, index[1]]

            return jax.make_array_from_callback((batch_size, local.shape[1]), sharding, piece)

        return {name: one(array) for name, array in batch.items()}

    def process_rows(self, batch_size: int) -> range:
        """The rows of a global batch that this process's devices hold."""
        held = (
            batch_sharding(self.mesh).addressable_devices_indices_map((batch_size, self.mesh.shape["context"])).values()
        )
        bounds = [index[0].indices(batch_size)[:2] for index in held if index]
        return range(min(start for start, _ in bounds), max(stop for _, stop in bounds))


def abstract_batch(batch_size: int, seq_len: int, sharding: NamedSharding) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of a packed batch (`data.loader.pack_row`)."""
    row = pack_row([], seq_len, 0, np.zeros(0, np.int32))
    return {
        name: jax.ShapeDtypeStruct((batch_size, seq_len), array.dtype, sharding=sharding) for name, array in row.items()
    }


def accumulated(function: Callable, parts: Any) -> Any:
    """The sum of `function(part)` over the leading axis of `parts`, one after the other, added up in float32."""
    first = jax.tree.map(lambda x: x[0], parts)
    if jax.tree.leaves(parts)[0].shape[0] == 1:
        return function(first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), jax.eval_shape(function, first))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    return jax.lax.scan(add, zeros, parts)[0]


def build(model: ModelConfig, train: ml_collections.ConfigDict, mesh: Mesh, modalities: int) -> Program:
    """`modalities` counts text and the vocabulary's blocks. UserError if the shapes do not divide the mesh."""
    refuse(layout_problems(vars(model), model.attention, train, mesh.shape))
    optimizer = make_optimizer(train)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0))), nnx.Param)
    shapes = nnx.to_pure_dict(abstract)
    weights_on = param_shardings(abstract, mesh)
    params_on = between_steps(shapes, weights_on)
    replicated = NamedSharding(mesh, PartitionSpec())
    optimizer_on = like_params(jax.eval_shape(optimizer.init, shapes), params_on, mesh)
    state_on = {"params": params_on, "optimizer": optimizer_on}
    batch_on = batch_sharding(mesh)

    def in_compute_dtype(params: Any) -> Any:
        """Matrices in the dtype they multiply in, so that what is gathered is no larger; scales as they are."""
        return jax.tree_util.tree_map_with_path(
            lambda path, p: p if path[-1].key.endswith("norm") else p.astype(model.dtype), params
        )

    def new_state(key: jax.Array) -> State:
        params = nnx.to_pure_dict(nnx.state(Decoder(model, rngs=nnx.Rngs(key)), nnx.Param))
        return {"params": params, "optimizer": optimizer.init(params)}

    def evaluate(params: Any, batch: Any) -> LossSums:
        weights = jax.lax.with_sharding_constraint(in_compute_dtype(params), weights_on)

        def sums(weights: Any, rows: Any) -> LossSums:
            return losses(nnx.merge(graph, weights), rows, modalities, chunks=train.loss_chunks)[1]

        parts = rows_by_replica(batch, mesh, train.microbatches)
        found = accumulated(lambda rows: by_replica(sums)(weights, rows), parts)
        return jax.tree.map(lambda x: x.sum(0), found)

    def gradients(params: Any, batch: Any) -> tuple[jax.Array, LossSums, Any]:
        total = batch["loss_weights"].sum()
        weights = jax.lax.with_sharding_constraint(in_compute_dtype(params), weights_on)

        def loss(weights: Any, rows: Any) -> tuple[jax.Array, LossSums]:
            return losses(nnx.merge(graph, weights), rows, modalities, train.z_loss, total, train.loss_chunks)

        def one(rows: Any) -> tuple[tuple[jax.Array, LossSums], Any]:
            values, found = by_replica(jax.value_and_grad(loss, has_aux=True))(weights, rows)
            return values, sum_within_slices(found, params_on, mesh)

        parts = accumulated(one, rows_by_replica(batch, mesh, train.microbatches))
        (value, sums), found = jax.tree.map(lambda x: x.sum(0), parts)
        found = jax.tree.map(lambda g, p: g.astype(p.dtype), found, params)
        return value, sums, jax.lax.with_sharding_constraint(found, params_on)

    def step(state: State, batch: Any) -> tuple[State, Metrics]:
        value, sums, found = gradients(state["params"], batch)
        updates, optimizer_state = optimizer.update(found, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics = Metrics(sums, value, optax.global_norm(found))
        return {"params": params, "optimizer": optimizer_state}, metrics

    def on_mesh(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args: Any) -> Any:
            with jax.set_mesh(mesh):
                return function(*args)

        return call

    init = jax.jit(new_state, out_shardings=state_on)
    abstract_state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(new_state, jax.random.key(0)),
        state_on,
    )
    options = compiler_options(mesh)
    jitted_step = jax.jit(
        step,
        in_shardings=(state_on, batch_on),
        out_shardings=(state_on, replicated),
        donate_argnums=0,
        compiler_options=options,
    )
    return Program(
        mesh=mesh,
        abstract_state=abstract_state,
        init=on_mesh(lambda seed: init(jax.random.key(seed))),
        step=on_mesh(jitted_step),
        evaluate=on_mesh(jax.jit(evaluate, in_shardings=(params_on, batch_on), out_shardings=replicated)),
        gradients=on_mesh(jax.jit(gradients, in_shardings=(params_on, batch_on))),
        lower_step=on_mesh(
            lambda batch_size, seq_len: jitted_step.lower(abstract_state, abstract_batch(batch_size, seq_len, batch_on))
        ),
        parameters=sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)),
        compiler_options=options,
    )
