"""The data side: Beam's own parser reads the options, and its job service and worker pool run them."""

import json
import os
import pathlib
import re

import pytest
import tiny_world
from apache_beam.options import pipeline_options
from apache_beam.options.pipeline_options import PipelineOptions
from test_tokenize_runners import TESTS, contents, data, free_port, job_service, worker_pool

from anygpt_jax import cli
from data_pipelines import tokenize as pipeline

ROOT = pathlib.Path(__file__).parents[1]
IMAGE = "registry.example/anygpt:0.1.0"

__all__ = ["data", "job_service"]  # fixtures


def launch(workdir, *arguments):
    return cli.main(
        [
            "launch",
            f"--config={ROOT / 'configs' / 'quickstart.py'}",
            f"--workdir={workdir}",
            "--job=tokenize",
            *arguments,
        ]
    )


def dry(tmp_path, capsys, *arguments):
    """The config that a dry run tells of, and its command."""
    assert launch(tmp_path / "run", "--dry-run", *arguments) == 0
    shown = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    (tmp_path / "config.py").write_text(shown.split("<<'END_OF_INPUT'\n")[1].split("END_OF_INPUT")[0])
    return cli.load_config(str(tmp_path / "config.py")), shown.splitlines()[-1]


def read_by_beam(tokenize):
    """What Beam's options are then, beside their defaults. Unknown ones are an error."""
    flags = [f"--runner={tokenize.runner}", *tokenize.runner_options]
    known = {string for parser in _parsers() for action in parser._actions for string in action.option_strings}
    assert {flag.partition("=")[0] for flag in flags} <= known
    return PipelineOptions(flags).get_all_options(drop_default=True)


def _parsers():
    for options in PipelineOptions.__subclasses__():
        if options.__module__ == pipeline_options.__name__:
            parser = pipeline_options._BeamArgumentParser()
            options._add_argparse_args(parser)
            yield parser


def test_dataflow(tmp_path, capsys):
    config, command = dry(
        tmp_path, capsys, "--target=dataflow", "--project=p", "--region=us-central1", "--bucket=b", f"--image={IMAGE}",
        "--workers=200", "--service-account=worker@p.iam", "--", "--json=counts.json",
    )  # fmt: skip
    assert read_by_beam(config.tokenize) == {
        "runner": "DataflowRunner", "project": "p", "region": "us-central1", "temp_location": "gs://b/tmp",
        "job_name": "run-tokenize", "sdk_container_image": IMAGE, "sdk_location": "container",
        "experiments": ["use_runner_v2"], "number_of_worker_harness_threads": 1, "num_workers": 200,
        "autoscaling_algorithm": "NONE", "machine_type": "n2-standard-8", "disk_size_gb": 50,
        "service_account_email": "worker@p.iam",
    }  # fmt: skip
    folder = f"{tmp_path}/run/logs/launch/run-tokenize"
    assert re.fullmatch(rf"anygpt tokenize --config={folder}/config-[0-9a-f]{{8}}\.py --json=counts\.json", command)


@pytest.mark.parametrize(
    ("target", "runner", "flags", "master"),
    [
        (
            "flink",
            "FlinkRunner",
            ("--master=host:8081", "--workers=64"),
            {"flink_master": "host:8081", "parallelism": 64},
        ),
        ("spark", "SparkRunner", ("--master=spark://host:7077",), {"spark_master_url": "spark://host:7077"}),
        ("flink", "PortableRunner", ("--job-endpoint=h:8099",), {"job_endpoint": "h:8099", "parallelism": 1}),
        ("spark", "PortableRunner", ("--job-endpoint=h:8099",), {"job_endpoint": "h:8099"}),
    ],
)
@pytest.mark.parametrize(
    ("workers", "environment"),
    [
        (f"--image={IMAGE}", {"environment_type": "DOCKER", "environment_config": IMAGE}),
        ("--worker-pool=localhost:50000", {"environment_type": "EXTERNAL", "environment_config": "localhost:50000"}),
    ],
)
def test_flink_and_spark(target, runner, flags, master, workers, environment, tmp_path, capsys):
    config, _ = dry(tmp_path, capsys, f"--target={target}", *flags, workers, "--name=data")
    found = read_by_beam(config.tokenize)
    found.pop("sdk_worker_parallelism", None)  # 1 is its default too
    assert found == {"runner": runner, "job_name": "data", **master, **environment}
    assert "--sdk_worker_parallelism=1" in config.tokenize.runner_options


def test_the_configs_own_options_prevail(tmp_path, capsys):
    own = "--config.tokenize.runner_options=('--parallelism=7', '--flink_version=1.19')"
    config, _ = dry(tmp_path, capsys, "--target=flink", "--master=host:8081", f"--image={IMAGE}", own)
    assert read_by_beam(config.tokenize)["parallelism"] == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target=dataflow", "--project=p"), "--target=dataflow needs --region, --bucket, --image."),
        (("--target=flink", f"--image={IMAGE}"), "--target=flink needs either --master or --job-endpoint."),
        (("--target=spark", "--master=m"), "--target=spark needs either --image or --worker-pool"),
        (("--target=spark", "--workers=0"), "--workers 0 must be at least 1."),
        (("--target=flink", "--job=train"), "--target=flink runs --job=tokenize alone."),
    ],
)
def test_what_is_missing_is_said(arguments, said, tmp_path, capsys):
    assert launch(tmp_path / "run", *arguments) == 2
    assert said in capsys.readouterr().err


def test_no_job_server_is_said(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "JOB_SERVER_SECONDS", 0.5)
    with pytest.raises(SystemExit) as ended:
        launch(*tiny_job(tmp_path / "run", data, f"localhost:{free_port()}", "localhost:1"))
    assert ended.value.code == 2
    assert "No Beam job server answers at localhost:" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_service_and_a_worker_pool_run_it(data, job_service, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
    with worker_pool(tmp_path, free_port()) as pool:
        assert launch(*tiny_job(tmp_path / "run", data, job_service, pool), "--", f"--json={tmp_path}/counts") == 0
    here = tiny_job(tmp_path / "here", data, "", "")
    config = f"--config={ROOT / 'configs' / 'quickstart.py'}"
    assert cli.main(["tokenize", config, f"--workdir={here[0]}", *(a for a in here if a.startswith("--config."))]) == 0
    assert contents(tmp_path / "run" / "cache") == contents(tmp_path / "here" / "cache")
    assert json.loads((tmp_path / "counts").read_text())["tasks"]


def tiny_job(workdir, data, endpoint, pool):
    """The workdir and the arguments of a job that takes seconds."""
    workdir.mkdir()
    (workdir / "data").symlink_to(data)
    tiny_world.install()
    settings = {"shards": 2, "batch_size": 4, "modules": ("tiny_world",), "tasks": ("image_to_text", "speech_to_text")}
    chosen = (f"--config.tokenize.{name}={value}" for name, value in settings.items())
    return str(workdir), "--target=flink", f"--job-endpoint={endpoint}", f"--worker-pool={pool}", *chosen
