"""`--target=dataflow|flink|spark`: `anygpt tokenize` with the Beam runner's options, as docs/tokenize_job.md tells them.

The command runs here and waits for the cluster; run it again and it goes on. Options in config.tokenize.runner_options
come after these, and so prevail.
"""

from __future__ import annotations

import argparse
import shlex
import sys

import ml_collections

from anygpt_jax.errors import UserError
from anygpt_jax.launching.job import Job
from anygpt_jax.launching.shell import Command

RUNNERS = {"dataflow": "DataflowRunner", "flink": "FlinkRunner", "spark": "SparkRunner"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One group for all three targets; `beam_options` says which of the flags a target needs."""
    group = parser.add_argument_group("dataflow, flink, spark", "the data side, a Beam job (--job=tokenize)")
    group.add_argument(
        "--image", help="the workers' container (launch/container/Dockerfile, target beam-worker); or --worker-pool"
    )
    group.add_argument("--workers", type=int, default=1, metavar="N", help="processes that tokenize at a time (1)")
    group.add_argument("--master", metavar="ADDRESS", help="Flink's HOST:8081 or Spark's spark://HOST:7077")
    group.add_argument("--job-endpoint", metavar="ADDRESS", help="of a job server that runs, instead of --master")
    group.add_argument("--worker-pool", metavar="ADDRESS", help="of Beam's worker pool beside each task manager")
    group.add_argument("--project", help="Dataflow's")
    group.add_argument("--region", help="Dataflow's")
    group.add_argument("--bucket", help="for Dataflow's temporary files")
    group.add_argument("--machine", default="n2-standard-8", help="Dataflow's (n2-standard-8)")
    group.add_argument("--service-account", metavar="EMAIL", help="of Dataflow's workers")


def run(job: Job, args: argparse.Namespace) -> None:
    """Waits until the cluster has tokenized. UserError for another verb, or flags that do not go together.

    SystemExit if `anygpt tokenize`, which runs in this process, ends with another code than 0.
    """
    if job.verb != "tokenize":
        raise UserError(f"--target={args.target} runs --job=tokenize alone.")
    runner, options = beam_options(job.name, args)
    config = ml_collections.ConfigDict(job.config.to_dict())
    config.tokenize.runner = runner
    config.tokenize.runner_options = (*options, *config.tokenize.runner_options)
    frozen = Job(job.name, job.verb, config, job.arguments)
    path = frozen.config_path()
    if args.dry_run:
        put = Command(("cp", "/dev/stdin", str(path)), frozen.config_file(), "the config, as it is now")
        print(f"mkdir -p {shlex.quote(str(path.parent))}\n{put.shown()}\n{frozen.command(str(path))}")
        return
    if runner == RUNNERS["dataflow"]:
        try:
            import apache_beam.runners.dataflow.internal.apiclient  # noqa: F401
        except ImportError as e:
            raise UserError(f"Dataflow needs {e.name}: pip install 'apache-beam[gcp]', then run this again.") from e
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(frozen.config_file(), encoding="utf-8")
    from anygpt_jax.cli import main

    if code := main(frozen.argv(str(path))[1:]):
        sys.exit(code)


def beam_options(name: str, args: argparse.Namespace) -> tuple[str, list[str]]:
    """Beam's runner and its options. UserError if something is missing or makes no sense together."""
    if args.workers < 1:
        raise UserError(f"--workers {args.workers} must be at least 1.")
    if args.target == "dataflow":
        return RUNNERS["dataflow"], _dataflow(name, args)
    if bool(args.master) == bool(args.job_endpoint):
        raise UserError(f"--target={args.target} needs either --master or --job-endpoint.")
    if bool(args.image) == bool(args.worker_pool):
        raise UserError(f"--target={args.target} needs either --image or --worker-pool, for its workers.")
    runner = "PortableRunner" if args.job_endpoint else RUNNERS[args.target]
    master = "--flink_master" if args.target == "flink" else "--spark_master_url"
    options = [f"--job_endpoint={args.job_endpoint}" if args.job_endpoint else f"{master}={args.master}"]
    if args.target == "flink":
        options.append(f"--parallelism={args.workers}")
    kind, where = ("DOCKER", args.image) if args.image else ("EXTERNAL", args.worker_pool)
    # A process lets one shard through at a time.
    options += [f"--environment_type={kind}", f"--environment_config={where}", "--sdk_worker_parallelism=1"]
    return runner, [*options, f"--job_name={name}"]


def _dataflow(name: str, args: argparse.Namespace) -> list[str]:
    missing = [f"--{flag}" for flag in ("project", "region", "bucket", "image") if not getattr(args, flag)]
    if missing:
        raise UserError(f"--target=dataflow needs {', '.join(missing)}.")
    options = {
        "project": args.project, "region": args.region, "temp_location": f"gs://{args.bucket}/tmp", "job_name": name,
        "sdk_container_image": args.image, "sdk_location": "container", "experiments": "use_runner_v2",
        "number_of_worker_harness_threads": 1, "num_workers": args.workers, "autoscaling_algorithm": "NONE",
        "machine_type": args.machine, "disk_size_gb": 50,
    }  # fmt: skip
    if args.service_account:
        options["service_account_email"] = args.service_account
    return [f"--{key}={value}" for key, value in options.items()]
