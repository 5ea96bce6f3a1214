"""`--target=tpu-vm`: Cloud TPU queued resources, through `gcloud`."""

from __future__ import annotations

import argparse
import pathlib
import shlex

from anygpt_jax.errors import UserError
from anygpt_jax.launching import tpu_vm_hosts
from anygpt_jax.launching.job import Job
from anygpt_jax.launching.queued_resources import SHORT, QueuedResource, summary
from anygpt_jax.launching.shell import call
from anygpt_jax.launching.tpu_vm_launcher import PATIENCE, Launcher


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    group.add_argument("--keep", action="store_true", help="leave the slices when the job has ended, and pay for them")
    group.add_argument("--stacks", action="store_true", help="print what all hosts of the running job are doing")


def run(job: Job, args: argparse.Namespace) -> None:
    """Until the job is done. UserError if it cannot be; it says what is left running."""
    slices = resource(job, args)
    if args.dry_run:
        print(script(slices, args.poll, args.keep))
    elif args.stacks:
        outcome = call(slices.ssh(tpu_vm_hosts.stacks(job)), SHORT)
        print(outcome.output, end="")
        if outcome.code:
            raise UserError(f"Not all hosts answered: {summary(outcome)}")
    else:
        keep_at_work(Launcher(slices, args.poll, args.keep))


def keep_at_work(launcher: Launcher) -> None:
    """Says what is left in the cloud, however the launcher ends."""
    slices = launcher.slices
    left = (
        f"'{slices.job.name}' may be left, and cost money; the same command goes on with it, this ends it:\n"
        f"{shlex.join(slices.delete().argv)}"
    )
    try:
        launcher.go()
    except KeyboardInterrupt:
        if launcher.left:
            print(f"\nThe launcher ends, the job does not: {left}")
        raise
    except UserError as e:
        raise UserError(f"{e}\n{left}" if launcher.left else str(e)) from e
    if launcher.left:
        print(f"Done; {left}")


def resource(job: Job, args: argparse.Namespace) -> QueuedResource:
    """UserError for what queued resources cannot do."""
    if job.accelerator is None:
        raise UserError("--target=tpu-vm needs --accelerator, for example v5p-128.")
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


def script(slices: QueuedResource, poll: float, keep: bool) -> str:
    """What would be executed, in order, with what is repeated and when."""
    job = slices.job
    shown = (
        (
            f"1. {slices.accelerator.slices} × {slices.accelerator.name}, {slices.hosts} hosts, unless 2 finds them",
            slices.create(),
        ),
        (f"2. Every {poll:g} s, until the state is ACTIVE and from then on", slices.describe()),
        (
            "3. The job on all workers, each in a container that outlives the ssh; does nothing where it runs.\n"
            "# The base64 is the config as it is now",
            slices.start(0),
        ),
        (f"4. Every {poll:g} s: what became of it on each worker", slices.ssh(tpu_vm_hosts.look(job))),
        ("   and the log of the first", slices.ssh(tpu_vm_hosts.log(job, 0, ""), first_only=True)),
        (
            "5. When a process ended otherwise than with 0 or 2: this, then 3 as start 1, 2, …\n"
            f"# ({job.max_restarts} restarts at most, here and in 6 together; 2 is a user error and ends the job)",
            slices.ssh(tpu_vm_hosts.stop(job)),
        ),
        (
            f"6. When the state is SUSPENDED or FAILED, or a worker gave no answer {PATIENCE} times: this, 2 until there\n"
            "# is none, then from 1"
            + (". Not when the job has ended (--keep)" if keep else ". Also when the job has ended, and then no more"),
            slices.delete(),
        ),
    )
    return "\n".join(f"# {why}:\n{command.shown()}" for why, command in shown)
