"""The miniature study: intervals over seeds, its tables, and arms that see the same tokens of each task."""

import importlib.util
import json
import math
import pathlib

import pytest

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import study

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"


def config_module():
    spec = importlib.util.spec_from_file_location("study_config", CONFIGS / "study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(arm, seed, score, chance=0.1, dialogues=None):
    pair = {"score": score, "chance": chance}
    never = {"score": score / 2, "via_text": score, "chance": chance}
    matrix = {"image": {"text": pair, "speech": never}, "text": {"image": pair}}
    return {"arm": arm, "seed": seed, "matrix": matrix, "validation": {"image_to_text": score}, "dialogues": dialogues}


def test_interval_is_students_of_the_mean_over_seeds():
    mean, low, high = study.interval([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.302653 (any table), the standard error 1/√3.
    assert mean == 2 and high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)
    assert low == pytest.approx(4 - high)
    assert math.isnan(study.interval([1.0])[1])


def test_differences_are_of_the_same_seeds_alone():
    first = {s: row("image_to_text", s, v) for s, v in {0: 0.5, 1: 0.6}.items()}
    second = {s: row("any_to_any", s, v) for s, v in {1: 0.9, 2: 0.1}.items()}
    assert study.differences(first, second, study.score("image_to_text")) == [pytest.approx(0.3)]


def test_tables_say_what_was_measured(tmp_path):
    arms = {"any_to_any": 0.9, "pairs_alone": 0.8, "image_pair": 0.7, "image_to_text": 0.6, "text_to_image": 0.5}
    path = tmp_path / "results.jsonl"
    lines = [json.dumps(row(arm, seed, value + seed / 100)) for arm, value in arms.items() for seed in range(3)]
    path.write_text("\n".join(lines))
    read = study.read(path)
    told = study.trained(read, study.score).splitlines()
    assert len(told) == 4
    cells = [cell.strip() for cell in told[2].split("|")]
    assert cells[1:3] == ["image → text", "0.610 (0.585 to 0.635)"]
    assert (
        cells[6] == "**+0.200 (+0.200 to +0.200)**" and cells[7] == "**+0.300 (+0.300 to +0.300)**"
    )  # every seed says the same
    assert "0.450" not in told[2]
    never = study.never_trained(read).splitlines()[2]
    assert "image → speech" in never and "0.100" in never and "0.455" in never and "0.910" in never
    path.write_text("\n".join([*lines, lines[0]]))
    with pytest.raises(UserError, match=r"two lines of any_to_any, seed 0"):
        study.read(path)


def test_a_study_without_the_full_arms_has_tables_too(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(row("image_to_text", seed, 0.5)) + "\n" for seed in range(3)))
    study.main([str(path)])
    told = capsys.readouterr().out
    assert "| image → text | 0.500 (0.500 to 0.500) | – |" in told
    assert "| pair | chance |\n| --- | --- |\n\n" in told  # of pairs never trained there is none


@pytest.mark.parametrize("arguments", [[], ["nowhere.jsonl"]])
def test_without_results_there_is_a_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        study.main(arguments)
    assert stop.value.code == 2 and "RESULTS" in capsys.readouterr().err


def test_arms_see_the_same_tokens_of_each_task():
    module = config_module()
    whole = module.get_config()
    of_whole = {task: module.MIXTURE[task] * module.TOKENS[task] for task in module.MIXTURE}
    for arm, tasks in module.ARMS.items():
        c = module.get_config(arm)
        assert set(c.mixture) == set(tasks) and c.model.to_dict() == whole.model.to_dict()
        total = sum(module.MIXTURE[t] * module.TOKENS[t] for t in tasks)
        for task in tasks:
            share = c.mixture[task] * module.TOKENS[task] / total  # of the arm's tokens
            in_whole = whole.train.steps * of_whole[task] / sum(of_whole.values())
            assert c.train.steps * share == pytest.approx(in_whole, rel=0.01)
    with pytest.raises(ValueError, match="any_to_any"):
        module.get_config("everything")
