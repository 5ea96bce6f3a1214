"""A disk that fills up while a checkpoint is written in the background: a small file system in memory, or a file limit."""

import os
import pathlib
import re
import subprocess
import sys

import checkpoint_world as world
import pytest
import synthetic
from compiling import QUICK

from anygpt_jax.errors import UserError
from anygpt_jax.training.checkpoints import Checkpoints

SENTENCE = r"^The disk is full: checkpoint 2 could not be written to .*/run\. Older checkpoints are as they were; free "


@pytest.fixture
def small_disk(tmp_path):
    """4 MB in memory, if this machine lets us mount it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill_up(run):
    """Two small checkpoints; the next one has 6 MB, on a disk of 4."""
    world.write(run, [0, 1], world.settings(last=2))


@pytest.mark.parametrize("when", ["next save", "wait", "close"])
def test_a_full_disk_is_said_once_and_older_checkpoints_stay(small_disk, when):
    run = small_disk / "run"
    fill_up(run)
    checkpoints = Checkpoints(run, world.settings(last=1))  # the older two would go once the new one is final
    checkpoints.save(2, world.state(2, 1 << 16), world.CONFIG, synthetic.vocabulary())
    said = {
        "next save": lambda: checkpoints.save(3, world.state(3), world.CONFIG, synthetic.vocabulary()),
        "wait": checkpoints.wait,
        "close": checkpoints.close,
    }[when]
    with pytest.raises(UserError, match=SENTENCE):
        said()
    if when != "close":
        assert checkpoints.latest() == 1
        checkpoints.close()
    left = [name for name in world.held(run) if not name.isdigit()]
    assert left == ["2.orbax-checkpoint-tmp"]
    # The next start frees what was half written, and goes on from the newest.
    again = Checkpoints(run, world.settings(last=3))
    assert again.newest_whole() == 1
    again.save(2, world.state(2), world.CONFIG, synthetic.vocabulary())
    again.close()
    assert world.held(run) == ["0", "1", "2"]
    whole = Checkpoints(run, read_only=True)
    assert [whole.newest_whole(), whole.latest()] == [2, 2]
    whole.close()


LIMITED = """
import resource, sys
sys.path[:0] = sys.argv[2:4]
import checkpoint_world as world, synthetic
from anygpt_jax import cli
from anygpt_jax.training.checkpoints import Checkpoints
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

class Verb:
    NEEDS_CONFIG = False
    def run(config, args):
        checkpoints = Checkpoints(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        checkpoints.save(2, world.state(2, 1 << 16), world.CONFIG, synthetic.vocabulary())
        checkpoints.close()

sys.modules["verb"] = Verb
cli.VERBS["fill"] = ("verb", "")
sys.exit(cli.main(["fill"]))
"""


def test_a_file_limit_ends_the_command_with_the_sentence_and_status_2(tmp_path):
    """As a quota does. The library's own report of the thread that failed comes before it."""
    world.write(tmp_path / "run", [1])
    here = pathlib.Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "run"), str(here), str(here.parent)],
        capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": QUICK},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    # Threads that are being stopped may have the last word.
    assert any(re.match(SENTENCE, line.removeprefix("anygpt: ")) for line in done.stderr.splitlines()), done.stderr
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.newest_whole() == 1
    checkpoints.close()
