"""Scores of kept predictions: intervals, comparisons, and keys that are missing, doubled or foreign."""

import json

import numpy as np
import pytest

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import scoring
from anygpt_jax.evaluation.measures import Measure, mean, ratio


def write(folder, rows, name="predictions-0000-of-0001.jsonl"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_keys_that_are_missing_doubled_or_foreign_are_named(tmp_path):
    folder = tmp_path / "p"
    write(folder, [{"key": "a", "text": "x"}, {"key": "b", "text": "y"}])
    lines = scoring.read_lines(folder)
    assert scoring.predictions_of(lines, ["b", "a"], folder, bytes) == ["y", "x"]
    with pytest.raises(UserError, match="lacks predictions of c;"):
        scoring.predictions_of(lines, ["a", "b", "c"], folder, bytes)
    with pytest.raises(UserError, match="predictions of b, which the data do not have"):
        scoring.predictions_of(lines, ["a"], folder, bytes)
    write(folder, [{"key": "b", "text": "z"}], "predictions-0001-of-0002.jsonl")
    with pytest.raises(UserError, match="two predictions of b;"):
        scoring.read_lines(folder)


def test_a_line_that_was_cut_off_is_none_and_another_that_is_no_prediction_is_named(tmp_path):
    write(tmp_path, [{"key": "a", "text": "x"}])
    with (tmp_path / "predictions-0000-of-0001.jsonl").open("a") as f:
        f.write('{"key": "b", "te')
    assert list(scoring.read_lines(tmp_path)) == ["a"]
    (tmp_path / "predictions-0000-of-0001.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match=r"predictions-0000-of-0001\.jsonl:1 is no prediction"):
        scoring.read_lines(tmp_path)


def test_an_example_that_could_not_be_asked_has_no_prediction_and_media_are_read(tmp_path):
    write(tmp_path, [{"key": "a", "error": "unreadable"}, {"key": "b", "file": "b.png"}])
    (tmp_path / "b.png").write_bytes(b"picture")
    assert scoring.predictions_of(scoring.read_lines(tmp_path), ["a", "b"], tmp_path, bytes.decode) == [None, "picture"]


MEAN = Measure("mean", True, lambda *_: np.zeros((0, 1)), mean)
ERRORS = Measure("errors", False, lambda *_: np.zeros((0, 2)), ratio)


def test_the_interval_of_a_mean_is_that_of_the_central_limit():
    rows = np.random.default_rng(3).normal(2.0, 1.5, (400, 1))
    found = scoring.measured(MEAN, rows)
    half = 1.96 * rows.std() / np.sqrt(len(rows))
    assert found.value == pytest.approx(rows.mean())
    assert (found.low, found.high) == (
        pytest.approx(rows.mean() - half, abs=0.15 * half), pytest.approx(rows.mean() + half, abs=0.15 * half),
    )  # fmt: skip


def test_a_ratio_weighs_examples_by_their_length():
    rows = np.array([[1.0, 10.0], [5.0, 5.0]])
    assert scoring.measured(ERRORS, rows).value == pytest.approx(6 / 15)


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, (200, 1))  # examples differ far more than the models do
    better = hard + rng.normal(0.5, 0.5, (200, 1))
    found = scoring.difference(MEAN, hard, better)
    assert found.value == pytest.approx(float((better - hard).mean())) and found.low > 0.3 and found.p < 0.01
    same = scoring.difference(MEAN, hard, hard + rng.normal(0, 0.5, (200, 1)))
    assert same.low < 0 < same.high and same.p > 0.05
    with pytest.raises(ValueError, match="same examples"):
        scoring.difference(MEAN, hard, better[:-1])
