"""Published protocols end to end: files in the published layouts, the shipped model, kept predictions, scores."""

import argparse
import copy
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pod
import pytest
from PIL import Image

from anygpt_jax import cli, serving
from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import follow, protocols, scoring, suite
from anygpt_jax.evaluation.batch import Share, examples_of, predict
from anygpt_jax.evaluation.protocols import coco, vctk, vqav2
from anygpt_jax.generation.pipeline import Pipeline

RECORDINGS = pathlib.Path(serving.__file__).parent / "recordings"
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple", "pink", "gray")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(cli.shipped_config())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten pictures of one colour each, in COCO's and VQA's layouts; the last file is no picture."""
    root = tmp_path_factory.mktemp("data")
    for task in ("coco_caption", "coco_image", "vqav2"):
        (root / task / "val2014").mkdir(parents=True)
        for i, colour in enumerate(COLOURS):
            Image.new("RGB", (64, 48), colour).save(root / task / "val2014" / f"COCO_val2014_{i:012}.jpg")
    (root / "coco_caption" / "val2014" / f"COCO_val2014_{9:012}.jpg").write_bytes(b"no picture")
    images = [
        {
            "filepath": "val2014", "filename": f"COCO_val2014_{i:012}.jpg", "split": "test",
            "sentences": [{"raw": f"something {colour}"}, {"raw": f"a background is {colour}"}],
        }
        for i, colour in enumerate(COLOURS)
    ]  # fmt: skip
    images.append(images[0] | {"split": "train"})
    (root / "coco_caption" / coco.ANNOTATIONS).write_text(json.dumps({"images": images}))
    (root / "coco_image" / coco.ANNOTATIONS).write_text(json.dumps({"images": images[:4]}))
    sounds = [path.read_bytes() for path in sorted(RECORDINGS.iterdir()) if path.suffix in (".flac", ".wav")][:2]
    for speaker, sound in zip(("p225", "p226"), sounds, strict=True):
        for i in (1, 2, 3):
            name = f"{speaker}/{speaker}_{i:03}"
            (root / "vctk" / "txt" / speaker).mkdir(parents=True, exist_ok=True)
            (root / "vctk" / vctk.SOUNDS / speaker).mkdir(parents=True, exist_ok=True)
            (root / "vctk" / "txt" / f"{name}.txt").write_text("a small house is green\n")
            if i < 3:  # of the third there is no sound
                (root / "vctk" / vctk.SOUNDS / f"{name}_mic1.flac").write_bytes(sound)
    questions = [{"question_id": i, "image_id": i, "question": "What colour is it?"} for i in range(10)]
    answers = [
        {"question_id": i, "multiple_choice_answer": c, "answers": [{"answer": c}] * 10} for i, c in enumerate(COLOURS)
    ]
    (root / "vqav2" / vqav2.QUESTIONS).write_text(json.dumps({"questions": questions}))
    (root / "vqav2" / vqav2.ANSWERS).write_text(json.dumps({"annotations": answers}))
    return root


def arguments(**given):
    defaults = {
        "examples": None,
        "share": "0/1",
        "out": None,
        "compare": None,
        "json": None,
        "judges": None,
        "leaderboard": None,
    }
    return argparse.Namespace(**defaults | {k: str(v) if k != "examples" else v for k, v in given.items()})


def test_files_in_the_published_layouts_become_examples(data):
    protocols.by_name("coco_caption").register(data / "coco_caption")
    examples = examples_of(protocols.by_name("coco_caption"))
    assert len(examples) == 10  # not the one of the training split
    assert all(len(e.attributes["captions"]) == 2 and e.source[0] == "image" for e in examples)
    vqa = protocols.by_name("vqav2")
    vqa.register(data / "vqav2")
    (first,) = [e for e in examples_of(vqa) if e.key.endswith("/0")]
    assert vqa.reference(first.attributes) == ["red"] * 10
    assert vqa.question(first.attributes).startswith("What colour is it? Please provide")


def test_what_is_missing_is_said_before_any_work(data, tmp_path):
    config = cli.shipped_config()
    with pytest.raises(UserError, match=r"coco_caption needs dataset_coco\.json and val2014 in"):
        suite.run(config, arguments(tasks="coco_caption", data=tmp_path))
    with pytest.raises(UserError, match="Unknown evaluation task 'coco'; known ones: coco_caption,"):
        suite.run(config, arguments(tasks="coco", data=data))
    with pytest.raises(UserError, match="--share=4/4 is not I/N"):
        suite.share_of("4/4")


def test_an_answer_is_the_same_however_the_work_is_shared_and_broken_off(pipeline, data, tmp_path):
    protocol = protocols.by_name("coco_caption")
    protocol.register(data / "coco_caption")
    examples = examples_of(protocol)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert predict(pipeline, protocol, examples, whole, Share()) == 10
    for i in range(4):
        assert predict(pipeline, protocol, examples, parts, Share(i, 4)) == len(examples[i::4])
    expected = scoring.read_lines(whole)
    assert scoring.read_lines(parts) == expected
    assert [key for key, line in expected.items() if "error" in line] == [
        "test/dataset_coco.json/COCO_val2014_000000000009.jpg"
    ]
    # Killed in the middle of a line: that one and those after it are asked again, and no other.
    path = whole / "predictions-0000-of-0001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:6]) + lines[6][:9])
    assert predict(pipeline, protocol, examples, whole, Share()) == 4
    assert scoring.read_lines(whole) == expected
    assert predict(pipeline, protocol, examples, whole, Share()) == 0
    with pytest.raises(UserError, match="has predictions by another model and seed; name another --out"):
        predict(pipeline, protocol, examples, whole, Share(), seed=1, model="other weights")


@pytest.mark.slow
def test_four_processes_of_one_job_answer_as_one(data, tmp_path):
    command = [sys.executable, "-m", "anygpt_jax.cli", "evaluate", "--tasks=vqav2,coco_caption", f"--data={data}"]
    common = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([*command, f"--out={tmp_path / 'one'}"], env=common, check=True)
    address = {"JAX_COORDINATOR_ADDRESS": f"localhost:{pod.free_port()}", "JAX_NUM_PROCESSES": "4"}
    joined = [
        subprocess.Popen(
            [*command, f"--out={tmp_path / 'four'}"],
            env={**common, **address, "JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(4)
    ]
    said = [process.communicate(timeout=300)[0] for process in joined]
    assert [process.returncode for process in joined] == [0] * 4
    assert "VQA v2" in said[0] and not any("VQA v2" in other for other in said[1:])  # scored once
    for task in ("vqav2", "coco_caption"):
        one, four = tmp_path / "one" / task, tmp_path / "four" / task
        assert len(list(four.glob(scoring.FILES))) == 4
        assert scoring.read_lines(four) == scoring.read_lines(one)
        assert (four / "scores.json").read_bytes() == (one / "scores.json").read_bytes()


def test_the_verb_scores_compares_and_notes_what_it_found(data, tmp_path, capsys):
    out, told = tmp_path / "out", tmp_path / "told.json"
    command = ["evaluate", "--tasks=vqav2", f"--data={data}", f"--out={out}", "--examples=4"]
    assert cli.main([*command, "--share=0/2"]) == 0
    assert "2 of 4 are left to the other processes" in capsys.readouterr().out
    assert cli.main([*command, "--share=1/2"]) == 0
    # A second model that answers every question rightly.
    shutil.copytree(out, tmp_path / "right")
    lines = scoring.read_lines(out / "vqav2")
    for path in (tmp_path / "right" / "vqav2").glob(scoring.FILES):
        path.unlink()
    right = [line | {"text": COLOURS[int(key.rpartition("/")[2])]} for key, line in lines.items()]
    path = tmp_path / "right" / "vqav2" / "predictions-0000-of-0001.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in right))
    assert (
        cli.main([*command[:3], f"--out={tmp_path / 'right'}", "--examples=4", f"--compare={out}", f"--json={told}"])
        == 0
    )
    (result,) = json.loads(told.read_text())
    assert result["scores"]["vqa_accuracy"]["value"] == 1.0
    wrong = json.loads((out / "vqav2" / "scores.json").read_text())["scores"]["vqa_accuracy"]["value"]
    assert result["compared"]["vqa_accuracy"]["value"] == pytest.approx(1.0 - wrong)
    assert "less the other" in capsys.readouterr().out
    (noted,) = (out / suite.LEADERBOARD).read_text().splitlines()
    assert json.loads(noted)["vqa_accuracy"] == wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out=x",), "--out is for published protocols; name them with --tasks, or drop --out."),
        (("--data=x", "--examples=0"), "--data is for published protocols"),
        (("--examples=0",), "--examples is for published protocols"),
        (("--share=0/2",), "--share is for published protocols"),
        (("--leaderboard=x",), "--leaderboard is for published protocols"),
        (("--follow",), "--follow is for published protocols"),
        (("--judges=x",), "--judges is for published protocols"),
        (("--compare=x",), "--compare is for published protocols"),
        (("--config=configs/tokenizer_image.py", "--out=x"), "--out is for published protocols"),
        (("--config=configs/tokenizer_image.py", "--json=x"), "--json is not for a tokenizer"),
    ],
)
def test_flags_that_nothing_would_read_are_refused(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])
    assert cli.main(["evaluate", *arguments]) == 2
    assert f"anygpt: {message}" in capsys.readouterr().err


def test_every_new_checkpoint_of_a_run_is_followed_to_its_last(data, tmp_path, monkeypatch):
    config = copy.deepcopy(cli.shipped_config())
    source = pathlib.Path(config.checkpoints)
    with config.unlocked():
        config.checkpoints = str(tmp_path / "checkpoints")
    config.train.steps = 7000
    looks = []

    def look(_):  # while nothing is there the run saves its last checkpoint
        looks.append(1)
        shutil.copytree(source / "7000", tmp_path / "checkpoints" / "7000")

    monkeypatch.setattr(follow.time, "sleep", look)
    follow.run(config, arguments(tasks="vqav2", data=data, out=tmp_path / "out", examples=2))
    assert looks == [1]
    (line,) = (tmp_path / "out" / suite.LEADERBOARD).read_text().splitlines()
    assert json.loads(line)["step"] == 7000 and (tmp_path / "out" / "7000" / "vqav2" / "scores.json").is_file()


def test_pictures_are_judged_by_clip_beside_what_the_tokenizer_leaves(data, tmp_path):
    test_judges_clip = pytest.importorskip("test_judges_clip")
    judges, out = tmp_path / "judges", tmp_path / "out"
    command = ["evaluate", "--tasks=coco_image", f"--data={data}", f"--out={out}", f"--judges={judges}"]
    with pytest.raises(UserError, match=r"Pictures are judged by CLIP: name the folder"):
        suite.run(cli.shipped_config(), arguments(tasks="coco_image", data=data, judges=judges, out=out))
    assert not out.exists()
    (judges / "clip").mkdir(parents=True)
    test_judges_clip.save(judges / "clip")
    assert cli.main(command) == 0
    scores = json.loads((out / "coco_image" / "scores.json").read_text())["scores"]
    assert scores["clip_i"]["original"] == pytest.approx(1.0, abs=1e-5)  # a picture and itself
    assert -1 <= scores["clip_t"]["value"] < scores["clip_i"]["value"] <= 1
    assert {p.suffix for p in (out / "coco_image").iterdir()} == {".json", ".jsonl", ".png"}


def test_speech_takes_another_sentence_of_the_speaker_as_its_voice(data):
    protocol = protocols.by_name("vctk")
    protocol.register(data / "vctk")
    examples = {e.key: e for e in examples_of(protocol)}
    assert len(examples) == 4 and all(e.target for e in examples.values())
    for key, example in examples.items():
        voice = protocol.voice(example.attributes)
        speaker = key.rpartition("/")[2].partition("_")[0]
        assert voice.parent.name == speaker and voice.name != pathlib.Path(example.attributes["file"]).name
