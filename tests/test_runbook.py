"""The runbook says what the program says, and its first job is one that `anygpt launch` takes."""

import ast
import pathlib
import re
import shlex

import pytest

from anygpt_jax import cli

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "runbook.md").read_text()
FLAT = " ".join(TEXT.split())
SAYING = ("training", "data", "launching")  # and multihost.py

QUOTED = [
    "6,798,974,976 parameters on mesh {",
    "Resuming at step 12000 of 81000.",
    "Compiled and the first step done in 213.4 s.",
    "Parameters, optimizer and gradients take 93.1 GiB of a TPU v5p, which has ",
    "Step 12345 is skipped: loss nan, gradient norm nan (1 in a row, 3 in all).",
    "10 bad steps in a row: back from step 12354 to 12000, and on with the batches after them.",
    "Training does not get past step 12000: after 3 returns to it 10 steps in a row are bad again (",
    "Training waits for data: 23 % of the time of the last steps up to 4000. This host reads more slowly than the devices "
    "compute: ",
    "Stopped by signal 15, 2.1 s after it came, after step 12345; step 12345 is saved. Run the same command to go on.",
    "Restart 7 of at most 100 on other machines: it is SUSPENDED.",
    "is damaged: …. It is set aside beside the others, with .damaged to its name; nothing of it is deleted.",
    "The disk is full: checkpoint 12000 could not be written to ",
    "The token cache is not the same on all 16 processes: 3 differs from the others.",
    "config.train is not what the checkpoint was made with",
    "holds no whole checkpoint",
]


def messages():
    """The program's texts, as lists of what stands between the values that are put in."""
    paths = [p for room in SAYING for p in sorted((ROOT / "anygpt_jax" / room).glob("*.py"))]
    for path in [*paths, ROOT / "anygpt_jax" / "multihost.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                values = [str(v.value) if isinstance(v, ast.Constant) else None for v in node.values]
                yield [part for part in "".join("\0" if v is None else v for v in values).split("\0") if part]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = re.split(r"%[-0-9.,]*[a-z]", node.value)
                yield [part.replace("%%", "%") for part in parts if part]


def share(quoted, parts):
    """How much of a quotation a message's own words are, 0 if it is not that message."""
    if any(quoted in part for part in parts):
        return 1.0
    at, words = 0, 0
    for part in parts:
        end = quoted.find(part, at)
        if end < 0:  # the quotation ends within this part, or is another message's
            ends = [len(quoted) - i for i in range(at, len(quoted) + 1) if part.startswith(quoted[i:])]
            return (words + ends[0]) / len(quoted) if ends else 0.0
        at, words = end + len(part), words + len(part)
    return words / len(quoted)


@pytest.fixture(scope="module")
def texts():
    return list(messages())


@pytest.mark.parametrize("quoted", QUOTED)
def test_quotations_are_what_the_program_says(quoted, texts):
    assert quoted in FLAT
    assert max(share(quoted, parts) for parts in texts) > 0.3


def test_another_text_is_not_said(texts):
    other = "Step 12345 is left out: loss nan, gradient norm nan (1 in a row, 3 in all)."
    assert max(share(other, parts) for parts in texts) <= 0.3


def test_launching_has_the_words_of_the_first_job(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = {name: shlex.split(value) for name, value in re.findall(r'^(JOB|WHERE)="(.*)"$', TEXT, re.MULTILINE)}
    assert cli.main(["launch", *words["JOB"], *words["WHERE"], "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "queued-resources create anygpt-7b " in shown
    assert "--accelerator-type=v5p-128" in shown
