"""The entry: what is refused before anything is rented, and what reaches a target."""

import json
import pathlib

import pytest

from anygpt_jax import cli
from anygpt_jax.launching import main

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
GKE = ("--target=gke", "--image=i", "--bucket=b", "--dry-run")


def launch(*arguments, config="llama2_7b.py"):
    return cli.main(["launch", f"--config={CONFIGS / config}", *arguments])


def frozen(shown):
    """The config of a dry run."""
    return json.loads(shown.split("json.loads('")[1].split("'))\n")[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--accelerator=v9-8",), "Unknown accelerator 'v9-8'; known are v4-N"),
        (("--accelerator=v5p-100",), "There is no v5p-100; v5p comes as v5p-8"),
        ((), "--target=gke needs --accelerator, as v5p-128."),
        (("--accelerator=v5p-128", "--slices=0"), "must be at least 1"),
        (("--accelerator=v5p-128", "--max-restarts=-1"), "--max-restarts -1 must be at least 0"),
        (("--accelerator=v5p-128", "--name=A b"), "--name 'A b' must be lower-case letters"),
        (("--accelerator=v5p-128", "--slices=2"), "config.mesh (fsdp=64) is 64 devices in 1 slices"),
        (("--accelerator=v5p-256",), "v5p:4x4x8 × 1 is 128 in 1; set --config.mesh.AXIS so that they agree"),
        (("--accelerator=v5p-128", "--vocab-size=0"), "--vocab-size 0 must be at least 1"),
        (("--accelerator=v5p-128", "--job=tokenize"), "--job=tokenize would run 16 times over"),
        (("--accelerator=v5p-128", "--job=evaluate"), "`evaluate` with --tasks only"),
    ],
)
def test_what_is_refused(arguments, said, capsys):
    assert launch(*GKE, *arguments) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert not out


def test_all_problems_of_a_config_are_told_at_once(capsys):
    wrong = ("--config.train.batch_size=100", "--config.model.d_ff=11009", "--config.train.seq_len=4000")
    mesh = ("--config.mesh.fsdp=32", "--config.mesh.tensor=2")
    assert launch(*GKE, "--accelerator=v5p-128", "--vocab-size=50000", *mesh, *wrong) == 2
    told = capsys.readouterr().err
    assert "train.batch_size=100 must be a multiple" in told
    assert "model.d_ff=11009 must be a multiple of mesh tensor = 2." in told
    assert "not 4000 in all" in told  # the attention kernel's blocks


def test_a_chip_without_the_matrix_unit_is_refused(tmp_path, capsys):
    (tmp_path / "config.py").write_text(
        "from anygpt_jax.cli import load_config\n\n\ndef get_config():\n"
        f"    c = load_config({str(CONFIGS / 'llama2_7b.py')!r})\n"
        "    with c.unlocked():\n        c.model.quantization = 'fp8'\n    return c\n"
    )
    assert launch(*GKE, "--accelerator=v4-128", config=tmp_path / "config.py") == 2
    assert "v4 has no fp8 matrix unit" in capsys.readouterr().err


def test_a_secret_in_a_config_goes_nowhere(tmp_path, capsys):
    (tmp_path / "c.py").write_text(
        f"from anygpt_jax.cli import load_config\ndef get_config():\n    c = load_config({str(CONFIGS / 'llama2_7b.py')!r})\n"
        "    with c.unlocked():\n        c.api_key = 'sesame'\n    return c\n"
    )
    assert launch(*GKE, "--accelerator=v5p-128", config=tmp_path / "c.py") == 2
    out, err = capsys.readouterr()
    assert "named like a password" in err and "sesame" not in out + err


@pytest.mark.parametrize("value", ["pathlib.Path('cache')", "{1, 2}"])
@pytest.mark.parametrize("target", [("gke", "--image=i", "--bucket=b", "--accelerator=v5e-8"), ("slurm",)])
def test_a_value_that_would_come_out_as_another_is_refused(value, target, tmp_path, capsys):
    (tmp_path / "c.py").write_text(
        "import pathlib\nfrom anygpt_jax.cli import load_config\ndef get_config():\n"
        f"    c = load_config({str(CONFIGS / 'llama2_7b.py')!r})\n"
        f"    with c.unlocked():\n        c.odd = {value}\n    return c\n"
    )
    assert launch(f"--target={target[0]}", *target[1:], "--dry-run", config=tmp_path / "c.py") == 2
    out, err = capsys.readouterr()
    assert "The config cannot be written into a file" in err and not out


def test_without_a_vocabulary_batches_are_checked(capsys, caplog):
    assert launch(*GKE, "--accelerator=v5p-128", "--config.train.batch_size=100") == 2
    assert "train.batch_size=100 must be a multiple" in capsys.readouterr().err
    assert "--vocab-size" in caplog.text


@pytest.mark.parametrize(
    ("accelerator", "slices", "mesh"),
    [("v5p-128", 1, (1, 64)), ("v6e-16", 2, (2, 16)), ("v5e-8", 1, (1, 8)), ("v4-16", 4, (4, 8))],
)
def test_a_mesh_of_one_device_follows_the_slices(accelerator, slices, mesh, capsys):
    place = (f"--accelerator={accelerator}", f"--slices={slices}", "--config.mesh.fsdp=1")
    assert launch(*GKE, *place) == 0
    found = frozen(capsys.readouterr().out)
    assert (found["mesh"]["slice"], found["mesh"]["fsdp"]) == mesh
    assert found["multihost"] is (accelerator != "v5e-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--job=evaluate", "--", "--task=vqav2"), "unrecognized arguments: --task=vqav2"),
        (("--job=evaluate", "--", "--examples=many"), "argument --examples: invalid int value"),
        (("stray",), "unrecognized arguments: stray"),
    ],
)
def test_arguments_are_the_verbs_own(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        launch(*GKE, "--accelerator=v5p-128", *arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("workdir", "verb", "name"),
    [
        ("runs/anygpt_7b", "train", "anygpt-7b"),
        ("/bucket/Runs/My Run!", "evaluate", "my-run-evaluate"),
        ("runs/_x_/", "train", "x"),
    ],
)
def test_names(workdir, verb, name):
    assert main.default_name(workdir, verb) == name


@pytest.mark.parametrize("target", main.TARGETS)
def test_help_tells_the_targets_own_flags(target, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["launch", f"--target={target}", "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    groups = {
        "dataflow": "dataflow, flink, spark",
        "flink": "dataflow, flink, spark",
        "spark": "dataflow, flink, spark",
    }
    assert f"\n{groups.get(target, target)}:\n" in told
    assert "--accelerator" in told


def test_flags_of_another_target_are_none_of_this_one(capsys):
    with pytest.raises(SystemExit):
        launch(*GKE, "--accelerator=v5p-128", "--nodes=2")
    assert "unrecognized arguments: --nodes=2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        launch("--target=nowhere")
    assert "invalid choice: 'nowhere'" in capsys.readouterr().err
