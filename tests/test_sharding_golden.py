"""How the main configs lie on their meshes, held by a golden file, so that a change of it is seen in review."""

import json
import math
import pathlib

import jax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh
from test_configs_models import CONFIGS, PUBLISHED

from anygpt_jax.cli import load_config
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.sharding import between_steps, mesh_shape, param_shardings
from anygpt_jax.training.checks import config_problems
from anygpt_jax.vocabulary import Vocabulary

GOLDEN = pathlib.Path(__file__).parent / "golden" / "shardings.json"


def text(partition) -> str:
    return ", ".join("×".join(axis) if isinstance(axis, tuple) else axis or "-" for axis in partition) or "-"


def shardings(name):
    """{parameter: "shape | layout in a step | layout between steps"} of a config on its own mesh."""
    config = load_config(str(CONFIGS / name))
    vocabulary = Vocabulary.build(text_size=PUBLISHED[name][0], text_fingerprint="", blocks=(), markers=())
    sizes = mesh_shape(config.mesh)
    assert config_problems(config, vocabulary, math.prod(sizes.values())) == []
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    model = ModelConfig.from_config(config.model, vocabulary)
    params = nnx.split(nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0))), nnx.Param)[1]
    in_step = param_shardings(params, mesh)
    shapes = nnx.to_pure_dict(params)
    found = {"mesh": ", ".join(f"{axis}={n}" for axis, n in sizes.items() if n > 1) or "one device"}
    rows = zip(
        jax.tree_util.tree_leaves_with_path(shapes),
        jax.tree.leaves(in_step),
        jax.tree.leaves(between_steps(shapes, in_step)),
        strict=True,
    )
    for (path, leaf), step, between in rows:
        key = ".".join(str(part.key) for part in path)
        found[key] = f"{list(leaf.shape)} | {text(step.spec)} | {text(between.spec)}"
    return found


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_shardings_are_those_of_the_golden_file(name):
    """If a change is meant, put what is printed into the file."""
    golden = json.loads(GOLDEN.read_text())
    found = shardings(name)
    assert found == golden[name], json.dumps({name: found}, indent=1, ensure_ascii=False)
