"""What is refused before anything is compiled: every problem of a run at once, a sentence each."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jaxlib
import ml_collections
from flax import nnx

from anygpt_jax import multihost
from anygpt_jax.cache import Manifest
from anygpt_jax.data.history import settings_of
from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.sharding import BATCH_AXES, RULES, mesh_problems, mesh_shape
from anygpt_jax.model.splash import length_problems
from anygpt_jax.training.ema import ema_decay
from anygpt_jax.training.guard import guard_settings
from anygpt_jax.training.loss import modality_weights
from anygpt_jax.training.optimizer import make_optimizer
from anygpt_jax.training.retention import CheckpointSettings
from anygpt_jax.training.trainable import trained_paths
from anygpt_jax.vocabulary import Vocabulary

if TYPE_CHECKING:
    from anygpt_jax.training.step import Program

# What an axis of the mesh must divide, by the logical axis that it cuts (`sharding.RULES`).
SIZES = {"embed": "d_model", "vocab": "vocab_size", "heads": "n_heads", "kv_heads": "n_kv_heads", "mlp": "d_ff"}


def refuse(problems: Iterable[str]) -> None:
    """UserError of all problems, a line each, if there is any."""
    found = list(dict.fromkeys(problems))
    if found:
        raise UserError("\n".join(found))


def problem_of(function: Callable, *args: object) -> list[str]:
    """What a function that raises UserError has to say."""
    try:
        function(*args)
    except UserError as e:
        return [str(e)]
    return []


def batch_problems(train: ml_collections.ConfigDict, mesh: Mapping[str, int]) -> list[str]:
    """`mesh` holds the size of every axis."""
    found = []
    rows = train.microbatches * math.prod(mesh[axis] for axis in BATCH_AXES)
    if rows < 1 or train.batch_size < 1 or train.batch_size % rows:
        found.append(
            f"train.batch_size={train.batch_size} must be a multiple of mesh slice × data × fsdp × "
            f"train.microbatches = {rows}."
        )
    for what, parts in (("mesh context", mesh["context"]), ("train.loss_chunks", train.loss_chunks)):
        if parts < 1 or train.seq_len < 1 or train.seq_len % parts:
            found.append(f"train.seq_len={train.seq_len} must be a multiple of {what} = {parts}.")
    return found


def division_problems(sizes: Mapping[str, int], mesh: Mapping[str, int]) -> list[str]:
    """Of a model's sizes by name, with `vocab_size`, over a mesh."""
    return [
        f"model.{name}={sizes[name]} must be a multiple of mesh {RULES[logical]} = {mesh[RULES[logical]]}."
        for logical, name in SIZES.items()
        if sizes[name] % mesh[RULES[logical]]
    ]


def layout_problems(
    sizes: Mapping[str, int], attention: str, train: ml_collections.ConfigDict, mesh: Mapping[str, int]
) -> list[str]:
    """Of a model's sizes and its batches on a mesh."""
    found = batch_problems(train, mesh) + division_problems(sizes, mesh)
    return found + (length_problems(train.seq_len, mesh["context"]) if attention == "splash" else [])


def _parameters(model: ModelConfig) -> dict[str, Any]:
    return nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0))), nnx.Param)[1])


def config_problems(config: ml_collections.ConfigDict, vocabulary: Vocabulary, devices: int) -> list[str]:
    """Of a whole config, on so many devices."""
    model, train, mesh = config.model, config.train, mesh_shape(config.mesh)
    found = problem_of(make_optimizer, train)
    for settings in (guard_settings, ema_decay, CheckpointSettings.from_config):
        found += problem_of(settings, train)
    found += problem_of(modality_weights, train, 1 + len(vocabulary.modalities), vocabulary)
    of_model = problem_of(ModelConfig.from_config, model, vocabulary)
    found += of_model or problem_of(trained_paths, _parameters(ModelConfig.from_config(model, vocabulary)), train)
    found += mesh_problems(config.mesh, devices)
    multiple = model.get("vocab_multiple", 1)
    if min(mesh.values()) < 1 or multiple < 1:  # nothing can be divided by that
        return found
    sizes = dict(model) | {"vocab_size": vocabulary.padded_size(multiple)}
    return found + layout_problems(sizes, model.get("attention", "xla"), train, mesh)


def cache_problems(config: ml_collections.ConfigDict) -> list[str]:
    """Of the mixture and the cache that it is drawn from."""
    cache = pathlib.Path(config.workdir) / "cache"
    try:
        manifest = Manifest.load(cache)
        weights = settings_of(config).weights
    except UserError as e:
        return [str(e)]
    found = []
    absent = sorted(task for task in weights if task not in manifest.tasks)
    if absent:
        there = ", ".join(sorted(manifest.tasks)) or "none"
        found.append(f"config.mixture names {', '.join(absent)}; the tasks in {cache} are {there}.")
    empty = sorted(t for t in weights.keys() - absent if not manifest.counts(t, "train").records)
    if empty:
        found.append(f"{cache} has no training records of {', '.join(empty)}; see their rejects by `anygpt inspect`.")
    return found


def state_bytes(program: Program) -> int:
    """What the training state and the gradients take of the device that has most of them."""
    leaves = jax.tree.leaves(program.abstract_state)
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    share = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(program.abstract_state["params"])
    )
    return held + round(share * program.trained_parameters / program.parameters)


def memory_problems(program: Program) -> list[str]:
    """Of a state that cannot fit into the devices, whatever the activations take: found without compiling."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    needed, where = state_bytes(program), f"a {device.device_kind}"
    if limit is None and device.platform == "cpu":
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        needed, where = needed * jax.local_device_count(), "this machine"
    if limit is None or needed <= limit:
        return []
    return [
        f"Parameters, optimizer and gradients take {needed / 2**30:.1f} GiB of {where}, which has {limit / 2**30:.1f} "
        "GiB; spread them over more devices (mesh.fsdp) or train fewer of them; `anygpt plan` has the activations too."
    ]


def require_same_everywhere(config: ml_collections.ConfigDict, cache: pathlib.Path) -> None:
    """UserError in every process of a job if they have not all the same config, cache and versions."""

    def sha(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    remedy = "Start all of them with the same"
    settings = json.loads(config.to_json_best_effort()) | {"workdir": ""}  # where hosts have it may differ
    multihost.require_same("The config", sha(json.dumps(settings, sort_keys=True).encode()), f"{remedy} command.")
    manifest = (cache / "manifest.json").read_bytes() + (cache / "vocabulary.json").read_bytes()
    multihost.require_same("The token cache", sha(manifest), f"Give all of them the same {cache}.")
    versions = f"{importlib.metadata.version('anygpt-jax')} jax {jax.__version__} {jaxlib.__version__}"
    multihost.require_same("The installation", sha(versions.encode()), f"{remedy} versions of anygpt-jax and jax.")
    multihost.compare_clocks()
