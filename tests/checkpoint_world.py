"""Small training states and their checkpoints, without a model."""

from __future__ import annotations

import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import synthetic

from anygpt_jax.training.checkpoints import Checkpoints, CheckpointSettings
from anygpt_jax.training.retention import Retention

CONFIG = ml_collections.ConfigDict({"kind": "decoder", "model": {"d_model": 4}, "train": {"steps": 9}})


def state(seed: int = 0, size: int = 8) -> dict:
    """Parameters, an optimizer's state as optax nests it, an average and a guard; every array of other numbers."""
    rng = np.random.default_rng(seed)
    params = {"embedding": rng.normal(size=(size, 4)), "blocks": {"gate": rng.normal(size=(2, 4, size))}}
    params = {
        "embedding": jnp.asarray(params["embedding"], jnp.float32),
        "blocks": {"gate": jnp.asarray(params["blocks"]["gate"], jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    moved = optax.tree_utils.tree_map_params(
        optax.adamw(1e-3), lambda x: x + jnp.asarray(rng.normal(size=x.shape), x.dtype), optimizer[1]
    )
    guard = {"norm": jnp.asarray(rng.normal(), jnp.float32), "good": jnp.asarray(rng.integers(9), jnp.int32)}
    return {
        "params": params,
        "optimizer": (optimizer[0], moved),
        "ema": {"gate": params["embedding"] * 2},
        "guard": guard,
    }


def settings(last=None, every=0, best=0, **rest) -> CheckpointSettings:
    return CheckpointSettings(keep=Retention(last, every, best), **rest)


def write(directory, steps, given: CheckpointSettings | None = None, metrics=None) -> None:
    """A checkpoint a step, each finished before the next; `metrics` by step."""
    checkpoints = Checkpoints(directory, given)
    for step in steps:
        loss = (metrics or {}).get(step)
        about = {"batch_offset": step, "rollbacks": [step]}
        checkpoints.save(
            step, state(step), CONFIG, synthetic.vocabulary(), about, None if loss is None else {"loss": loss}
        )
        checkpoints.wait()
    checkpoints.close()


def held(directory) -> list[str]:
    """Names in a folder of checkpoints."""
    return sorted(path.name for path in directory.iterdir())
