"""The compiled train step: one program over the whole mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
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
from anygpt_jax.training.ema import averaged, ema_decay
from anygpt_jax.training.guard import chosen, fresh_guard, guard_settings, judged
from anygpt_jax.training.loss import LossSums, losses, modality_weights, trained_weights
from anygpt_jax.training.optimizer import make_optimizer
from anygpt_jax.training.trainable import merge, new_rows, path_of, split, trained_paths
from anygpt_jax.vocabulary import Vocabulary

# {"params": nested dict of arrays, "optimizer": optax state of those that are trained, "guard": `guard.GuardState`,
# and with `train.ema_decay` "ema": float32, as the params}
State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What a step tells; on the device until it is read."""

    sums: LossSums  # of the batch as it is; not finite perhaps, if the step was not ok
    loss: jax.Array
    grad_norm: jax.Array  # before clipping, of what is trained
    ok: jax.Array  # bool: the step was taken; otherwise nothing but counters changed
    skipped: jax.Array  # int32: steps not taken so far, this one included
    in_a_row: jax.Array  # int32: those since the last one that was


jax.tree_util.register_dataclass(Metrics)


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions of a run and the layout of what they take.

    `init(seed)` → state; `begin(params)` → the state of a run that starts from these, which are consumed;
    `step(state, batch)` → (state, Metrics), the given state is consumed; `evaluate(params, batch)` → LossSums;
    `gradients(params, batch)` → (loss, LossSums, gradients of what is trained). Batches are global arrays, see `place`.
    """

    mesh: Mesh
    abstract_state: State  # ShapeDtypeStructs with shardings: what a checkpoint is restored to
    init: Callable[[int], State]
    begin: Callable[[Any], State]
    anew: Callable[[Any, Collection[str]], State]  # (params, names): guard and ema, as `begin` has them
    step: Callable[[State, Any], tuple[State, Metrics]]
    evaluate: Callable[[Any, Any], LossSums]
    gradients: Callable[[Any, Any], tuple[jax.Array, LossSums, Any]]  # before clipping; what a step begins with
    lower_step: Callable[[int, int], jax.stages.Lowered]  # (batch_size, seq_len); on devices that need not exist
    parameters: int
    trained_parameters: int
    frozen_matrices: int  # parameters that multiply and do not change
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


def build(
    model: ModelConfig,
    train: ml_collections.ConfigDict,
    mesh: Mesh,
    modalities: int,
    vocabulary: Vocabulary | None = None,
) -> Program:
    """`modalities` counts text and the vocabulary's blocks. UserError if the shapes do not divide the mesh.

    The vocabulary says what `train.loss_weights` and `train.new_rows_only` mean. A plan does without it: neither
    changes how long a step takes.
    """
    refuse(layout_problems(vars(model), model.attention, train, mesh.shape))
    by_modality = modality_weights(train, modalities, vocabulary)
    first_new = (vocabulary.text_size if vocabulary else 0) if train.get("new_rows_only") else None
    guarding, decay = guard_settings(train), ema_decay(train)
    optimizer = make_optimizer(train)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0))), nnx.Param)
    shapes = nnx.to_pure_dict(abstract)
    weights_on = param_shardings(abstract, mesh)
    params_on = between_steps(shapes, weights_on)
    replicated = NamedSharding(mesh, PartitionSpec())
    trained = trained_paths(shapes, train)
    trained_shapes, trained_on = split(shapes, trained)[0], split(params_on, trained)[0]
    state_on = {
        "params": params_on,
        "optimizer": like_params(jax.eval_shape(optimizer.init, trained_shapes), trained_on, mesh),
        "guard": {name: replicated for name in fresh_guard()},
    }
    if decay:
        state_on["ema"] = params_on
    batch_on = batch_sharding(mesh)

    def in_compute_dtype(params: Any) -> Any:
        """Matrices in the dtype they multiply in, so that what is gathered is no larger; scales as they are."""
        return jax.tree_util.tree_map_with_path(
            lambda path, p: p if path[-1].key.endswith("norm") else p.astype(model.dtype), params
        )

    def first_average(params: Any) -> Any:
        return jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)

    def begin(params: Any) -> State:
        state = {"params": params, "optimizer": optimizer.init(split(params, trained)[0]), "guard": fresh_guard()}
        return state | ({"ema": first_average(params)} if decay else {})

    def anew(params: Any, names: Collection[str]) -> State:
        makers = {"guard": lambda params: fresh_guard(), "ema": first_average}
        return {name: jax.jit(makers[name], out_shardings=state_on[name])(params) for name in names}

    def new_state(key: jax.Array) -> State:
        return begin(nnx.to_pure_dict(nnx.state(Decoder(model, rngs=nnx.Rngs(key)), nnx.Param)))

    def evaluate(params: Any, batch: Any) -> LossSums:
        weights = jax.lax.with_sharding_constraint(in_compute_dtype(params), weights_on)

        def sums(weights: Any, rows: Any) -> LossSums:
            return losses(nnx.merge(graph, weights), rows, modalities, chunks=train.loss_chunks)[1]

        parts = rows_by_replica(batch, mesh, train.microbatches)
        found = accumulated(lambda rows: by_replica(sums)(weights, rows), parts)
        return jax.tree.map(lambda x: x.sum(0), found)

    def gradients(params: Any, batch: Any) -> tuple[jax.Array, LossSums, Any]:
        total = trained_weights(batch, by_modality).sum()
        weights = jax.lax.with_sharding_constraint(in_compute_dtype(params), weights_on)

        def with_gradient(weights: Any, rows: Any) -> tuple[tuple[jax.Array, LossSums], Any]:
            ours, others = split(weights, trained)

            def loss(ours: Any) -> tuple[jax.Array, LossSums]:
                decoder = nnx.merge(graph, merge(ours, others))
                return losses(decoder, rows, modalities, train.z_loss, total, train.loss_chunks, by_modality)

            return jax.value_and_grad(loss, has_aux=True)(ours)

        def one(rows: Any) -> tuple[tuple[jax.Array, LossSums], Any]:
            values, found = by_replica(with_gradient)(weights, rows)
            return values, sum_within_slices(found, trained_on, mesh)

        parts = accumulated(one, rows_by_replica(batch, mesh, train.microbatches))
        (value, sums), found = jax.tree.map(lambda x: x.sum(0), parts)
        found = jax.tree.map(lambda g, p: g.astype(p.dtype), found, trained_shapes)
        if first_new is not None:
            found = new_rows(found, jax.tree.map(jnp.zeros_like, found), first_new)
        return value, sums, jax.lax.with_sharding_constraint(found, trained_on)

    def step(state: State, batch: Any) -> tuple[State, Metrics]:
        value, sums, found = gradients(state["params"], batch)
        norm = optax.global_norm(found)
        ok, guard = judged(state["guard"], value, norm, guarding)
        ours, others = split(state["params"], trained)
        updates, optimizer_state = optimizer.update(found, state["optimizer"], ours)
        stepped = optax.apply_updates(ours, updates)
        if first_new is not None:
            stepped = new_rows(stepped, ours, first_new)
        params = merge(chosen(ok, stepped, ours), others)
        after = {"params": params, "optimizer": chosen(ok, optimizer_state, state["optimizer"]), "guard": guard}
        if decay:
            after["ema"] = chosen(ok, averaged(state["ema"], params, decay), state["ema"])
        return after, Metrics(sums, value, norm, ok, guard["skipped"], guard["in_a_row"])

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
        anew=on_mesh(anew),
        begin=on_mesh(jax.jit(begin, in_shardings=(params_on,), out_shardings=state_on, donate_argnums=0)),
        step=on_mesh(jitted_step),
        evaluate=on_mesh(jax.jit(evaluate, in_shardings=(params_on, batch_on), out_shardings=replicated)),
        gradients=on_mesh(jax.jit(gradients, in_shardings=(params_on, batch_on))),
        lower_step=on_mesh(
            lambda batch_size, seq_len: jitted_step.lower(abstract_state, abstract_batch(batch_size, seq_len, batch_on))
        ),
        parameters=sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)),
        trained_parameters=sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(trained_shapes)),
        frozen_matrices=sum(
            int(np.prod(leaf.shape))
            for path, leaf in jax.tree_util.tree_leaves_with_path(split(shapes, trained)[1])
            if path_of(path) != "embedding" or model.tied_embeddings  # an untied one is looked up alone
        ),
        compiler_options=options,
    )
