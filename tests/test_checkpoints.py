"""Saving and restoring, what is kept, and what a checkpoint says about itself."""

import json
import math

import checkpoint_world as world
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from anygpt_jax import cli
from anygpt_jax.errors import UserError
from anygpt_jax.training.checkpoints import Checkpoints
from anygpt_jax.training.retention import CheckpointSettings, Retention


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def equal_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


def restored(directory, step, state):
    checkpoints = Checkpoints(directory, read_only=True)
    try:
        return checkpoints.restore(step, state)
    finally:
        checkpoints.close()


def steps(directory):
    return sorted(int(name) for name in world.held(directory) if name.isdigit())


def test_every_part_of_a_state_comes_back_bit_by_bit_with_what_describes_it(tmp_path):
    world.write(tmp_path, [3], metrics={3: 1.5})
    equal_bits(restored(tmp_path, 3, abstract(world.state(3))), world.state(3))
    checkpoints = Checkpoints(tmp_path, read_only=True)
    about = checkpoints.description(3)
    assert about.config == world.CONFIG.to_dict()
    assert about.vocabulary == synthetic.vocabulary()
    assert about.progress == {"batch_offset": 3, "rollbacks": [3]}
    assert about.metrics == {"loss": 1.5}
    assert checkpoints.items(3) == [
        "config",
        "ema",
        "guard",
        "metrics",
        "optimizer",
        "params",
        "progress",
        "vocabulary",
    ]
    checkpoints.close()
    assert json.loads((tmp_path / "3" / "params" / "_METADATA").read_text())["use_ocdbt"]
    assert (tmp_path / "3" / "params" / "manifest.ocdbt").is_file()


def test_a_part_is_restored_alone_onto_another_mesh(tmp_path):
    world.write(tmp_path, [1])
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    wanted = {
        "embedding": NamedSharding(mesh, PartitionSpec("a", "b")),
        "blocks": {"gate": NamedSharding(mesh, PartitionSpec(None, None, "b"))},
    }
    params = world.state(1)["params"]
    shapes = jax.tree.map(lambda x, on: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on), params, wanted)
    found = restored(tmp_path, 1, {"params": shapes})
    assert set(found) == {"params"}
    assert found["params"]["embedding"].sharding == wanted["embedding"]
    equal_bits(found["params"], params)


def test_a_missing_part_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"params": world.state(1)["params"]}, world.CONFIG, synthetic.vocabulary())
    checkpoints.close()
    with pytest.raises(UserError, match=r"/1 has no ema, optimizer; it has config, metrics, params"):
        restored(tmp_path, 1, {name: abstract(world.state(1)[name]) for name in ("optimizer", "params", "ema")})
    with pytest.raises(UserError, match="no whole checkpoint of step 2"):
        restored(tmp_path, 2, {})


def test_training_may_overwrite_its_state_while_it_is_being_saved(tmp_path):
    """The step consumes its arguments' buffers: what is written must be a copy from before."""
    size = 1 << 18
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    now, checkpoints = {"params": {"w": jnp.zeros(size)}}, Checkpoints(tmp_path)
    for step in range(1, 5):
        now["params"]["w"] = add(now["params"]["w"])
        checkpoints.save(step, now, world.CONFIG, synthetic.vocabulary())
        now["params"]["w"] = add(add(now["params"]["w"]))
    checkpoints.close()
    for step in range(1, 5):
        [values] = jax.tree.leaves(restored(tmp_path, step, abstract({"params": {"w": jnp.zeros(size)}})))
        np.testing.assert_array_equal(values, np.full(size, 3 * step - 2, np.float32))


def test_a_step_that_is_there_stays_as_it_is(tmp_path):
    world.write(tmp_path, [1])
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, world.state(2), world.CONFIG, synthetic.vocabulary())
    checkpoints.close()
    equal_bits(restored(tmp_path, 1, abstract(world.state(1))), world.state(1))


def test_a_step_before_the_newest_can_be_saved(tmp_path):
    """After a run was sent back."""
    world.write(tmp_path, [2, 5])
    world.write(tmp_path, [3])
    assert steps(tmp_path) == [2, 3, 5]


LOSSES = {1: 3.0, 2: 1.0, 3: math.nan, 4: 2.0, 5: None, 6: 2.5, 7: None, 8: 4.0}


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"last": 2}, [7, 8]),
        ({"last": 1, "every": 3}, [3, 6, 8]),
        ({"last": 1, "best": 2}, [2, 4, 8]),
        ({"last": 2, "every": 5, "best": 1}, [2, 5, 7, 8]),
        ({"last": 1, "best": 7}, [1, 2, 4, 6, 8]),  # those without a number are never among the best
    ],
)
def test_what_any_rule_keeps_stays(tmp_path, kept, expected):
    world.write(tmp_path, range(1, 9), world.settings(**kept), LOSSES)
    assert steps(tmp_path) == expected


def test_metrics_are_remembered_by_the_next_run(tmp_path):
    given = world.settings(last=1, best=1)
    world.write(tmp_path, [1, 2], given, {1: 0.5, 2: 0.9})
    world.write(tmp_path, [3, 4], given, {3: 0.4, 4: 0.8})
    assert steps(tmp_path) == [3, 4]


def test_settings_come_from_the_config_and_old_configs_go_on_working():
    train = synthetic.config("nowhere").train
    assert CheckpointSettings.from_config(train) == CheckpointSettings(
        keep=Retention(last=2, ordinary=4), mirror_keep=Retention(ordinary=4)
    )
    train.update(keep_every=100, keep_best=3, checkpoint_mirror="gs://b/c", mirror_keep_checkpoints=1)
    train.update(mirror_keep_every=50, keep_metric="loss", verify_checkpoints=False)
    assert CheckpointSettings.from_config(train) == CheckpointSettings(
        Retention(2, 100, 3, ordinary=4), "gs://b/c", Retention(1, 50, ordinary=4), verify=False
    )
    train.update(keep_checkpoints=0, mirror_keep_every=-1)
    with pytest.raises(UserError, match=r"keep_checkpoints=0 .*\n.*mirror_keep_every=-1"):
        CheckpointSettings.from_config(train)


def test_a_reader_makes_nothing_and_cleans_nothing(tmp_path):
    world.write(tmp_path, [1])
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    before = sorted(tmp_path.rglob("*"))
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.latest() == reader.newest_whole() == 1
    with pytest.raises(ValueError, match="opened to be read"):
        reader.save(2, world.state(), world.CONFIG, synthetic.vocabulary())
    reader.close()
    assert sorted(tmp_path.rglob("*")) == before
    Checkpoints(tmp_path / "nowhere", read_only=True).close()
    assert not (tmp_path / "nowhere").exists()


def test_inspect_shows_what_is_there(tmp_path, capsys):
    world.write(tmp_path, [1, 2], metrics={1: 1.25})
    (tmp_path / "3.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    for name in ("0.damaged", "0.left"):
        (tmp_path / name).mkdir()
    with open(tmp_path / "2" / "params" / "_METADATA", "a") as file:
        file.write(" ")
    place, out = str(tmp_path), tmp_path / "out.json"
    assert cli.main(["inspect", place, "--step", "1", "--norms", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert {one["name"]: one["status"] for one in found["checkpoints"]} == {
        "0.damaged": "set aside", "0.left": "set aside", "1": "finished", "2": "finished", "3.orbax-checkpoint-tmp": "unfinished",
    }  # fmt: skip
    described, params = found["described"], world.state(1)["params"]
    assert described["vocabulary"]["fingerprint"] == synthetic.vocabulary().fingerprint
    assert described["progress"] == {"batch_offset": 1, "rollbacks": [1]}
    assert described["metrics"] == {"loss": 1.25}
    gate = described["parameters"]["blocks/gate"]
    assert (gate["shape"], gate["dtype"], gate["count"]) == ([2, 4, 8], "bfloat16", 64)
    for name, values in (("blocks/gate", params["blocks"]["gate"]), ("embedding", params["embedding"])):
        norm = float(np.linalg.norm(np.asarray(values, np.float64).ravel()))
        assert described["parameters"][name]["norm"] == pytest.approx(norm, rel=1e-6)
    (sizes,) = (one["bytes"] for one in found["checkpoints"] if one["name"] == "1")
    on_disk = sum(path.stat().st_size for path in (tmp_path / "1" / "optimizer").rglob("*") if path.is_file())
    assert sizes["optimizer"] == on_disk
    capsys.readouterr()
    assert cli.main(["inspect", place, "--verify"]) == 2
    printed = capsys.readouterr()
    assert "2  damaged" in printed.out.replace("    ", "")
    assert "params/_METADATA has" in printed.out
    assert "2 damaged" in printed.err
    assert "step 1: decoder" in printed.out  # the newest that can be trusted
    assert cli.main(["inspect", f"{place}/1"]) == 0
    assert cli.main(["inspect", place, "--step", "7"]) == 2
    assert "no checkpoint 7" in capsys.readouterr().err
