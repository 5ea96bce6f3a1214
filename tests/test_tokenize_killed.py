"""kill -9 of the real `anygpt tokenize` at random moments: run again, every file of the cache is the same."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import tokenize_lines as lines

from anygpt_jax.data import inspect_verify

pytestmark = pytest.mark.slow
KILLS = 6
CONFIG = """
import pathlib, tokenize_lines
def get_config():
    return tokenize_lines.config(pathlib.Path("runs"), modules=("tiny_world", "tokenize_lines"), batch_size=1)
"""


def start(folder, workdir):
    """The command in a process group of its own, with the lines of `folder`/lines as its data."""
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), "LINES": str(folder / "lines")}
    command = [sys.executable, "-m", "anygpt_jax.cli", "tokenize", f"--config={folder / 'config.py'}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def contents(cache):
    return {str(p.relative_to(cache)): p.read_bytes() for p in sorted(cache.rglob("*")) if p.is_file()}


def listing(cache):
    """What a killed process may leave: names and sizes, those of temporary files too."""
    found = set()
    for path in cache.rglob("*"):
        try:
            stat = path.stat()
        except FileNotFoundError:  # renamed meanwhile
            continue
        found.add((path.name, stat.st_size, stat.st_mtime_ns))
    return found


def kill_after(process, cache, changes, seconds):
    """Kills at `seconds` after so many changes of the cache were seen; returns what was being written, or None."""
    before, seen = listing(cache), 0
    while process.poll() is None:
        now = listing(cache)
        seen += now != before
        before = now
        time.sleep(0.0005)  # the process needs the processor more
        if seen >= changes:
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
            process.wait()
            return sorted(p.name for p in cache.rglob("*.tmp-*"))
    return None


def test_killed_at_random_moments_the_cache_is_that_of_an_undisturbed_run(tmp_path, capsys):
    (tmp_path / "config.py").write_text(CONFIG)
    for i in range(24):
        lines.write(tmp_path / "lines", f"file{i:02d}", 60)
    undisturbed = start(tmp_path, tmp_path / "a")
    _, errors = undisturbed.communicate()
    assert undisturbed.returncode == 0, errors
    expected = contents(tmp_path / "a" / "cache")
    assert len(expected) == 24 * 4 + 2

    rng = random.Random(0)
    cache = tmp_path / "b" / "cache"
    cache.mkdir(parents=True)
    killed, in_writing, finished = 0, 0, set()
    for _ in range(KILLS):
        process = start(tmp_path, tmp_path / "b")
        left = kill_after(process, cache, rng.randint(1, 30), rng.choice([0, 0, rng.uniform(0, 0.02)]))
        _, errors = process.communicate()
        if left is None:  # it was done before: the cache is whole, and is begun again
            assert process.returncode == 0, errors
            assert contents(cache) == expected
            for path in sorted(cache.rglob("*.json"))[::2]:
                path.unlink()
            continue
        killed += 1
        in_writing += bool(left)
        finished.add(len(list(cache.glob("*/*/*.json"))))
        assert not (cache / "manifest.json").exists() or contents(cache) == expected
    last = start(tmp_path, tmp_path / "b")
    _, errors = last.communicate()
    assert last.returncode == 0, errors
    assert contents(cache) == expected
    assert not list(inspect_verify.problems(cache))
    with capsys.disabled():
        print(f"killed {killed}, within writing {in_writing}, with {sorted(finished)} of 24 shards finished")
    assert killed >= KILLS // 2
    assert in_writing >= 1
    assert len(finished) >= 3
