"""The batch script, run by bash with stand-ins for Slurm's programs: who is started, and when the job comes back."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

from anygpt_jax import cli
from anygpt_jax.launching.policy import Verdict, judge

ROOT = pathlib.Path(__file__).parents[1]

# As slurm.schedmd.com/srun.html has it: the highest exit code of all tasks; with --kill-on-bad-exit the tasks that have
# not ended by then are killed (137).
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] && shift
highest=0
i=0
for code in $CODES; do
  if [ "$code" = killed ]; then got=137; else SLURM_PROCID=$i CODE=$code "$@"; got=$?; fi
  [ "$got" -gt "$highest" ] && highest=$got
  i=$((i + 1))
done
exit "$highest"
"""
STAND_INS = {
    "srun": SRUN,
    "anygpt": '#!/bin/bash\necho "$SLURM_PROCID $*" >> "$CALLS/anygpt"\nexit "$CODE"\n',
    "scontrol": '#!/bin/bash\necho "$*" >> "$CALLS/scontrol"\n',
    "sbatch": '#!/bin/bash\ncat > "$CALLS/submitted"\necho Submitted batch job 7\n',
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder in which the stand-ins write what they were told."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in STAND_INS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path))
    return tmp_path


def launch(workdir, *arguments):
    config = f"--config={ROOT / 'configs' / 'quickstart.py'}"
    return cli.main(["launch", config, f"--workdir={workdir}", "--target=slurm", "--name=a-run", *arguments])


def run(script, codes, restarts=0):
    """The exit code of the batch script, whose tasks end with these codes."""
    environment = {**os.environ, "CODES": codes, "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    return subprocess.run(["bash", str(script)], env=environment, check=False).returncode


@pytest.mark.parametrize(
    ("codes", "first", "restarts"),
    [
        ("0 0", [0, 0], 0),
        ("143 143", [143, 143], 0),  # saved, and is to go on
        ("1 killed", [1, None], 2),
        ("killed killed", [None, None], 0),
        ("2 killed", [2, None], 0),  # srun itself tells 137
        ("killed 2", [None, 2], 0),
        ("1 killed", [1, None], 3),  # as often as it may be
    ],
)
def test_it_comes_back_as_every_job_does(codes, first, restarts, slurm, monkeypatch):
    monkeypatch.chdir(slurm)
    assert launch("a run", "--nodes=2", "--max-restarts=3") == 0
    assert run(slurm / "submitted", "2 2") == 2  # an earlier start, whose mark must not count
    (slurm / "anygpt").unlink()
    code = run(slurm / "submitted", codes, restarts)
    verdict = judge(first, restarts, 3)
    assert (slurm / "scontrol").is_file() == (verdict is Verdict.RESTART)
    assert (code == 0) == (verdict is Verdict.DONE)
    if verdict is Verdict.RESTART:
        assert (slurm / "scontrol").read_text() == "requeue 7\n"
    (config,) = (slurm / "a run" / "logs" / "launch" / "a-run").glob("config-*.py")
    command = f"train --config={config.relative_to(slurm)}"
    ran = [i for i, of_task in enumerate(codes.split()) if of_task != "killed"]
    told = (slurm / "anygpt").read_text().splitlines() if ran else []
    assert told == [f"{i} {command}" for i in ran]


def test_the_script(slurm, capsys):
    workdir = slurm / "run"
    more = ("--gpus-per-node=4", "--sbatch=--partition=long", "--sbatch=--comment=two words", "--grace=120",
            "--config.train.batch_size=12")  # fmt: skip
    assert launch(workdir, "--nodes=3", *more, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert not workdir.exists()
    assert launch(workdir, "--nodes=3", *more) == 0
    assert capsys.readouterr().out == "Submitted batch job 7\n"
    script = (slurm / "submitted").read_text()
    directives = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert directives == [
        "--job-name=a-run", "--nodes=3", "--ntasks-per-node=1", "--requeue", "--open-mode=append",
        "--dependency=singleton", "--signal=TERM@120", f"--output={workdir}/logs/launch/a-run/slurm-%j.txt",
        "--partition=long",
        "'--comment=two words'", "--gpus-per-node=4",
    ]  # fmt: skip
    assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3" in script
    (path,) = workdir.rglob("config-*.py")
    config = path.read_text()
    loaded = cli.load_config(str(path))
    assert (loaded.multihost, loaded.mesh.fsdp) == (True, 12)

    (slurm / "submitted").unlink()
    path.unlink()
    subprocess.run(["bash", "-e"], input=shown, text=True, check=True, capture_output=True)  # does the same
    assert (slurm / "submitted").read_text() == script
    assert path.read_text() == config


def test_a_task_outlives_the_signal_on_which_it_saves(slurm):
    (slurm / "bin" / "anygpt").write_text(
        '#!/bin/bash\ntrap \'sleep 1; touch "$CALLS/saved"; exit 143\' TERM\ntouch "$CALLS/started"\n'
        "while true; do sleep 0.05; done\n"
    )
    (slurm / "bin" / "srun").write_text('#!/bin/bash\nshift\nexec "$@"\n')
    assert launch(slurm / "run") == 0
    words = (slurm / "submitted").read_text().splitlines()
    (line,) = [line for line in words if line.startswith("srun ")]
    # A session of its own is a group of its own: bash and anygpt get the signal alike, as in a step of Slurm.
    task = subprocess.Popen(["bash", "-c", f"failed={slurm}/mark; exec {line}"], start_new_session=True)
    until = time.monotonic() + 30
    while not (slurm / "started").exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(task.pid, signal.SIGTERM)
    assert task.wait(30) == 143
    assert (slurm / "saved").exists()
    assert not (slurm / "mark").exists()


def test_jobs_of_one_workdir_leave_each_other_alone(slurm):
    environment = {**os.environ, "CODES": "2", "SLURM_JOB_ID": "7"}
    scripts = []
    for name, seed in (("a-run", 1), ("a-run", 2), ("another", 1)):
        assert launch(slurm / "run", f"--name={name}", f"--config.seed={seed}") == 0
        scripts.append((slurm / "submitted").read_text())
    seeds = []
    for script in scripts:
        subprocess.run(["bash"], input=script, text=True, env=environment, check=False)
        config = (slurm / "anygpt").read_text().splitlines()[-1].partition("--config=")[2]
        seeds.append(cli.load_config(config).seed)
    assert seeds == [1, 2, 1]
    # The first one's user error, and the same script as another job, which requeues itself when it is killed.
    (slurm / "scontrol").unlink(missing_ok=True)
    other = environment | {"CODES": "killed", "SLURM_JOB_ID": "8"}
    subprocess.run(["bash"], input=scripts[0], text=True, env=other, check=False)
    assert (slurm / "scontrol").read_text() == "requeue 8\n"
    marks = sorted(str(path.relative_to(slurm / "run")) for path in (slurm / "run").rglob("user_error-*"))
    assert marks == ["logs/launch/a-run/user_error-7", "logs/launch/another/user_error-7"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--nodes=0",), "--nodes and --grace must be at least 1"),
        (("--nodes=2", "--job=evaluate"), "Several processes share the work of `evaluate` with --tasks only"),
        (("--nodes=2", "--job=tokenize"), "--job=tokenize would run 2 times over"),
        (("--accelerator=v5p-8",), "--target=slurm has no TPUs"),
        (("--nodes=2", "--gpus-per-node=4"), "train.batch_size=2 must be a multiple"),
        (("--gpus-per-node=4", "--config.mesh.fsdp=2"), "config.mesh is 2 devices, and there are 4"),
        (("--gpus-per-node=2", "--vocab-size=50000", "--config.model.n_heads=7"), "n_heads"),
    ],
)
def test_what_cannot_be_is_said(arguments, said, tmp_path, capsys):
    assert launch(tmp_path / "run", *arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_sbatch_refuses(slurm, capsys):
    (slurm / "bin" / "sbatch").write_text("#!/bin/bash\necho sbatch: error: invalid partition >&2\nexit 1\n")
    assert launch(slurm / "run") == 2
    assert "sbatch did not take the job: sbatch: error: invalid partition" in capsys.readouterr().err


def test_a_config_that_is_locked_is_left_alone(slurm, capsys):
    """A modality tokenizer's, which has no `multihost` of its own."""
    config = f"--config={ROOT / 'configs' / 'tokenizer_image.py'}"
    line = ["launch", config, f"--workdir={slurm}", "--target=slurm", "--name=a-run", "--dry-run"]
    assert cli.main(line) == 0
    assert "anygpt train --config=" in capsys.readouterr().out
