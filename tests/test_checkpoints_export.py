"""Parameters alone out of a run's checkpoint: the last ones or their average, to generate and fine-tune from."""

import jax
import numpy as np
import pytest
import synthetic
from flax import nnx

from anygpt_jax import cli
from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.training.checkpoints import Checkpoints, restore_model


def params_of(seed, model):
    made = nnx.to_pure_dict(nnx.state(Decoder(model, rngs=nnx.Rngs(seed)), nnx.Param))
    leaves, tree = jax.tree.flatten(made)
    rng = np.random.default_rng(seed)  # norms begin as ones: let every array tell one state from another
    return jax.tree.unflatten(tree, [x + rng.normal(size=x.shape).astype(x.dtype) for x in leaves])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two checkpoints: step 1 without an average, step 2 with one."""
    folder = tmp_path_factory.mktemp("trained")
    config = synthetic.config(folder)
    model = ModelConfig.from_config(config.model, synthetic.vocabulary())
    states = {1: {"params": params_of(1, model)}, 2: {"params": params_of(2, model), "ema": params_of(3, model)}}
    checkpoints = Checkpoints(folder / "checkpoints")
    for step, state in states.items():
        checkpoints.save(step, state | {"optimizer": {"count": np.zeros(())}}, config, synthetic.vocabulary(), {"a": 1})
    checkpoints.close()
    return folder / "checkpoints", states


def weights(path, **which):
    return nnx.to_pure_dict(nnx.state(restore_model(path, **which).decoder, nnx.Param))


def within_the_vocabulary(params):
    """The rows that pad the embedding are zeros after a conversion."""
    size = synthetic.vocabulary().size
    return params | {"embedding": params["embedding"][:size]}


def test_a_model_is_restored_with_its_last_weights_or_their_average(trained):
    path, states = trained
    jax.tree.map(np.testing.assert_array_equal, weights(path), states[2]["params"])
    jax.tree.map(np.testing.assert_array_equal, weights(path, ema=True), states[2]["ema"])
    jax.tree.map(np.testing.assert_array_equal, weights(path, step=1), states[1]["params"])
    with pytest.raises(UserError, match=r"Checkpoint 1 .* has no average of the weights"):
        restore_model(path, step=1, ema=True)


@pytest.mark.parametrize(
    ("flags", "step", "part"), [([], 2, "params"), (["--ema"], 2, "ema"), (["--step", "1"], 1, "params")]
)
def test_parameters_alone_are_exported_with_config_vocabulary_and_checksums(trained, tmp_path, flags, step, part):
    path, states = trained
    to = tmp_path / "to"
    assert cli.main(["convert", str(path), "--to", str(to), "--format", "orbax", "--vocab-multiple", "8", *flags]) == 0
    checkpoints = Checkpoints(to, read_only=True)
    assert checkpoints.newest_whole() == 0
    assert checkpoints.items(0) == ["config", "params", "vocabulary"]
    assert not checkpoints.has_optimizer(0)
    about = checkpoints.description(0)
    checkpoints.close()
    assert about.vocabulary == synthetic.vocabulary()
    assert about.config["model"]["d_model"] == 32
    assert (about.progress, about.metrics) == ({}, {})
    ours, exported = within_the_vocabulary(states[step][part]), within_the_vocabulary(weights(to))
    jax.tree.map(np.testing.assert_array_equal, ours, exported)
    # It is checked like any other.
    file = next((to / "0").glob("params/ocdbt.process_0/d/*"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="no whole checkpoint"):
        restore_model(to)


def test_what_cannot_be_exported_is_said(trained, tmp_path, capsys):
    path, _ = trained
    assert cli.main(["convert", str(path), "--to", str(tmp_path / "to"), "--step", "1", "--ema"]) == 2
    assert "1 has no ema" in capsys.readouterr().err
    assert cli.main(["convert", str(tmp_path), "--to", str(tmp_path / "to"), "--ema"]) == 2
    assert "--ema and --step are for checkpoints of ours" in capsys.readouterr().err
