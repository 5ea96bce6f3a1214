"""`--target=tpu-vm`: Cloud TPU queued resources, through `gcloud`."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import shlex
import signal
import sys
from collections.abc import Iterator

from anygpt_jax.errors import UserError
from anygpt_jax.launching import tpu_vm_hosts
from anygpt_jax.launching.job import Job
from anygpt_jax.launching.queued_resources import SHORT, QueuedResource, summary
from anygpt_jax.launching.shell import call
from anygpt_jax.launching.tpu_vm_launcher import PATIENCE, Launcher


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None is required here: `resource` says which are missing."""
    group = parser.add_argument_group("tpu-vm", "Cloud TPU queued resources; needs `gcloud`, logged in")
    group.add_argument("--zone", metavar="ZONE", help="where the TPUs are, as us-east5-a")
    group.add_argument("--project", default="", metavar="ID", help="default: gcloud's own")
    group.add_argument("--image", metavar="IMAGE", help="the trainer's container (launch/container/Dockerfile)")
    group.add_argument("--bucket", metavar="NAME", help=f"mounted as {tpu_vm_hosts.BUCKET}; the workdir lies in it")
    group.add_argument("--service-account", default="", metavar="EMAIL", help="of the VMs; default: Compute Engine's")
    tier = group.add_mutually_exclusive_group()
    tier.add_argument("--spot", dest="capacity", action="store_const", const="spot", default="", help="preemptible")
    tier.add_argument("--reserved", dest="capacity", action="store_const", const="reserved", help="of a reservation")
    group.add_argument("--internal-ips", action="store_true", help="VMs without public addresses; ssh through IAP")
    group.add_argument(
        "--create-flag", action="append", default=[], metavar="=--FLAG=VALUE", help="more for gcloud's create"
    )
    group.add_argument("--poll", type=float, default=30.0, metavar="SECONDS", help="between two looks (30)")
    group.add_argument("--stacks", action="store_true", help="print what all hosts of the running job are doing")


def run(job: Job, args: argparse.Namespace) -> None:
    """Until the job is done. UserError if it cannot be; it says what is left running."""
    slices = resource(job, args)
    if args.dry_run:
        print(script(slices, args.poll))
    elif args.stacks:
        outcome = call(slices.ssh(tpu_vm_hosts.stacks(job)), SHORT)
        print(outcome.output, end="")
        if outcome.code:
            raise UserError(f"Not all hosts answered: {summary(outcome)}")
    else:
        keep_at_work(Launcher(slices, args.poll))


def keep_at_work(launcher: Launcher) -> None:
    """Says what is left in the cloud, however the launcher ends."""
    slices = launcher.slices
    left = (
        f"'{slices.job.name}' may be left, and cost money; the command that began it goes on with it, this ends it:\n"
        f"{shlex.join(slices.delete().argv)}"
    )
    try:
        with signals_raise():
            launcher.go()
    except UserError as e:
        raise UserError(f"{e}\n{left}" if launcher.left else str(e)) from e
    except BaseException:
        if launcher.left:
            print(f"\nThe launcher ends, the job does not: {left}", flush=True)
        raise


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise SystemExit as Ctrl-C raises KeyboardInterrupt; what nohup ignores stays ignored."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    ours = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def resource(job: Job, args: argparse.Namespace) -> QueuedResource:
    """UserError for what queued resources cannot do."""
    assert job.accelerator is not None  # `anygpt launch` sees to it
    if job.accelerator.family.chip == "tpu7x":
        raise UserError("The Cloud TPU API has no tpu7x; use --target=gke.")
    for flag in ("zone", "image", "bucket"):
        if not getattr(args, flag):
            raise UserError(f"--target=tpu-vm needs --{flag}; see `anygpt launch --help`.")
    workdir = pathlib.PurePosixPath(str(job.config.get("workdir")))
    if workdir.is_absolute() and not workdir.is_relative_to(tpu_vm_hosts.BUCKET):
        raise UserError(f"--workdir {workdir} must lie in the bucket, {tpu_vm_hosts.BUCKET}/…, or be relative to it.")
    return QueuedResource(
        job,
        args.zone,
        args.image,
        args.bucket,
        args.project,
        args.service_account,
        args.capacity,
        args.internal_ips,
        tuple(args.create_flag),
    )


def script(slices: QueuedResource, poll: float) -> str:
    """What would be executed, in order, with what is repeated and when; as comments what ends processes or machines."""
    job = slices.job
    shown = (
        f"# 1. {slices.accelerator.slices} × {slices.accelerator.name}, {slices.hosts} hosts, unless 2 finds them:",
        slices.create().shown(),
        f"# 2. Every {poll:g} s, until the state is ACTIVE and from then on:",
        slices.describe().shown(),
        "# 3. The job on all workers, each in a container that outlives the ssh; does nothing where it runs.",
        "# The base64 is the config as it is now:",
        slices.start(0).shown(),
        f"# 4. Every {poll:g} s: what became of it on each worker, and the log of the first:",
        slices.ssh(tpu_vm_hosts.look(job)).shown(),
        slices.ssh(tpu_vm_hosts.log(job, 0, ""), first_only=True).shown(),
        "# 5. When a process ended otherwise than with 0 or 2: this, then 3 as start 1, 2, …",
        f"# ({job.max_restarts} restarts at most, here and in 6 together; 2 is a user error and ends the job):",
        _as_comment(slices.ssh(tpu_vm_hosts.stop(job)).shown()),
        f"# 6. When the state is SUSPENDED or FAILED, or a worker gave no answer {PATIENCE} times: this, 2 until there",
        "# is none, then from 1. Also when the job has ended, and then no more:",
        _as_comment(slices.delete().shown()),
    )
    return "\n".join(shown)


def _as_comment(command: str) -> str:
    """A script that is printed may be run, and must not end a job that is at work."""
    return "\n".join(f"#   {line}" for line in command.splitlines())
