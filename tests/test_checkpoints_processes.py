"""Two real processes (gloo) write one checkpoint together, each its own files and their checksums, and check it together."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import checkpoint_world as world
import pytest
from compiling import QUICK

WORKER = pathlib.Path(__file__).with_name("checkpoint_processes.py")


def together(folder, what, count=2):
    """What each process answers."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [[sys.executable, str(WORKER), str(i), str(count), str(port), str(folder), what] for i in range(count)]
    environment = os.environ | {
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count=2",
        "PYTHONPATH": f"{WORKER.parent}:{WORKER.parents[1]}",
    }
    running = [
        subprocess.Popen(one, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for one in command
    ]
    outputs = [process.communicate(timeout=180) for process in running]
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors[-4000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs], [errors for _, errors in outputs]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes") / "run"
    answers, _ = together(folder, "write")
    for process, answer in enumerate(answers):
        assert answer == {
            "summed": [f"ocdbt.process_{process}"],  # and nothing of the other's
            "newest": 3, "same": True, "progress": {"batch_offset": 3},
            "refused": f"{folder} holds no whole checkpoint of step 99.",
        }  # fmt: skip
    return folder


@pytest.mark.slow
def test_each_process_sums_its_own_files(written):
    assert world.held(written) == ["2", "3"]
    listed = json.loads((written / "3" / "checksums.json").read_text())["files"]
    on_disk = {str(p.relative_to(written / "3")) for p in (written / "3").rglob("*") if p.is_file()}
    assert set(listed) == on_disk - {"checksums.json", "commit_success.txt"}  # the processes' own lists are merged in
    for process in (0, 1):
        assert any(f"params/ocdbt.process_{process}/d/" in name for name in listed)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_damage_in_either_processs_files_is_found_by_both(written, tmp_path, process):
    run = tmp_path / "run"
    shutil.copytree(written, run)
    path = next((run / "3").glob(f"params/ocdbt.process_{process}/d/*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    answers, errors = together(run, "read")
    assert [(answer["newest"], answer["same"]) for answer in answers] == [(2, True), (2, True)]
    assert world.held(run) == ["2", "3.damaged"]
    for text in errors:
        assert f"params/ocdbt.process_{process}/d/{path.name} is not what was written" in text


@pytest.mark.slow
def test_one_process_reads_what_two_wrote_and_two_a_mirrors_copy(written, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(written, run)
    [answer], _ = together(run, "read", count=1)
    assert answer["same"]
    answers, _ = together(tmp_path / "two", "mirror")
    assert [answer["newest"] for answer in answers] == [3, 3]
    assert world.held(tmp_path / "two-mirror") == ["1", "2", "3"]
    shutil.rmtree(tmp_path / "two")
    answers, _ = together(tmp_path / "two", "mirror_read")
    assert [(answer["newest"], answer["same"]) for answer in answers] == [(3, True), (3, True)]  # both from the mirror
    assert world.held(tmp_path / "two") == []
