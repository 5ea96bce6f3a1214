"""What a run leaves of itself (logs/runs), and its page: curves, the account of its time, no secret, all inside."""

import argparse
import json
import os
import pathlib
import re
import subprocess
import xml.etree.ElementTree

import pytest
import synthetic
from test_evaluation_report import _Page, sample_run

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import report, report_charts, report_training
from anygpt_jax.evaluation.report_charts import Line
from anygpt_jax.training import run_folder


def test_a_runs_folder_says_what_ran_and_no_secret(tmp_path, monkeypatch):
    config = synthetic.config(tmp_path)
    config.upload = {"api_key": "hunter2", "bucket": "b"}
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.1.2.3:999")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter3")
    monkeypatch.setenv("JAX_AUTH_TOKEN", "hunter4")
    monkeypatch.setattr(
        "sys.argv", ["anygpt", "train", "--config.upload.api_key=hunter2", "--config.train.max_tokens=3"]
    )
    name = run_folder.run_name(1795602857.9)
    assert name == "20261125T103417Z"
    first = run_folder.write_run_folder(tmp_path / "logs", name, config)
    second = run_folder.write_run_folder(tmp_path / "logs", name, config)
    assert (first.name, second.name) == (name, f"{name}-1")
    written = "".join(path.read_text() for path in first.iterdir())
    assert not re.search(r"hunter|10\.1\.2\.3", written)
    found = json.loads((first / "config.json").read_text())
    assert found["train"] == json.loads(config.to_json())["train"]
    assert found["upload"] == {"api_key": run_folder.MASK, "bucket": "b"}
    environment = json.loads((first / "environment.json").read_text())
    assert environment["variables"]["XLA_FLAGS"] == os.environ["XLA_FLAGS"]
    assert environment["command"][-1] == "--config.train.max_tokens=3"
    assert environment["devices"] == {"kind": "cpu", "platform": "cpu", "count": 8}
    assert {"jax", "flax", "orbax-checkpoint"} <= environment["packages"].keys()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"a": [{"api_key": "x", "b": 1}, 2]}, {"a": [{"api_key": run_folder.MASK, "b": 1}, 2]}),
        ({"credentials": {"user": "x"}}, {"credentials": run_folder.MASK}),
        ({"password": ["x"], "other": ["x"]}, {"password": run_folder.MASK, "other": ["x"]}),
        ({"password": "", "secret": None, "api_key": []}, {"password": "", "secret": None, "api_key": []}),
    ],
)
def test_secrets_are_masked_wherever_they_are(values, expected):
    assert run_folder.masked(values) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a --api_key hunter2 --n 3", f"a --api_key {run_folder.MASK} --n 3"),
        ("a --api_key=hunter2 b", f"a --api_key={run_folder.MASK} b"),
        ("a --password --n 3", "a --password --n 3"),
        ("a --max_tokens 3", "a --max_tokens 3"),
    ],
)
def test_a_command_line_is_kept_without_its_secrets(line, expected):
    assert " ".join(run_folder.masked_arguments(line.split(" "))) == expected


def git(folder, *command):
    subprocess.run(
        ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *command], check=True, capture_output=True
    )


def test_the_state_of_the_code_is_that_of_the_packages_own_checkout(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert run_folder.git_state(package) is None
    git(tmp_path, "init", "-q")
    assert run_folder.git_state(package) is None  # somebody else's repository, as around an environment
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    clean = run_folder.git_state(package)
    assert clean["dirty"] is False and clean["diff_bytes"] == 0
    assert re.fullmatch("[0-9a-f]{40}", clean["commit"])
    (package / "__init__.py").write_text("x = 1\n")
    (package / "new.py").write_text("")
    changed = run_folder.git_state(package)
    assert (changed["commit"], changed["dirty"], changed["changed_files"]) == (clean["commit"], True, 2)
    assert changed["diff_bytes"] > 50


def event(what, time, step, run, **more):
    spent = {"step": 0.0, "startup": 10.0, "restore": 0.0, "data": 0.0, "checkpoint": 0.0, "evaluation": 0.0}
    return {"event": what, "time": time, "run": run, "step": step, "spent": spent | more.pop("spent", {}), **more}


def trained_run(workdir: pathlib.Path, evaluated: bool = False) -> pathlib.Path:
    """What training leaves: killed at step 300, resumed at 200, rolled back from 350 to 300; without evaluation."""
    if evaluated:
        sample_run(workdir)
    logs = workdir / "logs"
    logs.mkdir(exist_ok=True)
    rows = []
    for step in range(10, 401, 10):
        loss = {"text": 1 + 300 / (step + 99), "image": 2 + 100 / step, "<odd>": 1.0}
        row = {
            "step": step, "split": "train", "loss": 3.0 + 100 / step, "loss_by_modality": loss, "lr": 1e-3, "mfu": 0.5,
            "grad_norm": 900.0 if step == 200 else 1.0, "tokens_per_second": 9e3, "tokens_per_second_per_chip": 1e3,
            "step_ms": 100.0, "compute_ms": 90.0, "data_ms": 8.0, "checkpoint_ms": 2.0, "data_wait": 0.08,
            "memory_gib": {"device": 5.0, "device_peak": 9.0, "device_limit": 16.0}, "skipped": 3 if step == 350 else 0,
        }  # fmt: skip
        if step == 350:
            row = {name: value for name, value in row.items() if not name.startswith(("loss", "grad"))}
        rows.append(row)
        if step % 100 == 0:
            rows.append({"step": step, "split": "validation", "loss": 4.0, "loss_by_modality": loss, "loss_by_task": {"image_to_text": {"loss": 2.0, "text": 2.0}, "documents": {"loss": 3.0}}})  # fmt: skip
    (logs / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    batches = [344, 345, 349, 345]  # one of them again after a restart, and a line that a kill cut off
    (logs / "skipped.jsonl").write_text("".join(json.dumps({"batch": b}) + "\n" for b in batches) + '{"ba')
    events = [
        event("start", 1e9 + 10, None, "a"), event("resume", 1e9 + 10, 0, "a"),
        event("save", 1e9 + 30, 200, "a", spent={"step": 20.0}), event("log", 1e9 + 40, 300, "a", spent={"step": 30.0}),
        event("start", 1e9 + 60, None, "b"), event("resume", 1e9 + 60, 200, "b"),
        event("log", 1e9 + 70, 300, "b", spent={"step": 10.0}),
        event("rollback", 1e9 + 75, 300, "b", spent={"step": 15.0}, reached=350),
        event("end", 1e9 + 85, 400, "b", spent={"step": 25.0}, reason="finished"),
    ]  # fmt: skip
    (logs / "goodput.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    for name in ("a", "b"):
        folder = logs / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"train": {"steps": 400}, "note": "<b>not a tag</b>"}))
        (folder / "environment.json").write_text(
            json.dumps(
                {
                    "python": "3.11.7",
                    "processes": 4,
                    "packages": {"jax": "0.10.2"},
                    "devices": {"kind": "TPU v5p", "platform": "tpu", "count": 64},
                }
            )
        )
    (logs / "runs" / "b" / "git.json").write_text(json.dumps({"commit": "0123456789abcdef", "dirty": True}))
    return workdir


def page_of(workdir) -> str:
    report.run(None, argparse.Namespace(place=str(workdir), workdir=None))
    return (workdir / "report" / "index.html").read_text()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return page_of(trained_run(tmp_path_factory.mktemp("trained")))


def test_the_page_of_a_run_without_evaluation_is_whole_and_loads_nothing(page):
    parsed = _Page()
    parsed.VOID = (*_Page.VOID, "circle")
    parsed.feed(page)
    assert not parsed.open
    assert not parsed.loads
    assert "url(" not in page and "<script" not in page and "@import" not in page
    assert "<odd>" not in page and "<b>not a tag" not in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        xml.etree.ElementTree.fromstring(svg)
    for absent in ("From every modality", "Every score in detail", "Held-out samples", "Whose material"):
        assert absent not in page


def test_the_page_shows_the_curves_and_marks_restarts(page):
    titles = re.findall(r"<figcaption><b>(.*?)</b>", page)
    assert titles == [
        "Loss", "Validation loss by task", "Learning rate", "Gradient norm", "Throughput", "Model FLOPs utilization",
        "Step time", "Waiting for data", "Memory", "Skipped steps",
    ]  # fmt: skip
    charts = re.findall(r"<svg.*?</svg>", page, re.S)
    # A restart at 200 and a rollback to 300 in every chart but the bar.
    assert [svg.count('class="mark"') for svg in charts] == [2] * (len(charts) - 1) + [0]
    assert "Step 400 of 400" in page


def test_the_page_accounts_for_the_time(page):
    # 85 s: 20 + 10 + 10 of steps that stayed, 10 + 5 done again, 20 of start-up, 10 between the runs.
    table = page.partition("Where the time went")[2]
    rows = re.findall(r'<td>(\w+)</td><td>[^<]*</td><td class="n">([\d.]+) s</td><td class="n">([\d.]+) %</td>', table)
    assert {name: float(seconds) for name, seconds, _ in rows} == {
        "step": 40, "startup": 20, "restore": 0, "data": 0, "checkpoint": 0, "evaluation": 0, "repeated": 15, "down": 10,
    }  # fmt: skip
    assert sum(float(share) for _, _, share in rows) == pytest.approx(100, abs=0.03)
    assert "<b>47.1 %</b> of 1 min 25 s" in table
    assert "150 steps were done twice" in table
    assert "from step 350 to 300" in table and "Skipped steps: 3" in table
    assert "0123456789, changed" in table and "64 × TPU v5p" in table
    assert "no end: killed or running" in table
    widths = [float(w) for w in re.findall(r'class="part [\w-]+" x="[\d.]+" y="0" width="([\d.]+)"', page)]
    assert sum(widths) == pytest.approx(760, abs=0.1)


def test_a_run_with_evaluation_shows_both(tmp_path):
    page = page_of(trained_run(tmp_path, evaluated=True))
    parsed = _Page()
    parsed.VOID = (*_Page.VOID, "circle")
    parsed.feed(page)
    assert not parsed.open
    for words in ("From every modality", "Where the time went", "Gradient norm", "Tokenizers", "What ran"):
        assert words in page


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="anygpt train"):
        page_of(tmp_path)
    with pytest.raises(UserError, match="No folder at"):
        page_of(tmp_path / "nowhere")
    with pytest.raises(UserError, match="Name a run's folder"):
        report.run(None, argparse.Namespace(place=None, workdir=None))


def test_long_lines_are_thinned_and_keep_their_spikes():
    points = [(float(i), 1.0) for i in range(10_000)]
    points[7_777] = (7_777.0, 50.0)
    kept = report_charts.thinned(points)
    assert len(kept) <= report_charts.MOST_POINTS
    assert (7_777.0, 50.0) in kept
    assert kept == sorted(kept)


def test_a_spike_makes_the_scale_logarithmic_and_what_is_not_finite_is_left_out():
    points = [(float(i), 1.0 + i % 3) for i in range(30)]
    plain = report_charts.lines_svg([Line(points, "one-a")], "x", may_be_log=True)
    spiked = report_charts.lines_svg(
        [Line([*points, (30.0, 1e4), (31.0, float("nan"))], "one-a")], "x", may_be_log=True
    )
    ticks = [re.findall(r'text-anchor="end">([^<]+)<', svg) for svg in (plain, spiked)]
    assert ticks == [["0", "1", "2", "3"], ["1", "10", "100", "1,000", "10k"]]
    assert "nan" not in spiked
    assert report_charts.lines_svg([Line([(1.0, float("inf"))], "one-a")], "x") == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (59.4, "59.4 s"), (185, "3 min 5 s"), (7980, "2 h 13 min"), (273_600, "3 d 4 h")],
)
def test_durations(seconds, said):
    assert report_training.duration(seconds) == said
