"""A run that starts from the parameters of another: a stage after a stage, more ids, adapters beside a base.

Only parameters are read, from the newest checkpoint: the optimizer is fresh and the first step is 0. What the
checkpoint's ids mean must be what they mean here; ids that are new here start as the mean of the others' rows, as
`anygpt convert` does it. Adapters in the checkpoint are merged into its weights, and this run's own begin at nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from anygpt_jax.errors import UserError
from anygpt_jax.interop.extend import require_extends
from anygpt_jax.model import lora
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.sharding import param_shardings
from anygpt_jax.training import folders
from anygpt_jax.training.checkpoints import Checkpoints
from anygpt_jax.training.step import Program
from anygpt_jax.training.trainable import VOCABULARY_AXIS, merge, split
from anygpt_jax.vocabulary import Vocabulary

log = logging.getLogger(__name__)

# Settings of a model that its parameters, as they are stored, do not depend on, or that are brought about here.
FREE = {
    "vocab_size", "ids", "param_dtype", "compute_dtype", "attention", "quantization", "remat", "matmul_barriers",
    "unroll", "lora_rank", "lora_alpha", "lora_targets",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Start:
    """A checkpoint that a run starts from."""

    checkpoints: Checkpoints
    step: int
    model: ModelConfig
    vocabulary: Vocabulary


def folder_of(path: str | os.PathLike[str]) -> epath.Path:
    """The checkpoints of a workdir, or the folder itself, local or in a bucket. UserError if there is none."""
    for folder in (folders.absolute(path) / "checkpoints", folders.absolute(path)):
        if folders.final_steps(folder):
            return folder
    raise UserError(f"train.start_from={path} holds no checkpoints; name a run's folder or its checkpoints.")


def start_point(
    path: str | os.PathLike[str],
    model: ModelConfig,
    vocabulary: Vocabulary,
    *,
    step: int | None = None,
    verify: bool = True,
) -> Start:
    """A checkpoint under `path`, the newest by itself, after checking that this model and vocabulary can start from it.

    `verify` reads all its bytes. UserError if they cannot. Its `checkpoints` are the caller's to close.
    """
    checkpoints = Checkpoints(folder_of(path), read_only=True)
    try:
        if step is None:
            step = checkpoints.newest_whole(["params"]) if verify else checkpoints.latest()
        if step is None:
            raise UserError(f"train.start_from={path} holds no whole checkpoint.")
        described = checkpoints.description(step)
        theirs = ModelConfig.from_config(described.config["model"], described.vocabulary)
        differ = [
            field.name
            for field in dataclasses.fields(ModelConfig)
            if field.name not in FREE and getattr(theirs, field.name) != getattr(model, field.name)
        ]
        if differ:
            raise UserError(f"train.start_from={path} holds another model ({', '.join(differ)} differ).")
        if described.vocabulary.fingerprint != vocabulary.fingerprint:
            require_extends(vocabulary, described.vocabulary, "The vocabulary of the run")
    except BaseException:
        checkpoints.close()
        raise
    return Start(checkpoints, step, theirs, described.vocabulary)


def require_start(path: str | pathlib.Path, config: ml_collections.ConfigDict, vocabulary: Vocabulary) -> None:
    """UserError if a run with this config cannot start from the checkpoints at `path`, by what they say of themselves."""
    model = ModelConfig.from_config(config.model, vocabulary)
    start_point(path, model, vocabulary, verify=False).checkpoints.close()


def start_params(
    path: str | os.PathLike[str],
    model: ModelConfig,
    vocabulary: Vocabulary,
    program: Program,
    seed: int,
    step: int | None = None,
) -> dict[str, Any]:
    """Parameters for `program.begin`, laid out as it wants them. All processes must call this. UserError as above."""
    start = start_point(path, model, vocabulary, step=step)
    try:
        theirs = dataclasses.replace(start.model, param_dtype=model.param_dtype)
        read = start.checkpoints.restore(start.step, {"params": _abstract(theirs, program)})["params"]
    finally:
        start.checkpoints.close()
    log.info("Starting from the parameters of %s, step %d.", start.checkpoints.directory, start.step)
    same = start.vocabulary.fingerprint == vocabulary.fingerprint and theirs.vocab_size == model.vocab_size
    kept, used = min(theirs.vocab_size, start.vocabulary.size), vocabulary.size
    if used > kept:
        log.info("%d ids are new: their rows start as the mean of the %d others.", used - kept, kept)

    def fitted(params: dict[str, Any]) -> dict[str, Any]:
        params = lora.merged(params, theirs)
        if not same:
            for name in params.keys() & VOCABULARY_AXIS.keys():
                params[name] = _resized(params[name], VOCABULARY_AXIS[name], kept, used, model.vocab_size)
        fresh = nnx.to_pure_dict(nnx.state(Decoder(model, rngs=nnx.Rngs(seed)), nnx.Param))
        adapters = {f"blocks/{name}{part}" for name in model.adapted for part in (lora.A, lora.B)}
        return merge(split(fresh, frozenset(adapters))[0], params)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract_state["params"])
    fit = jax.jit(fitted, out_shardings=shardings, donate_argnums=0)
    with jax.set_mesh(program.mesh), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")  # those that change their shape
        return fit(read)


def _abstract(model: ModelConfig, program: Program) -> dict[str, Any]:
    """What a checkpoint of `model` is read into on the program's mesh: cut where it divides."""
    state = nnx.split(nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0))), nnx.Param)[1]
    mesh = program.mesh

    def one(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        axes = [
            axis if axis and n % int(np.prod([mesh.shape[a] for a in np.atleast_1d(axis)])) == 0 else None
            for n, axis in zip(leaf.shape, sharding.spec, strict=False)
        ]
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree.map(one, nnx.to_pure_dict(state), param_shardings(state, mesh))


def _resized(matrix: Array, axis: int, kept: int, used: int, size: int) -> Array:
    """`interop.extend.resized` on the device: `kept` rows or columns, their mean up to `used`, zeros up to `size`."""
    piece = functools.partial(jax.lax.slice_in_dim, matrix, axis=axis)
    old = piece(0, kept)
    mean = jnp.mean(old.astype(jnp.float32), axis, keepdims=True).astype(matrix.dtype)
    shapes = [
        tuple(n if i == axis else length for i, length in enumerate(matrix.shape)) for n in (used - kept, size - used)
    ]
    return jnp.concatenate([old, jnp.broadcast_to(mean, shapes[0]), jnp.zeros(shapes[1], matrix.dtype)], axis)
