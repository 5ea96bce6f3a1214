"""`--target=gke`: a JobSet on Google Kubernetes Engine, applied with kubectl and watched until its end."""

from __future__ import annotations

import argparse
import json
import logging
import math
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

from anygpt_jax.errors import UserError
from anygpt_jax.launching.job import Job
from anygpt_jax.launching.jobset import BUCKET, CONTAINER, LABEL, dump, manifest
from anygpt_jax.launching.shell import Command, call
from anygpt_jax.launching.tpu_vm_hosts import ASK_FOR_STACKS

log = logging.getLogger(__name__)

POLL_SECONDS = 30.0
STACKS_SECONDS = 3  # until they are in the log
HOSTS_AT_ONCE = 32
PATIENCE = 20  # polls without an answer, after which the cluster is given up


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the JobSet (`jobset.manifest`) and of watching it; --stacks too needs --image and --bucket."""
    group = parser.add_argument_group("gke", "a JobSet, applied with kubectl to its current cluster")
    group.add_argument("--image", required=True, help="the container's, with its tag")
    group.add_argument("--bucket", required=True, help=f"mounted at {BUCKET}, the folder that all paths begin in")
    group.add_argument("--namespace", default="default", help="of Kubernetes (default)")
    group.add_argument("--service-account", metavar="NAME", help="of Kubernetes, which may read and write the bucket")
    group.add_argument("--spot", action="store_true", help="on Spot machines")
    group.add_argument("--grace", type=int, default=600, metavar="SECONDS", help="that a save may take (600)")
    group.add_argument(
        "--uid", type=int, default=0, metavar="N",
        help="the container's user (0, root, who alone may raise the limit of locked memory and open the TPUs' devices)",
    )  # fmt: skip
    group.add_argument("--detach", action="store_true", help="submit, and do not wait for the end")
    group.add_argument("--stacks", action="store_true", help="print what all hosts of the running job are doing")


def run(job: Job, args: argparse.Namespace) -> None:
    """Submits the job and waits for its end. UserError if it fails, or kubectl does."""
    if args.stacks:
        stacks(job, args)
        return
    apply = Command(("kubectl", "apply", "-f", "-"), dump(manifest(job, args)), "submit")
    slices = job.accelerator
    assert slices is not None  # main.py sees to it
    log.info(
        "Needs node pools in the cluster, one a slice: %d of %d %s with topology %s.",
        slices.slices, slices.hosts, slices.machine, slices.shape,
    )  # fmt: skip
    if args.dry_run:
        print("\n".join((apply.shown(), *(comment(command) for command in others(job, args)))))
        return
    outcome = call(apply, 120)
    if outcome.code:
        end = others(job, args)[-1].shown().splitlines()[-1]
        raise UserError(
            f"kubectl did not take the job: {outcome.error.strip()}. A job of this name with another config or image must "
            f"be ended first: {end}"
        )
    print(outcome.output.rstrip())
    for command in others(job, args):
        print(comment(command))
    if not args.detach:
        follow(job, args)


def others(job: Job, args: argparse.Namespace) -> tuple[Command, ...]:
    """For who wants to watch the job, read what its first host says, or end it."""
    space = f"--namespace={args.namespace}"
    of_job = f"jobset.sigs.k8s.io/jobset-name={job.name}"
    first = f"{of_job},jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    return (
        Command(("kubectl", "get", "pods", space, f"--selector={of_job}", "--output=wide"), why="its hosts"),
        Command(
            ("kubectl", "logs", space, f"--selector={first}", f"--container={CONTAINER}", "--follow", "--tail=-1"),
            why="what the first host says",
        ),
        Command(("kubectl", "delete", "jobsets,configmaps", space, f"--selector={LABEL}={job.name}"), why="end it"),
    )


def comment(command: Command) -> str:
    """For the reader of a script, who may want it later."""
    return textwrap.indent(command.shown(), "# ", lambda line: not line.startswith("#"))


def stacks(job: Job, args: argparse.Namespace) -> None:
    """Prints what every Python thread of every host is doing, and changes nothing. UserError if no host is there."""
    space = f"--namespace={args.namespace}"
    of_job = f"--selector=jobset.sigs.k8s.io/jobset-name={job.name}"
    listed = Command(("kubectl", "get", "pods", space, of_job, "--output=name"), why="the hosts")

    def ask(host: str) -> Command:
        inside = (space, host, f"--container={CONTAINER}")
        return Command(("kubectl", "exec", *inside, "--", "sh", "-c", ASK_FOR_STACKS), why="for each POD of them")

    def read(host: str, seconds: int) -> Command:
        inside = (space, host, f"--container={CONTAINER}")
        return Command(("kubectl", "logs", *inside, f"--since={seconds}s"), why="some seconds later")

    def said(host: str) -> str:
        began = time.monotonic()
        call(ask(host), 60)
        time.sleep(STACKS_SECONDS)
        # A second more, because of the node's clock, and one for rounding.
        outcome = call(read(host, math.ceil(time.monotonic() - began) + 2), 60)
        return f"--- {host}\n{outcome.output.strip() or outcome.error.strip()}"

    if args.dry_run:
        print("\n".join((listed.shown(), comment(ask("POD")), comment(read("POD", STACKS_SECONDS + 2)))))
        return
    outcome = call(listed, 60)
    hosts = outcome.output.split()
    if outcome.code or not hosts:
        raise UserError(f"No host of {job.name} is there: {outcome.error.strip() or 'kubectl lists none'}.")
    with ThreadPoolExecutor(HOSTS_AT_ONCE) as pool:
        for text in pool.map(said, hosts):
            print(text)


def follow(job: Job, args: argparse.Namespace) -> None:
    """Waits for the JobSet's end and tells its restarts. UserError if it failed, is gone, or nobody answers."""
    get = Command(("kubectl", "get", f"jobset/{job.name}", f"--namespace={args.namespace}", "--output=json"))
    restarts, silent = 0, 0
    while True:
        outcome = call(get, 60)
        if "NotFound" in outcome.error:
            raise UserError(f"The job {job.name} is gone: somebody deleted it.")
        try:
            status = json.loads(outcome.output).get("status", {}) if outcome.code == 0 else None
        except ValueError:
            status = None
        silent = silent + 1 if status is None else 0
        if silent >= PATIENCE:
            raise UserError(
                f"The cluster does not answer ({outcome.error.strip()[:200]}); the job {job.name} may go on: run the "
                "same command again to go on waiting."
            )
        conditions = {c["type"]: c for c in (status or {}).get("conditions", []) if c.get("status") == "True"}
        if "Completed" in conditions:
            log.info("%s is done. Its node pools are yours, and cost money while they have nodes.", job.name)
            return
        if "Failed" in conditions:
            why = conditions["Failed"].get("message", "no reason given")
            raise UserError(f"{job.name} failed ({why}); read its log, then end it and run the same command again.")
        if (now := (status or {}).get("restarts", 0)) > restarts:
            log.warning("Restart %d of at most %d.", now, job.max_restarts)
            restarts = now
        time.sleep(POLL_SECONDS)
