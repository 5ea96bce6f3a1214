"""The model inside the package: how it is made, and the verbs that take it where no config is named."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from test_generation_main import CONFIG, _modalities, save_checkpoint, vocabulary  # noqa: F401

from anygpt_jax import cli, shipped
from anygpt_jax.cache import Manifest
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.shipped.__main__ import main as make
from anygpt_jax.training.checkpoints import Checkpoints, restore_model

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """A folder with config.py and a trained run in run/."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "config.py").write_text(CONFIG.replace("WORKDIR", str(folder / "run")))
    save_checkpoint(folder / "run", cli.load_config(str(folder / "config.py")), vocabulary())
    return folder


@pytest.fixture(scope="module")
def package(run) -> pathlib.Path:
    assert make([str(run / "run"), "--dtype", "float32", "--to", str(run / "package")]) == 0
    return run / "package"


@pytest.fixture
def anygpt(package, tmp_path, monkeypatch, capsys):
    """Runs a verb in an empty folder with the shipped model in its place; gives (status, stdout, stderr's last line)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "folder", lambda: package)

    def command(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(arguments)
        out, err = capsys.readouterr()
        return status, out, (err.strip().splitlines() or [""])[-1]

    return command


def test_generates_without_config_and_checkpoint_what_the_run_itself_would(anygpt, run):
    asked = ("--prompt", "a red fox", "--to", "image", "--seed", "5", "--json", "r.json")
    codes, answers = {}, ((), (f"--config={run}/config.py",))
    for named in answers:
        assert anygpt("generate", *named, *asked)[::2] == (0, "image saved to image.png")
        report = json.loads(pathlib.Path("r.json").read_text())
        assert report["checkpoint_step"] == 40
        codes[named] = report["answers"][0]["segments"][0]["codes"]
    assert codes[()] == codes[answers[1]]
    assert np.asarray(Image.open("image.png")).ndim == 3
    assert not pathlib.Path("runs").exists()


def test_overrides_hold_with_the_shipped_config_too_and_are_checked(anygpt):
    asked = ("generate", "--prompt", "x", "--to", "image", "--json", "r.json")
    assert anygpt(*asked, "--config.generate.image.temperature=0.25", "--config.seed=8")[0] == 0
    report = json.loads(pathlib.Path("r.json").read_text())
    assert report["sampling"]["image"]["temperature"] == 0.25
    assert report["answers"][0]["seed"] == 8
    for override, message in (
        ("--config.generate.image.warmth=1", "The shipped model's config (configs/tiny.py) has no setting 'warmth'"),
        ("--config.generate.image.temperature=warm", "could not convert string to float: 'warm'"),
    ):
        status, _, err = anygpt(*asked, override)
        assert status == 2 and message in err


def test_a_cache_of_other_tokenizers_is_refused_and_another_workdir_is_not(anygpt):
    cache = pathlib.Path("runs/tiny/cache")
    cache.mkdir(parents=True)
    Manifest(vocabulary().fingerprint, "t", {"image": "image-0"}, {}).save(cache)
    assert "made with image tokenizer image-0 and the one in use is image-1" in anygpt("generate", "--prompt", "x")[2]
    assert anygpt("generate", "--prompt", "x", "--workdir", "elsewhere")[0] == 0


def test_a_workdirs_own_checkpoints_need_its_config(anygpt, run):
    """Of two models in the workdir and in the package, the one that nobody named is the package's."""
    config = cli.load_config(str(run / "config.py"))
    decoder = Decoder(ModelConfig.from_config(config.model, vocabulary()), rngs=nnx.Rngs(1))
    checkpoints = Checkpoints("mine/checkpoints")
    checkpoints.save(7, {"params": nnx.to_pure_dict(nnx.state(decoder, nnx.Param))}, config, vocabulary())
    checkpoints.close()
    asked = ("generate", "--prompt", "x", "--workdir", "mine", "--json", "r.json")
    for named, step in (((), 40), ((f"--config={run}/config.py",), 7)):
        assert anygpt(*asked, *named)[0] == 0
        assert json.loads(pathlib.Path("r.json").read_text())["checkpoint_step"] == step


def test_config_is_the_runs(anygpt, run, package):
    ours, theirs = shipped.config(), cli.load_config(str(run / "config.py"))
    assert (ours.workdir, ours.checkpoints, ours.model.param_dtype) == ("runs/tiny", str(package), "float32")
    ours.workdir = theirs.workdir
    del ours.checkpoints, ours.model.param_dtype
    assert ours.to_dict() == theirs.to_dict()  # tuples among them


def test_verbs_that_look_on(anygpt, package):
    status, out, _ = anygpt("inspect", "--json", "r.json")
    assert status == 0 and f"{package}: 1 checkpoints" in out
    seen = json.loads(pathlib.Path("r.json").read_text())
    assert [found["status"] for found in seen["checkpoints"]] == ["finished"]
    assert seen["described"]["step"] == 40
    assert "No measurements at runs/tiny/report/metrics.json" in anygpt("report")[2]
    assert "No data set at runs/tiny/data" in _with_data(anygpt, "evaluate")
    assert "No folder at nowhere" in anygpt("report", "nowhere")[2]  # a named place is that place


def _with_data(anygpt, verb: str) -> str:
    config = shipped.config()
    config.tokenize, config.data = {"tasks": ("image_to_text",)}, {"scenes": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "config", lambda: config)
        return anygpt(verb)[2]


def test_without_a_shipped_model_it_is_one_sentence(anygpt, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "folder", lambda: tmp_path / "none")
    for verb in cli.WITH_SHIPPED:
        status, out, err = anygpt(verb)
        assert (status, out) == (2, "")
        assert err == "anygpt: This package holds no model of its own; name a config of yours with --config=FILE."
    for verb in ("train", "plan"):
        with pytest.raises(SystemExit, match="2"):
            anygpt(verb)


def test_making_it(run, tmp_path, capsys):
    """In half the bytes, of the average if asked for, and not over another one."""
    model = restore_model(run / "run" / "checkpoints")
    params = nnx.to_pure_dict(nnx.state(model.decoder, nnx.Param))
    config = cli.load_config(str(run / "config.py"))
    average = {**params, "embedding": params["embedding"] + 1}
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save(9, {"params": params, "ema": average}, config, model.vocabulary)
    checkpoints.close()
    assert make([str(tmp_path / "run"), "--ema", "--to", str(tmp_path / "to")]) == 0
    assert capsys.readouterr().out.startswith("step 9: ")
    made = restore_model(tmp_path / "to")
    assert (made.step, made.vocabulary, made.config.param_dtype) == (9, model.vocabulary, "bfloat16")
    assert made.config.compute_dtype == model.config.compute_dtype
    stored = np.asarray(made.decoder.embedding[...])
    assert stored.dtype == "bfloat16"
    np.testing.assert_array_equal(stored, np.asarray(average["embedding"]).astype(stored.dtype))
    assert not {"optimizer", "ema"} & {path.name for path in (tmp_path / "to" / "9").iterdir()}
    assert make([str(tmp_path / "run"), "--to", str(tmp_path / "to")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_shipped_config_is_read_without_jax(package):
    code = (
        "import pathlib, sys; from anygpt_jax import shipped;"
        f"shipped.folder = lambda: pathlib.Path({str(package)!r}); assert shipped.config().seed == 3;"
        "print([m for m in ('jax', 'orbax', 'tensorflow') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.slow
def test_the_wheel_holds_it(run, tmp_path):
    """Installed from a wheel, from a folder that it may not write to, it is read and not changed."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "anygpt_jax", source / "anygpt_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    inside = source / "anygpt_jax" / "shipped" / "checkpoints"
    shutil.rmtree(inside, ignore_errors=True)
    assert make([str(run / "run"), "--to", str(inside)]) == 0
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*pip, "wheel", *options, str(source), "-w", str(tmp_path)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "-q", "--target", str(site), str(wheel)], check=True)
    there = site / "anygpt_jax" / "shipped" / "checkpoints"

    def files(folder: pathlib.Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert files(there) == files(inside)
    for path in [there, *there.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    code = (
        "from anygpt_jax import shipped; from anygpt_jax.training.checkpoints import restore_model;"
        "print(shipped.__file__); print(restore_model(shipped.config().checkpoints).step)"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code], env={"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert ran.stdout.split() == [str(site / "anygpt_jax" / "shipped" / "__init__.py"), "40"], ran.stderr
    assert files(there) == files(inside)
    for path in [there, *there.rglob("*")]:
        path.chmod(0o755)
