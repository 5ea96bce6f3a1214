"""docs/new_modality.md, command by command: a package adds depth maps to a checkpoint that never saw one."""

import contextlib
import importlib
import io
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from anygpt_jax import cli
from anygpt_jax.embedded import scenes, sentences, settings
from anygpt_jax.errors import UserError
from anygpt_jax.modalities import base, pictures
from anygpt_jax.training.checkpoints import restore_model

REPOSITORY = pathlib.Path(__file__).parents[1]
PACKAGE = REPOSITORY / "tests" / "new_modality"
PAGE = (REPOSITORY / "docs" / "new_modality.md").read_text(encoding="utf-8")

# What stands in for the quickstart: its modalities and tokenizers, a smaller model, two of its tasks.
QUICKSTART = f"""
import ml_collections
from anygpt_jax.cli import load_config

def get_config():
    c = load_config({str(REPOSITORY / "configs" / "quickstart.py")!r})
    c.tokenize.tasks = ("image_to_text", "text_to_image")
    c.mixture = ml_collections.ConfigDict({{"image_to_text": 0.5, "text_to_image": 0.5}})
    c.model.update(d_model=32, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=16, d_ff=64)
    c.train.update(steps=20, seq_len=128, batch_size=4, log_every=10, eval_every=20, eval_batches=2, pack_rows=64)
    c.evaluate.update(examples=6, untrained_examples=2)
    c.generate.batch_size = 8
    return c
"""


def blocks(language):
    """The page's code in one language, block by block."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


COMMANDS = [line for block in blocks("console") for line in block.splitlines()]


def build_old_data(workdir):
    """A few scenes in the quickstart's form, where its config looks for them."""
    config = cli.load_config("configs/quickstart.py")
    names, splits = ("key", "image", "caption", "attributes"), {}
    for split, count in {"train": 24, "validation": 8, "test": 8, "test_openmoji": 1}.items():
        rng, rows = np.random.default_rng(len(split)), []
        for i in range(count):
            kind = "train" if split == "train" else "test"
            attributes = scenes.sample(rng, kind)
            caption = sentences.caption_scene(attributes, rng, kind)
            rows.append(
                (f"images/{split}/{i}", pictures.save_png(scenes.render(attributes)), caption, json.dumps(attributes))
            )
        splits[split] = tf.data.Dataset.from_tensor_slices(
            {name: [row[n] for row in rows] for n, name in enumerate(names)}
        )
    tfds.dataset_builders.store_as_tfds_dataset(
        name="embedded_world", config="images", version=settings.VERSION, split_datasets=splits,
        data_dir=str(workdir / settings.data_dir(config).relative_to(config.workdir)), disable_shuffling=True,
        features=tfds.features.FeaturesDict({name: tfds.features.Tensor(shape=(), dtype=tf.string) for name in names}),
    )  # fmt: skip


def run(command, site):
    """One command of the page; what it printed."""
    words = shlex.split(command)
    if words[0] == "anygpt":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert cli.main(words[1:]) == 0, command
        return printed.getvalue()
    if words[:2] == ["pip", "install"]:  # beside the environment, and from nothing but this folder
        words = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--target", str(site), *words[2:]]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def logits(folder):
    """Logits of every old id after every old id, float32[V, V], and the vocabulary."""
    model = restore_model(folder)
    ids = jnp.arange(1, 1 + restore_model("runs/quickstart/checkpoints").vocabulary.size - 1)[None]
    rows = ids.reshape(-1)[: ids.size // 8 * 8].reshape(8, -1)
    positions = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
    return np.asarray(jax.jit(model.decoder.__call__)(rows, positions, jnp.ones_like(rows))), model.vocabulary


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """Every command has run; what they printed, and the logits of the old and the converted checkpoint."""
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder / "site"))
        (folder / "configs").mkdir()
        (folder / "configs" / "quickstart.py").write_text(QUICKSTART)
        shutil.copytree(PACKAGE, folder / "tests" / "new_modality")
        build_old_data(folder / "runs" / "quickstart")
        for verb in ("tokenize", "train"):
            run(f"anygpt {verb} --config=configs/quickstart.py", None)
        found = types.SimpleNamespace(folder=folder, printed={})
        for command in COMMANDS:
            found.printed[command] = run(command, folder / "site")
            if command.startswith("pip"):
                importlib.invalidate_caches()
                base._entry_points.cache_clear()
                base.get.cache_clear()
            if command.startswith("anygpt convert"):
                found.before, found.old = logits("runs/quickstart/checkpoints")
                found.after, found.new = logits("runs/depth/checkpoints")
        yield found
    base._entry_points.cache_clear()
    base.get.cache_clear()


def said(tutorial, start):
    (printed,) = [text for command, text in tutorial.printed.items() if command.startswith(start)]
    return printed


def test_the_page_shows_the_package_as_it_is():
    files = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*") if path.suffix in (".py", ".toml"))
    shown = [*blocks("python"), *blocks("toml")]
    assert len(shown) == 5
    for block in shown:
        assert block in files


@pytest.mark.slow
def test_the_installed_package_is_found(tutorial):
    assert "depth" in base.available()
    depth = base.get("depth")
    assert isinstance(depth, base.ModalityTokenizer)
    assert pathlib.Path(sys.modules["anygpt_depth"].__file__).is_relative_to(tutorial.folder / "site")


@pytest.mark.slow
def test_old_ids_and_their_logits_are_unchanged_to_the_bit(tutorial):
    old, new = tutorial.old, tutorial.new
    assert new.blocks[:-1] == old.blocks and new.markers == old.markers and new.text_size == old.text_size
    assert new.blocks[-1].modality == "depth" and new.blocks[-1].start == old.size
    assert new.size == old.size + base.get("depth").codebook_size + 2
    assert np.abs(tutorial.before[..., : old.size]).max() > 0.1
    np.testing.assert_array_equal(tutorial.after[..., : old.size], tutorial.before[..., : old.size])
    mean = tutorial.before[..., : old.size].mean(-1)
    np.testing.assert_allclose(tutorial.after[..., old.size : new.size], mean[..., None].repeat(66, -1), atol=1e-4)


@pytest.mark.slow
def test_the_tokens_are_those_of_the_maps(tutorial):
    shown = said(tutorial, "anygpt inspect")
    assert "<depth:64 codes>" in shown and "text_to_depth/train" in shown
    assert re.search(r"\[Human\] (measure this|show how far this is|make a depth map) a ball", shown)


@pytest.mark.slow
def test_training_goes_on_and_learns_the_new_modality(tutorial):
    lines = [json.loads(line) for line in pathlib.Path("runs/depth/logs/metrics.jsonl").read_text().splitlines()]
    train = [line["loss_by_modality"]["depth"] for line in lines if line["split"] == "train"]
    held_out = [line["loss_by_modality"]["depth"] for line in lines if line["split"] == "validation"]
    # The new ids start as likely as the average one; 64 codes at random would be 4.16 nats.
    assert train[0] > 2.5 and train[-1] < 0.5 * train[0]
    assert held_out[-1] < held_out[0] and held_out[-1] < 2.0


@pytest.mark.slow
def test_what_is_generated_is_a_depth_map(tutorial):
    depth = base.get("depth")
    made = depth.load(pathlib.Path("ball.png").read_bytes())
    (codes,) = depth.encode([made])
    assert depth.grammar.problem(codes) is None
    np.testing.assert_allclose(depth.decode([codes])[0], made, atol=1e-3)
    answer = [text for command, text in tutorial.printed.items() if "--input depth" in command]
    assert len(answer) == 1 and answer[0].strip()


@pytest.mark.slow
def test_it_is_scored_by_its_own_metric(tutorial):
    measured = json.loads(pathlib.Path("runs/depth/report/metrics.json").read_text())["quickstart"]
    assert set(measured["matrix"]["text"]) == {"image", "depth"} and set(measured["matrix"]["depth"]) == {"text"}
    for entry in (measured["matrix"]["text"]["depth"], measured["matrix"]["depth"]["text"]):
        assert entry["metric"] == "attributes" and entry["trained"] and entry["n"] == 6
        assert entry["ceiling"] > 0.8 > entry["chance"]
        assert {"distance", "side"} <= set(entry["details"]["direct"])
    assert measured["tokenizers"]["depth"]["judge_attributes"] == 1.0
    assert measured["tokenizers"]["depth"]["codes"] == 64
    assert "text to depth" in said(tutorial, "anygpt evaluate")
    rows = pathlib.Path("runs/depth/predictions/text_to_depth/predictions.jsonl").read_text().splitlines()
    files = {json.loads(row)["direct"]["file"] for row in rows}
    assert len(files) == 6 and all(name.endswith(".png") for name in files)


@pytest.mark.slow
def test_the_report_shows_it(tutorial):
    page = pathlib.Path("runs/depth/report/index.html").read_text()
    assert 'to <span class="name">depth</span>' in page
    assert page.count('<img class="scene" alt="depth, nearest') >= 4
    assert "repeat(5, minmax" in page


@pytest.mark.slow
def test_another_order_of_the_modalities_is_refused(tutorial, tmp_path, capsys):
    vocabulary = json.loads(pathlib.Path("runs/depth/cache/vocabulary.json").read_text())
    vocabulary["blocks"][0]["start"] += 1
    (tmp_path / "vocabulary.json").write_text(json.dumps(vocabulary))
    command = ["convert", "runs/quickstart/checkpoints", "--to", str(tmp_path / "to"), "--format", "orbax"]
    assert cli.main([*command, "--vocabulary", str(tmp_path / "vocabulary.json")]) == 2
    assert "does not have the image block where the weights have it" in capsys.readouterr().err


@pytest.mark.slow
def test_bad_files_are_refused(tutorial):
    from PIL import Image

    depth = base.get("depth")
    for image in (Image.new("RGB", (48, 48)), Image.new("I;16", (47, 48)), Image.new("I;16", (48, 48))):
        out = io.BytesIO()
        image.save(out, "PNG")
        with pytest.raises(UserError, match=r"16-bit grey|without a measurement"):
            depth.load(out.getvalue())
    with pytest.raises(UserError, match="cannot be read"):
        depth.load(b"hello")
