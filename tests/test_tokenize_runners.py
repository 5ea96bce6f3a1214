"""The same bytes out of every runner, through `anygpt tokenize`: in one process, in several, and over gRPC."""

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import apache_beam as beam
import distributed
import pytest
import tiny_world
from apache_beam.options.pipeline_options import PortableOptions

from anygpt_jax import cli
from anygpt_jax.errors import UserError
from anygpt_jax.tasks import tokenize
from anygpt_jax.tasks.shards import Job, TaskShard, Work
from data_pipelines import tokenize as pipeline

TESTS = pathlib.Path(__file__).parent
TASKS = ("image_to_text", "text_to_image", "speech_to_text", "text_to_speech")

# A module that `config.tokenize.modules` names: writes down who loads a codec, beside itself.
COUNTED = """
import os, pathlib
import tiny_world
def counted(name, factory):
    def load(**settings):
        with open(pathlib.Path(__file__).with_suffix(".log"), "a") as log:
            log.write(f"{name} {os.getpid()}\\n")
        return factory(**settings)
    return load
for name, point in dict(tiny_world.ENTRY_POINTS).items():
    tiny_world.ENTRY_POINTS[name] = tiny_world.EntryPoint(counted(name, point.load()))
"""

# Beam's own job service, but with two workers: `--direct_num_workers` does not reach its runner.
JOB_SERVICE = """
import os, pathlib, sys, threading
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.portability.local_job_service import BeamJob, LocalJobServicer
class TwoWorkers(BeamJob):
    def _invoke_runner(self):
        runner = FnApiRunner(provision_info=self._provision_info)
        runner._num_workers = 2
        return runner.run_via_runner_api(self._pipeline_proto, self.pipeline_options())
port = LocalJobServicer(beam_job_type=TwoWorkers).start_grpc_server()
file = pathlib.Path(sys.argv[1])
file.with_suffix(".new").write_text(str(port))
os.replace(file.with_suffix(".new"), file)
threading.Event().wait()
"""


@pytest.fixture(autouse=True)
def _two_shards_of_a_few_examples(monkeypatch):
    monkeypatch.setattr(tokenize, "SMALLEST_SHARD", 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny_world.build(folder, {"train": 24})
    return folder / "data"


def run_command(data, workdir, *settings, modules=("tiny_world",)):
    """The exit code of `anygpt tokenize` on the tiny world."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "data").symlink_to(data)
    chosen = {"shards": 2, "batch_size": 4, "modules": modules, "tasks": TASKS, **dict(settings)}
    return cli.main(
        [
            "tokenize",
            f"--config={TESTS.parent / 'configs' / 'quickstart.py'}",
            f"--workdir={workdir}",
            *(f"--config.tokenize.{name}={value}" for name, value in chosen.items()),
        ]
    )


def contents(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(pathlib.Path(folder).rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The files of a cache made in this process alone."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    smallest, tokenize.SMALLEST_SHARD = tokenize.SMALLEST_SHARD, 1
    try:
        assert run_command(data, workdir) == 0
    finally:
        tokenize.SMALLEST_SHARD = smallest
    made = contents(workdir / "cache")
    assert sum(name.endswith(".array_record") for name in made) > 16
    return made


@contextlib.contextmanager
def server(log, *arguments):
    """A Python process that finds the tests' modules."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),  # a pool starts `python`
    }
    with open(log, "w") as output:
        command = [sys.executable, *map(str, arguments)]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def job_service(tmp_path_factory):
    """The address of a Beam job service: it takes a pipeline over gRPC, as Flink's and Spark's do."""
    folder = tmp_path_factory.mktemp("job_service")
    port = folder / "port"
    with server(folder / "log", "-c", JOB_SERVICE, port):
        _wait(port.is_file)
        yield f"localhost:{port.read_text()}"


@contextlib.contextmanager
def worker_pool(folder, port):
    """The address of a pool that starts a worker process whenever a runner asks for one."""
    log = folder / "pool.log"
    with server(log, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"):
        _wait(lambda: log.is_file() and "Started worker pool" in log.read_text())
        yield f"localhost:{port}"


def _wait(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "a server did not start"
        time.sleep(0.1)


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def codec_loads(module):
    """Process → how often it loaded each codec."""
    loads = {}
    for line in module.with_suffix(".log").read_text().splitlines():
        name, process = line.split()
        of_process = loads.setdefault(int(process), {})
        of_process[name] = of_process.get(name, 0) + 1
    return loads


def tokenize_with(runner, options, data, tmp_path, monkeypatch):
    """Runs the job; returns the files of its cache and the loads of codecs by process."""
    module = tmp_path / f"counted_{tmp_path.name.replace('-', '_')}.py"
    module.write_text(COUNTED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(tmp_path)]))
    before = dict(tiny_world.ENTRY_POINTS)
    tiny_world.install()
    try:
        settings = {"runner": runner, "runner_options": tuple(options)}.items()
        assert run_command(data, tmp_path / "run", *settings, modules=("tiny_world", module.stem)) == 0
    finally:
        tiny_world.ENTRY_POINTS.update(before)
        tiny_world.install()
    assert sorted(os.listdir(tmp_path / "run")) == ["cache", "data"]
    return contents(tmp_path / "run" / "cache"), codec_loads(module)


ONCE = {"image": 1, "speech": 1, "music": 1}


def test_threads_of_one_process_share_one_instance(undisturbed, data, tmp_path, monkeypatch):
    options = ("--direct_num_workers=4", "--direct_running_mode=multi_threading")
    files, loads = tokenize_with("FnApiRunner", options, data, tmp_path, monkeypatch)
    assert files == undisturbed
    assert loads == {os.getpid(): ONCE}


def test_threads_that_begin_together_load_once(data, tmp_path, monkeypatch):
    """A fresh worker process gets as many elements at once as it has threads."""
    loads = []

    def slow():
        loads.append(threading.get_ident())
        time.sleep(0.3)
        return tiny_world.ImageCodec()

    assert run_command(data, tmp_path) == 0
    config = tiny_world.config(tmp_path, tasks=TASKS, batch_size=3)  # of this process' jobs none has that
    job = Job(config.to_json(), str(tmp_path / "cache"))
    planned = [
        Work("train", i, 2, (TaskShard("image_to_text", f"image_to_text/train/{i:05d}-of-00002", "another"),))
        for i in range(2)
    ]
    monkeypatch.setitem(tiny_world.ENTRY_POINTS, "image", tiny_world.EntryPoint(slow))
    tiny_world.install()
    with pipeline.todo_list(job, planned) as todo, concurrent.futures.ThreadPoolExecutor(2) as threads:
        made = threads.map(lambda i: list(pipeline.TokenizeShard(job, todo).process(i)), range(2))
        assert list(made) == [[work.shards[0].stem] for work in planned]
    assert len(loads) == 1


@pytest.mark.slow
def test_worker_processes_of_the_embedded_runner(undisturbed, data, tmp_path, monkeypatch):
    options = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    files, loads = tokenize_with("FnApiRunner", options, data, tmp_path, monkeypatch)
    assert files == undisturbed
    assert loads.pop(os.getpid()) == ONCE  # for the fingerprints
    assert list(loads.values()) == [ONCE, ONCE]


def test_a_job_service_and_workers_in_the_submitting_process(undisturbed, job_service, data, tmp_path, monkeypatch):
    options = (f"--job_endpoint={job_service}", "--environment_type=LOOPBACK")
    files, loads = tokenize_with("PortableRunner", options, data, tmp_path, monkeypatch)
    assert files == undisturbed
    assert loads == {os.getpid(): ONCE}


@pytest.mark.slow
def test_a_job_service_and_external_worker_processes(undisturbed, job_service, data, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with worker_pool(tmp_path, free_port()) as pool:
        options = (
            f"--job_endpoint={job_service}",
            "--environment_type=EXTERNAL",
            f"--environment_config={pool}",
        )
        files, loads = tokenize_with("PortableRunner", options, data, tmp_path, monkeypatch)
    assert files == undisturbed
    assert loads.pop(os.getpid()) == ONCE
    assert list(loads.values()) == [ONCE, ONCE]


@pytest.mark.slow
def test_dask(undisturbed, data, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))  # its workers take over this process' path as it is now
    with contextlib.closing(distributed.LocalCluster(n_workers=2, threads_per_worker=2)) as cluster:
        options = (f"--dask_client_address={cluster.scheduler_address}",)
        files, loads = tokenize_with(
            "apache_beam.runners.dask.dask_runner.DaskRunner", options, data, tmp_path, monkeypatch
        )
        distributed.default_client().close()  # Beam's runner leaves it open
    assert files == undisturbed
    assert all(of_process == ONCE for of_process in loads.values())
    assert len(loads) > 1


def test_the_workers_error_is_the_commands(job_service, data, tmp_path, capsys):
    spoiled = tmp_path / "data"
    for path in data.rglob("*"):
        if path.is_file():
            copy = spoiled / path.relative_to(data)
            copy.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes()
            copy.write_bytes(content[:-9] if "images" in path.parts and "-train.tfrecord" in path.name else content)
    options = (f"--job_endpoint={job_service}", "--environment_type=LOOPBACK")
    settings = {"runner": "PortableRunner", "runner_options": options}.items()
    assert run_command(spoiled, tmp_path / "run", *settings) == 2
    error = capsys.readouterr().err
    assert "anygpt: The data of image_to_text/train cannot be read (" in error
    assert "; build or copy it again.\n" in error
    assert "Traceback" not in error.split("anygpt: The data of")[1]
    assert sorted(os.listdir(tmp_path / "run")) == ["cache", "data"]


def test_no_job_server_is_said(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "JOB_SERVER_SECONDS", 0.5)
    address = f"localhost:{free_port()}"
    settings = {"runner": "PortableRunner", "runner_options": (f"--job_endpoint={address}",)}.items()
    assert run_command(data, tmp_path, *settings) == 2
    assert f"anygpt: No Beam job server answers at {address}; start it" in capsys.readouterr().err


def test_a_job_may_take_longer_than_a_request(job_service):
    def seconds(*options):
        chosen = pipeline.pipeline_options("PortableRunner", options)
        return chosen.view_as(PortableOptions).job_server_timeout

    assert seconds(f"--job_endpoint={job_service}") > 30 * 24 * 3600
    assert seconds(f"--job_endpoint={job_service}", "--job_server_timeout=7") == 7


def works(count):
    return [
        Work("train", i, count, tuple(TaskShard(t, f"{t}/train/{i:05d}-of-{count:05d}", "0" * 64) for t in TASKS))
        for i in range(count)
    ]


def test_a_large_job_is_a_small_pipeline(tmp_path):
    job, planned = Job("{}", str(tmp_path / "cache")), works(40_000)
    with pipeline.todo_list(job, planned) as todo:
        graph = beam.Pipeline()
        pipeline.add_steps(graph, job, todo, len(planned))
        assert graph.to_runner_api().ByteSize() < 1_000_000  # Dataflow takes 10 MB
        assert pipeline.read_todo(todo) == tuple(planned)
    assert not list(tmp_path.iterdir())


def test_a_worker_without_the_workdir_says_so(tmp_path):
    with pytest.raises(UserError, match="mount the workdir under the same path"):
        pipeline.read_todo(str(tmp_path / "cache.todo-0.json"))


def test_the_list_of_a_killed_run_is_taken_away(tmp_path):
    job = Job("{}", str(tmp_path / "cache"))
    (tmp_path / "cache.todo-dead.json").write_text("[]")
    (tmp_path / "cache2.todo-alive.json").write_text("[]")
    with pipeline.todo_list(job, works(3)) as todo:
        assert {p.name for p in tmp_path.iterdir()} == {pathlib.Path(todo).name, "cache2.todo-alive.json"}
