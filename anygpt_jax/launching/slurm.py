"""`--target=slurm`: a batch script of one task a node, which requeues itself. jax finds the others by Slurm's variables."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import shlex

import ml_collections

from anygpt_jax.errors import UserError
from anygpt_jax.launching.job import Job
from anygpt_jax.launching.main import for_devices, require_processes
from anygpt_jax.launching.policy import USER_ERROR
from anygpt_jax.launching.shell import Command, call

# Slurm signals every process of a task: its bash must outlive the SIGTERM on which anygpt saves, or srun would kill all.
# srun tells the highest exit code of all tasks, which hides a 2 behind the 137 of the tasks it ends then: the task that
# ends with 2 leaves a file. Slurm itself requeues what it preempts or loses with a node.
_SCRIPT = """\
#!/bin/bash
{directives}
{environment}failed={failed}
rm -f "$failed"
srun --kill-on-bad-exit=1 bash -c {task} "$failed"
code=$?
if [ "$code" -ne 0 ] && [ ! -e "$failed" ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {max_restarts} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the batch script; `run` checks their values."""
    group = parser.add_argument_group("slurm", "sbatch, in the environment and the folder that it is called from")
    group.add_argument("--nodes", type=int, default=1, metavar="N", help="with one process each (1)")
    group.add_argument("--gpus-per-node", type=int, default=0, metavar="N", help="which a process has (0)")
    group.add_argument("--grace", type=int, default=600, metavar="SECONDS", help="before the time limit, to save (600)")
    group.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="of sbatch, as --sbatch=--partition=NAME"
    )


def run(job: Job, args: argparse.Namespace) -> None:
    """Submits, and does not wait for the end. UserError if the flags or the config cannot be run, or sbatch refuses.

    The config is written to `job.config_path()`, in a folder that all nodes must see.
    """
    if min(args.nodes, args.grace) < 1 or args.gpus_per_node < 0:
        raise UserError("--nodes and --grace must be at least 1, --gpus-per-node at least 0.")
    require_processes(job.config, job.verb, job.arguments, args.nodes)
    config = ml_collections.ConfigDict(job.config.to_dict())
    config.multihost = args.nodes > 1
    if args.gpus_per_node:
        config = for_devices(config, job.verb, args.nodes * args.gpus_per_node, args.vocab_size)
    job = dataclasses.replace(job, config=config)
    path = job.config_path()
    submit = Command(("sbatch",), script(job, args, path), "submit")
    if args.dry_run:
        put = Command(("cp", "/dev/stdin", str(path)), job.config_file(), "the config, as it is now")
        print(f"mkdir -p {shlex.quote(str(path.parent))}\n{put.shown()}\n{submit.shown()}")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(job.config_file(), encoding="utf-8")
    outcome = call(submit, 60)
    if outcome.code:
        raise UserError(f"sbatch did not take the job: {outcome.error.strip()}")
    print(outcome.output.rstrip())


def script(job: Job, args: argparse.Namespace, config: pathlib.Path) -> str:
    """What sbatch takes; `config` lies in the workdir, which all nodes see."""
    options = [
        f"--job-name={job.name}", f"--nodes={args.nodes}", "--ntasks-per-node=1", "--requeue", "--open-mode=append",
        "--dependency=singleton",  # one after the other: two would write one workdir
        f"--signal=TERM@{args.grace}", f"--output={config.parent}/slurm-%j.txt", *args.sbatch,
    ]  # fmt: skip
    environment = ""
    if args.gpus_per_node:
        options.append(f"--gpus-per-node={args.gpus_per_node}")
        devices = ",".join(map(str, range(args.gpus_per_node)))
        environment = f"export JAX_LOCAL_DEVICE_IDS={devices}  # jax would take one task for one GPU\n"
    task = f'trap : TERM; {job.command(str(config))}; code=$?; [ "$code" -ne {USER_ERROR} ] || touch "$0"; exit "$code"'
    return _SCRIPT.format(
        directives="\n".join(f"#SBATCH {shlex.quote(option)}" for option in options),
        environment=environment,
        failed=f'{shlex.quote(str(config.parent / "user_error"))}-"$SLURM_JOB_ID"',
        task=shlex.quote(task),
        max_restarts=job.max_restarts,
    )
