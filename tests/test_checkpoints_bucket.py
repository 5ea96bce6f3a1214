"""gs:// paths by the same code: a process of its own, whose bucket is a folder (`bucket.py`)."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from compiling import QUICK

HERE = pathlib.Path(__file__).parent


@pytest.mark.slow
def test_checkpoints_in_a_bucket_and_a_mirror_in_one(tmp_path):
    done = subprocess.run(
        [sys.executable, str(HERE / "checkpoint_bucket.py"), str(tmp_path)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}", "XLA_FLAGS": QUICK},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer.pop("uploads") > 20  # by TensorStore's own driver
    assert answer == {
        "written": ["1", "3"],
        "committed": True,
        "newest": [3, 3],
        "newest beside an unfinished one": [3, 3],
        "cleaned": ["3", "5"],
        "mirrored": ["2", "3"],
        "newest of the mirror": [3, 3],
        "newest whole of the mirror": [2, 2],
        "set aside": ["2", "3.damaged"],
        "inspected": 0,
        "nowhere": "No checkpoints at gs://bucket/nowhere; run `anygpt train` first or name another workdir.",
    }
    found = json.loads((tmp_path / "inspect.json").read_text())
    assert [(one["name"], one["status"]) for one in found["checkpoints"]] == [
        ("2", "whole"),
        ("3.damaged", "set aside"),
    ]
