"""Queued resources: the launcher against a `gcloud` whose cloud goes wrong (gcloud_stand_in.py), and what hosts run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import gcloud_stand_in
import ml_collections
import pytest
from gcloud_stand_in import Cloud

from anygpt_jax.errors import UserError
from anygpt_jax.launching import queued_resources, shell, tpu_vm, tpu_vm_hosts, tpu_vm_launcher
from anygpt_jax.launching.job import Job
from anygpt_jax.launching.shell import Command, Outcome
from anygpt_jax.planning.accelerators import Accelerator

FLAGS = ("--zone=z", "--image=us-docker.pkg.dev/p/r/anygpt:1", "--bucket=b", "--poll=0")


class Killed(BaseException):
    """kill -9 of the launcher."""


def job(accelerator: str = "v5e-8", slices: int = 1, restarts: int = 100, steps: int = 6, **more) -> Job:
    config = ml_collections.ConfigDict({"workdir": "runs/x", "multihost": True, "train": {"steps": steps}})
    return Job(
        "x-7b", "train", config, ("--json", "a b.json"), Accelerator.parse(accelerator, slices), restarts, **more
    )


def arguments(*flags: str, dry_run: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    tpu_vm.add_arguments(parser)
    parser.set_defaults(dry_run=dry_run)
    return parser.parse_args([*FLAGS, *flags])


def launch(cloud: Cloud, monkeypatch, of: Job, *flags: str, kill: random.Random | None = None) -> Launched:
    """Runs the launcher against the cloud, as a function; with `kill`, it may be killed around any command."""

    def call(command: Command, seconds: float) -> Outcome:
        if kill and kill.random() < 0.02:
            raise Killed
        outcome = Outcome(*cloud.answer(list(command.argv)))
        if kill and kill.random() < 0.02:
            raise Killed
        return outcome

    for module in (queued_resources, tpu_vm, tpu_vm_launcher):
        monkeypatch.setattr(module, "call", call)
    launcher = tpu_vm.Launcher(tpu_vm.resource(of, arguments(*flags)), 0.0)
    try:
        tpu_vm.keep_at_work(launcher)
    except UserError as e:
        return Launched(launcher, str(e))
    except Killed:
        return Launched(launcher, "killed")
    return Launched(launcher, "")


@dataclasses.dataclass
class Launched:
    launcher: tpu_vm.Launcher
    error: str  # of a UserError; "" if the job is done


def world(seed: int) -> tuple[Cloud, Job]:
    """A random one: a small pod, an unreliable network, a few mishaps."""
    rng = random.Random(seed)
    accelerator, workers = rng.choice((("v5e-8", 1), ("v5e-16", 4), ("v5p-16", 2)))
    slices = rng.choice((1, 1, 2, 3))
    cloud = Cloud(
        seed,
        slices,
        workers,
        steps=rng.randint(1, 12),
        faults=rng.choice((0.0, 0.05, 0.3)),
        mishaps=rng.choice((0, 1, 4, 12)),
        config_error=rng.random() < 0.1,
        quota=rng.choice(("", "", "", "", "", "", "", "", "create", "later")),
    )
    return cloud, job(accelerator, slices, restarts=rng.choice((0, 3, 100)))


@pytest.mark.parametrize("part", range(8))
def test_whatever_happens(part: int, monkeypatch, capsys) -> None:
    ends = []
    for seed in range(part * 16, part * 16 + 16):
        cloud, of = world(seed)
        launched = launch(cloud, monkeypatch, of)
        assert not cloud.violations, (seed, cloud.violations)
        assert cloud.resource is None and not launched.launcher.left, (seed, launched.error)
        assert cloud.deletes == list(range(1, cloud.generation + 1)), seed  # each was deleted before the next was made
        again = max(cloud.generation - 1, 0) + sum(run > 0 for _, run in cloud.starts)
        assert again <= launched.launcher.restarts <= of.max_restarts, seed
        error = launched.error
        if cloud.quota:
            assert "no quota" in error and not cloud.starts, (seed, error)
        elif cloud.config_error and "Given up" not in error and "could start it" not in error:
            assert "user error" in error, (seed, error)
        elif error:
            assert (cloud.mishaps < 12 and cloud.happened) or cloud.faults, (seed, error)
            assert f"Given up after {of.max_restarts} restarts" in error or "No worker" in error, (seed, error)
        else:
            assert cloud.steps == 0, seed
        ends.append(error)
    assert "" in ends  # jobs get done


@pytest.mark.parametrize("part", range(4))
def test_the_launcher_is_killed_and_comes_to_the_same_end(part: int, monkeypatch, capsys) -> None:
    kills = 0
    for seed in range(1000 + part * 20, 1000 + part * 20 + 20):
        cloud, of = world(seed)
        kill = random.Random(seed)
        while (launched := launch(cloud, monkeypatch, of, kill=kill)).error == "killed":
            kills += 1
            assert launched.launcher.restarts <= of.max_restarts
        assert not cloud.violations, (seed, cloud.violations)
        if "No worker answers" in launched.error:  # they were lost before this launcher was there: it cannot know
            assert launched.launcher.left and "queued-resources delete" in launched.error
            continue
        assert cloud.resource is None and not launched.launcher.left, (seed, launched.error)
        assert cloud.deletes == list(range(1, cloud.generation + 1)), seed
        if not launched.error:
            assert cloud.steps == 0, seed
        elif not cloud.quota and "user error" not in launched.error:
            assert "Given up" in launched.error or "No worker" in launched.error, (seed, launched.error)
    assert kills > 5


def test_a_job_without_mishaps(monkeypatch, capsys) -> None:
    cloud = Cloud(steps=5, slices=2, workers=4)
    launched = launch(cloud, monkeypatch, job("v5e-16", 2))
    assert (launched.error, cloud.resource, cloud.starts, launched.launcher.restarts) == ("", None, [[1, 0]], 0)
    assert "step, " in capsys.readouterr().out  # the first worker's log


def only(cloud: Cloud, mishap: str, times: int = 1) -> Cloud:
    """With this mishap alone, as soon as it can be."""
    left = [times]

    def happens(rng: random.Random, what: str) -> bool:
        left[0] -= (it := what == mishap and left[0] > 0)
        return it

    cloud._mishap = happens  # type: ignore[method-assign]
    return cloud


@pytest.mark.parametrize(
    ("mishap", "starts"),
    [
        ("preempted", [[2, 0]]),
        ("no capacity", [[2, 0]]),
        ("a worker lost", [[2, 0]]),  # it was lost before the first start
        ("a process died", [[1, 0], [1, 1]]),  # on the machines that are there
    ],
)
def test_one_mishap(mishap: str, starts: list[list[int]], monkeypatch, capsys) -> None:
    cloud = only(Cloud(workers=4), mishap)
    launched = launch(cloud, monkeypatch, job("v5e-16"))
    assert (launched.error, cloud.starts, launched.launcher.restarts) == ("", starts, 1)


def test_restarts_end(monkeypatch, capsys) -> None:
    cloud = only(Cloud(workers=2), "a process died", 10)
    error = launch(cloud, monkeypatch, job("v5p-16", restarts=3)).error
    assert error.startswith("Given up after 3 restarts: t1v-1-0-w-") and cloud.resource is None
    assert cloud.starts == [[1, 0], [1, 1], [1, 2], [1, 3]]


def test_a_user_error_is_not_tried_again(monkeypatch, capsys) -> None:
    cloud = Cloud(workers=2, config_error=True)
    error = launch(cloud, monkeypatch, job("v5p-16")).error
    assert "ended with 2, a user error" in error and cloud.starts == [[1, 0]] and cloud.resource is None


@pytest.mark.parametrize("when", ["create", "later"])
def test_no_quota_is_not_waited_for(when: str, monkeypatch) -> None:
    cloud = Cloud(quota=when)
    error = launch(cloud, monkeypatch, job("v5p-16")).error
    assert "no quota" in error and "TPUV5PPerProject" in error and cloud.generation <= 1 and cloud.resource is None


def test_another_config_of_the_same_name_is_refused(monkeypatch, capsys) -> None:
    cloud = Cloud(workers=1, steps=10**6)
    kill = random.Random(3)
    while [1, 0] not in cloud.starts:
        launch(cloud, monkeypatch, job(), kill=kill)
    launch(cloud, monkeypatch, job(), kill=random.Random(5))  # the same config goes on
    for other, what in ((job(steps=7), "another config"), (job("v5e-4"), "1 × v5litepod-8, not as 1 × v5litepod-4")):
        error = launch(cloud, monkeypatch, other).error
        assert what in error and "End it first: two jobs must not write one workdir." in error
        assert error.endswith("queued-resources delete x-7b --zone=z --quiet --force --async")
    assert cloud.resource is not None and cloud.starts == [[1, 0]] and not cloud.violations


def test_what_somebody_else_deleted_stays_deleted(monkeypatch, capsys) -> None:
    cloud = Cloud(workers=1, steps=10**6)
    answer = cloud.answer

    def and_then(argv: list[str]) -> tuple[int, str, str]:
        if cloud.calls == 60:
            cloud.resource = None
        return answer(argv)

    monkeypatch.setattr(cloud, "answer", and_then)
    assert "Somebody else has deleted" in launch(cloud, monkeypatch, job()).error and cloud.generation == 1


@pytest.mark.parametrize(
    "refusal",
    [
        "You do not currently have an active account selected.",
        "PERMISSION_DENIED: Permission 'tpu.queuedresources.get' denied on 'projects/p/locations/z'",
        "NOT_FOUND: Resource 'projects/p' was not found",  # that is no answer to whether the queued resource is there
        "UNAVAILABLE: The service is currently unavailable.",  # for ever
        "",
    ],
)
def test_answers_that_are_none(refusal: str, monkeypatch) -> None:
    cloud = Cloud()
    error = f"ERROR: (gcloud.compute.tpus.queued-resources.describe) {refusal}"
    calls = []
    monkeypatch.setattr(cloud, "answer", lambda argv: calls.append(argv) or (1, "", error))
    said = launch(cloud, monkeypatch, job()).error
    assert refusal in said
    assert len(calls) == (queued_resources.TRIES if refusal.startswith("UNAV") or not refusal else 1)
    assert {argv[4] for argv in calls} == {"describe"}


DENIED = "ERROR: (gcloud.compute.tpus.queued-resources.ssh) PERMISSION_DENIED: Permission denied on 'projects/p'"


@pytest.mark.parametrize("verb", ["describe", "ssh", "delete", "create"])
@pytest.mark.parametrize("for_ever", [False, True])
def test_refusals_are_not_believed_at_once_after_days(verb: str, for_ever: bool, monkeypatch, capsys) -> None:
    cloud = only(Cloud(workers=1, steps=30), "preempted")
    answer, refused = cloud.answer, []

    def refuses(argv: list[str]) -> tuple[int, str, str]:
        known = cloud.happened if verb in ("delete", "create") else cloud.starts
        if argv[4] == verb and known and (for_ever or len(refused) < 4):
            refused.append(argv)
            return 1, "", DENIED
        return answer(argv)

    happens = cloud._mishap

    def mishap(rng: random.Random, what: str) -> bool:
        if found := bool(cloud.starts) and happens(rng, what):
            cloud.happened.append(what)
        return found

    monkeypatch.setattr(cloud, "answer", refuses)
    monkeypatch.setattr(cloud, "_mishap", mishap)
    launched = launch(cloud, monkeypatch, job())
    assert len(refused) >= (queued_resources.TRIES if for_ever else 4)
    if for_ever:
        assert "PERMISSION_DENIED" in launched.error and "queued-resources delete" in launched.error
    else:
        assert launched.error == "" and cloud.steps == 0 and cloud.resource is None


@pytest.mark.parametrize("ours", [True, False])
def test_ssh_that_never_works(ours: bool, monkeypatch, capsys) -> None:
    """Slices that this launcher asked for are given back; those that it found may be at work."""
    cloud = Cloud(workers=1, steps=10**6)
    if not ours:
        kill = random.Random(3)
        while [1, 0] not in cloud.starts:
            launch(cloud, monkeypatch, job(), kill=kill)
    monkeypatch.setattr(cloud, "_ssh", lambda *_: (255, "", "no route to host"))
    launched = launch(cloud, monkeypatch, job())
    assert "firewall" in launched.error and "no route to host" in launched.error
    assert (cloud.resource is None) == ours
    assert ("queued-resources delete" in launched.error) == (not ours) == launched.launcher.left


def test_an_image_that_no_worker_can_run(monkeypatch, capsys) -> None:
    cloud = Cloud(workers=2)
    on_host = cloud._on_host
    monkeypatch.setattr(cloud, "_on_host", lambda h, s: "" if "docker run" in s else on_host(h, s))
    launched = launch(cloud, monkeypatch, job("v5p-16"))
    assert "No worker could start it" in launched.error and cloud.resource is None and launched.launcher.restarts == 0


def test_ctrl_c_says_what_is_left(monkeypatch, capsys) -> None:
    cloud = Cloud(workers=1, steps=10**6)
    answer = cloud.answer

    def interrupted(argv: list[str]) -> tuple[int, str, str]:
        if cloud.calls > 30:
            raise KeyboardInterrupt
        return answer(argv)

    monkeypatch.setattr(cloud, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch(cloud, monkeypatch, job(), "--project=p")
    said = capsys.readouterr().out
    assert "gcloud compute tpus queued-resources delete x-7b --zone=z --project=p --quiet --force --async" in said


def test_a_host_says_what_became_of_the_job() -> None:
    said = (
        "anygpt-host b 3 exited 137 2026-01-01T00:00:01.123456789Z 0123456789abcdef\n"
        "anygpt-host a absent\r\nanygpt-host c 0 running 0 0001-01-01T00:00:00Z 0123\nanygpt-host d 1 exi"
    )
    a, b, c = tpu_vm_hosts.hosts(said)
    assert (a.name, a.run, a.ended, a.runs) == ("a", -1, False, False)
    assert (b.name, b.run, b.code, b.ended, b.runs) == ("b", 3, 137, True, False)
    assert (c.run, c.ended, c.runs) == (0, False, True)
    assert tpu_vm_launcher.seconds("2026-01-01T00:00:01.25Z") - tpu_vm_launcher.seconds("2026-01-01T00:00:00Z") == 1.25


def test_quotas_of_requests_come_back() -> None:
    assert queued_resources.quota(gcloud_stand_in.QUOTA)
    assert not queued_resources.quota(gcloud_stand_in.CAPACITY)
    assert not queued_resources.quota("Quota exceeded for quota metric 'Requests' and limit 'Requests per minute'")


@pytest.mark.parametrize(
    ("of", "flags", "error"),
    [
        (job("tpu7x-16"), (), "no tpu7x"),
        (job(), ("--bucket=",), "needs --bucket"),
        (
            dataclasses.replace(job(), config=ml_collections.ConfigDict({"workdir": "/tmp/x"})),
            (),
            "must lie in the bucket",
        ),
    ],
)
def test_what_cannot_be(of: Job, flags: tuple[str, ...], error: str) -> None:
    with pytest.raises(UserError, match=error):
        tpu_vm.run(of, arguments(*flags, dry_run=True))


# What is executed


def dry_run(of: Job, *flags: str, capsys) -> list[list[str]]:
    """The commands that the dry run shows, as bash understands them: those of its comments too."""
    tpu_vm.run(of, arguments(*flags, dry_run=True))
    return as_bash_runs(re.sub("^#   ", "", capsys.readouterr().out, flags=re.MULTILINE))


def as_bash_runs(text: str) -> list[list[str]]:
    show = "gcloud() { printf '%s\\0' gcloud \"$@\"; printf '\\0'; }\n"
    printed = subprocess.run(["bash", "-euc", show + text], capture_output=True, text=True, check=True).stdout
    return [command.split("\0") for command in printed.split("\0\0") if command]


def test_the_dry_run_is_what_is_executed(monkeypatch, capsys) -> None:
    of = job("v5e-16", 2)
    shown = dry_run(of, "--spot", "--service-account=a@p", "--create-flag=--network=n", capsys=capsys)
    assert [command[4] for command in shown] == ["create", "describe", "ssh", "ssh", "ssh", "ssh", "delete"]
    assert shown[0][5:] == [
        "x-7b",
        "--zone=z",
        "--quiet",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--node-count=2",
        "--node-prefix=x-7b",
        "--spot",
        "--service-account=a@p",
        "--network=n",
        "--async",
    ]
    executed = []
    cloud = only(Cloud(workers=4, slices=2), "a process died")
    answer = cloud.answer
    monkeypatch.setattr(cloud, "answer", lambda argv: executed.append(argv) or answer(argv))
    launch(cloud, monkeypatch, of, "--spot", "--service-account=a@p", "--create-flag=--network=n")
    assert all(command in executed for command in shown)
    order = [next(i for i, argv in enumerate(executed) if argv == command) for command in shown]
    assert order[1] < order[0] < order[3] < order[2] < order[5] < order[6]  # it looks before it acts
    assert not cloud.violations


def test_who_runs_what_is_shown_ends_no_job(capsys) -> None:
    tpu_vm.run(job(), arguments(dry_run=True))
    live = as_bash_runs(text := capsys.readouterr().out)
    assert [command[4] for command in live] == ["create", "describe", "ssh", "ssh", "ssh"]
    assert live == dry_run(job(), capsys=capsys)[:5]
    assert "docker kill" in text and "delete x-7b" in text


def test_one_slice_has_a_node_of_its_name(capsys) -> None:
    create = dry_run(job(), "--internal-ips", "--reserved", capsys=capsys)[0]
    assert create[8:] == [
        "--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite", "--node-id=x-7b", "--reserved",
        "--internal-ips", "--async",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="no Google Cloud SDK")
def test_gcloud_knows_all_flags(tmp_path: pathlib.Path, capsys) -> None:
    """It reads its arguments before it looks for an account, and there is none."""
    flags = ("--internal-ips", "--spot", "--project=p", "--service-account=a@p")
    environment = {**os.environ, "CLOUDSDK_CONFIG": str(tmp_path)}
    for command in [*dry_run(job(slices=2), *flags, capsys=capsys), *dry_run(job(), *flags, capsys=capsys)[:1]]:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert "You do not currently have an active account" in done.stderr, (command, done.stderr)


DOCKER = """#!/bin/sh
# Containers are files; {{…}} is what the launcher asks for.
cd "$CONTAINERS"
case "$1 $2" in
"container inspect") case "$3" in
    --format=*) eval "echo \\"$(echo "$3" | sed -e 's/--format=//' -e 's/{{index .Config.Labels "\\([a-z]*\\)-\\([a-z]*\\)"}}/$\\2/g' \
      -e 's/{{.State.Status}}/$status/; s/{{.State.ExitCode}}/$code/; s/{{.State.FinishedAt}}/$ended/')\\"" ;;
    *) test -f "$3" ;; esac ;;
"pull --quiet") ;;
"run --detach") for a; do case "$a" in --name=*) name=${a#--name=} ;; esac; done
    printf '%s\\n' "$@" > "$name" ;;
"ps --all") case "$*" in *--format=*) ls | sed 's/.*-//' ;; *) ls -t ;; esac ;;
"ps --quiet") ls -t ;;
kill*) shift; echo "$@" > killed; rm "$@" ;;
*) echo "docker $*" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def host(tmp_path: pathlib.Path):
    """A host's shell with a stand-in for each program that it has not here; returns (run a script, its folder)."""
    programs = tmp_path / "bin"
    (tmp_path / "containers").mkdir()
    programs.mkdir()
    texts = {
        "docker": DOCKER,
        "sudo": '#!/bin/sh\nif [ "$1" = tee ] || [ "$1" = mkdir ]; then cat > /dev/null; exit 0; fi\nexec "$@"\n',
        "gcsfuse": '#!/bin/sh\necho "$@" >> $HOME/gcsfuse\n',
        "mountpoint": "#!/bin/sh\ntest -f $HOME/gcsfuse\n",
        "gcloud": '#!/bin/sh\necho "$@" > $HOME/gcloud\n',
        "hostname": "#!/bin/sh\necho t1v-n-0a-w-3\n",
    }
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path), "CONTAINERS": str(tmp_path / "containers"),
        "run": "4", "digest": "0d", "status": "exited", "code": "137", "ended": "2026-01-01T00:00:01.5Z",
    }  # fmt: skip

    def run(script: str) -> str:
        done = subprocess.run(
            ["sh", "-c", script], env=environment, input="", capture_output=True, text=True, timeout=20
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run, tmp_path


def test_what_hosts_run(host) -> None:
    run, folder = host
    of = job()
    assert tpu_vm_hosts.hosts(run(tpu_vm_hosts.look(of))) == [tpu_vm_hosts.Host("t1v-n-0a-w-3")]
    start = tpu_vm_hosts.start(of, 4, "us-docker.pkg.dev/p/r/anygpt:1", "my-bucket", "0d")
    run(start)
    container = folder / "containers" / "x-7b-4"
    command = container.read_text().splitlines()
    image = command.index("us-docker.pkg.dev/p/r/anygpt:1")
    assert command[image + 1 :] == ["train", "--config=/anygpt/config.py", "--json", "a b.json"]
    assert {"--entrypoint=anygpt", "--network=host", "--privileged", "--volume=/bucket:/bucket"} <= set(command[:image])
    assert f"--volume={folder}/anygpt/x-7b.py:/anygpt/config.py:ro" in command
    scope: dict = {}
    exec((folder / "anygpt" / "x-7b.py").read_text(), scope)
    assert scope["get_config"]().to_dict() == of.config.to_dict()
    assert (folder / "gcloud").read_text() == "auth configure-docker us-docker.pkg.dev --quiet\n"
    container.write_text("as it was")
    run(start)
    assert container.read_text() == "as it was"  # one start is one container
    # An ssh that hung while it pulled the image, and came after a later start, or after none.
    earlier = tpu_vm_hosts.start(of, 3, "us-docker.pkg.dev/p/r/anygpt:1", "my-bucket", "0d")
    run(earlier)
    hangs = earlier.replace("sudo docker pull", f"mv {folder}/4 {container}\nsudo docker pull")
    container.rename(folder / "4")
    run(hangs)
    assert [path.name for path in container.parent.iterdir()] == ["x-7b-4"]
    container.unlink()
    run(earlier)
    assert [path.name for path in container.parent.iterdir()] == ["x-7b-3"]
    run(start)  # and ends what came late
    assert (container.parent / "killed").read_text() == "x-7b-3\n"
    (container.parent / "killed").unlink()
    assert [path.name for path in container.parent.iterdir()] == ["x-7b-4"]
    assert (folder / "gcsfuse").read_text().count("my-bucket /bucket") == 1
    assert tpu_vm_hosts.hosts(run(tpu_vm_hosts.look(of))) == [
        tpu_vm_hosts.Host("t1v-n-0a-w-3", 4, "exited", 137, "2026-01-01T00:00:01.5Z", "0d")
    ]
    run(tpu_vm_hosts.stop(of))
    assert (folder / "containers" / "killed").read_text() == "x-7b-4\n"


def test_stacks_are_asked_of_those_who_listen() -> None:
    """A process without a handler would die of the signal."""
    listens = (
        "import faulthandler, signal, time; faulthandler.register(signal.SIGUSR2); print(1, flush=True); time.sleep(60)"
    )
    deaf = "import time; print(1, flush=True); time.sleep(60)"
    processes = [
        subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for text in (listens, deaf)
    ]
    try:
        for process in processes:
            assert process.stdout and process.stdout.readline()
        ours = " ".join(f"/proc/{process.pid}" for process in processes)
        line = tpu_vm_hosts.ASK_FOR_STACKS.replace("/proc/[0-9]*", ours)
        assert line != tpu_vm_hosts.ASK_FOR_STACKS
        subprocess.run(["sh", "-c", line], check=True, timeout=20)
        assert processes[0].stderr and "most recent call first" in processes[0].stderr.readline()
        assert [process.poll() for process in processes] == [None, None]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


# As programs


@pytest.fixture
def program(tmp_path: pathlib.Path, monkeypatch) -> pathlib.Path:
    """Puts the stand-in on PATH; returns its cloud's file."""
    path = tmp_path / "gcloud"
    script = pathlib.Path(gcloud_stand_in.__file__)
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S -E {shlex.quote(str(script))} "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("GCLOUD_STAND_IN", str(tmp_path / "cloud.json"))
    return tmp_path / "cloud.json"


LAUNCH = """
import signal, sys
import test_launching_tpu_vm as t
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have told it to be ignored: nohup
try:
    t.tpu_vm.run(t.job("v5p-16"), t.arguments())
except t.UserError as e:
    sys.exit(str(e))
"""


def test_killed_programs(program: pathlib.Path) -> None:
    program.write_text(json.dumps(dataclasses.asdict(Cloud(seed=1, steps=3))))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path])}
    kills = 0
    while True:
        before = json.loads(program.read_text())["calls"]
        process = subprocess.Popen([sys.executable, "-c", LAUNCH], env=environment, start_new_session=True)
        while kills < 2 and process.poll() is None and json.loads(program.read_text())["calls"] < before + 7:
            time.sleep(0.02)
        if kills >= 2 or process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.wait(timeout=100) == 0
    cloud = Cloud(**json.loads(program.read_text()))
    assert kills == 2 and cloud.resource is None and cloud.steps == 0 and not cloud.violations


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_launcher_that_is_told_to_end_says_what_is_left(number: int, program: pathlib.Path) -> None:
    program.write_text(json.dumps(dataclasses.asdict(Cloud(seed=1, steps=10**6))))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", LAUNCH], env=environment, stdout=subprocess.PIPE, text=True)
    while json.loads(program.read_text())["calls"] < 3 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.endswith("queued-resources delete x-7b --zone=z --quiet --force --async\n")


def test_what_a_command_started_ends_with_it(tmp_path: pathlib.Path) -> None:
    """As gcloud starts ssh."""
    started = tmp_path / "started"
    line = f"sleep 60 & echo $! > {started}.new; mv {started}.new {started}; wait"
    assert shell.call(Command(("sh", "-c", line)), 1.0).code == 124
    status = pathlib.Path(f"/proc/{started.read_text().strip()}/stat")
    until = time.monotonic() + 20
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < until:
        time.sleep(0.02)
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"
    assert shell.call(Command(("sh", "-c", "cat; echo b >&2; exit 3"), "a"), 20) == Outcome(3, "a", "b\n")


def test_a_program_that_does_not_answer(program: pathlib.Path, monkeypatch) -> None:
    program.write_text(json.dumps(dataclasses.asdict(Cloud(seed=1, slow=30.0))))
    monkeypatch.setattr(queued_resources, "SHORT", 0.2)
    monkeypatch.setattr(queued_resources, "TRIES", 4)
    slices = tpu_vm.resource(job(), arguments())
    with pytest.raises(UserError, match="gave no answer 4 times"):
        queued_resources.answer(slices.describe(), slices.state_in, 0.0, 0.2)
