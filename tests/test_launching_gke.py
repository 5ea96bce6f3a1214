"""Manifests for GKE: by Kubernetes' and JobSet's own schemas, by a count of chips, and what kubectl gets of them."""

import copy
import json
import math
import os
import pathlib
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from anygpt_jax import cli
from anygpt_jax.launching import gke
from anygpt_jax.launching.policy import Verdict, judge
from anygpt_jax.launching.tpu_vm_hosts import ASK_FOR_STACKS

ROOT = pathlib.Path(__file__).parents[1]
KUBERNETES = "1.37"

# cloud.google.com/tpu/docs and cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus, not this project's table:
# name -> GKE's label, topology, chips of a slice, its hosts.
PUBLISHED = {
    "v4-128": ("tpu-v4-podslice", "4x4x4", 64, 16),
    "v5e-256": ("tpu-v5-lite-podslice", "16x16", 256, 64),
    "v5p-128": ("tpu-v5p-slice", "4x4x4", 64, 16),
    "v6e-256": ("tpu-v6e-slice", "16x16", 256, 64),
}

# Writes down what it is told, and answers with the next line of answers: exit code, output, error.
KUBECTL = """#!{python}
import json, pathlib, sys
folder = pathlib.Path({folder!r})
with (folder / "calls").open("a") as calls:
    stdin = sys.stdin.read() if "apply" in sys.argv else ""
    calls.write(json.dumps([sys.argv[1:], stdin]) + "\\n")
answers = folder / "answers"
first, *rest = json.loads(answers.read_text()) if answers.is_file() else [[0, "", ""]]
if rest:
    answers.write_text(json.dumps(rest))
print(first[1])
print(first[2], file=sys.stderr)
sys.exit(first[0])
"""


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """A stand-in; its folder has `calls`, and takes `answers`."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(python=sys.executable, folder=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(gke, "POLL_SECONDS", 0.0)
    return tmp_path


def calls(folder):
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def launch(*arguments, accelerator="v5p-128", slices=1):
    """The exit code of `anygpt launch` for a 7B whose mesh follows the slices."""
    return cli.main(
        [
            "launch",
            f"--config={ROOT / 'configs' / 'llama2_7b.py'}",
            "--config.mesh.fsdp=1",
            "--target=gke",
            f"--accelerator={accelerator}",
            f"--slices={slices}",
            "--image=registry.example/anygpt:0.1.0",
            "--bucket=a-bucket",
            *arguments,
        ]
    )


def dry(capsys, *arguments, **where):
    assert launch("--dry-run", *arguments, **where) == 0
    return capsys.readouterr().out


def manifests(shown):
    return list(yaml.safe_load_all(shown.split("<<'END_OF_INPUT'\n")[1].split("END_OF_INPUT")[0]))


def jobset_problems(jobset):
    """What JobSet's models and Kubernetes' strict schemas of the child Jobs have against it."""
    try:
        kept = JobsetV1alpha2JobSet.from_dict(copy.deepcopy(jobset)).to_dict()
    except ValueError as e:
        return [str(e)]
    found = list(lost(jobset, kept))  # the models drop what they do not know
    for replicated in jobset["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, **replicated["template"]}
        found += core_problems(job)
    return found


def lost(ours, kept, path="JobSet"):
    """Where `kept`, which may have more, lacks something of ours or says it otherwise."""
    if isinstance(ours, dict) and isinstance(kept, dict):
        for key in ours:
            yield from lost(ours[key], kept.get(key), f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(kept, list) and len(ours) == len(kept):
        for i, (inner, other) in enumerate(zip(ours, kept, strict=True)):
            yield from lost(inner, other, f"{path}.{i}")
    elif ours != kept:
        yield path


def core_problems(document):
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as e:
        return [str(e.message)]
    return []


@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize("accelerator", PUBLISHED)
def test_manifests(accelerator, slices, capsys):
    config, jobset = manifests(
        dry(capsys, "--service-account=trainer", "--spot", accelerator=accelerator, slices=slices)
    )
    assert core_problems(config) == []
    assert jobset_problems(jobset) == []

    label, topology, chips, hosts = PUBLISHED[accelerator]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert replicated["replicas"] == slices
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == hosts
    assert (
        job["completions"] * container["resources"]["limits"]["google.com/tpu"]
        == chips
        == math.prod(map(int, topology.split("x")))
    )
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": topology,
        "cloud.google.com/gke-spot": "true",
    }
    assert {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"} in pod[
        "tolerations"
    ]
    mesh = json.loads(config["data"]["config.py"].split("json.loads('")[1].split("'))")[0])["mesh"]
    assert math.prod(mesh.values()) == chips * slices
    assert (mesh["slice"], mesh["fsdp"]) == (slices, chips)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.failurePolicy.maxRestart", 3),
        ("spec.failurePolicy.rules.0.onJobFailureReason", ["PodFailurePolicy"]),
        ("spec.replicatedJobs.0.replicas", "four"),
        ("spec.replicatedJobs.0.template.spec.completionModes", "Indexed"),
        ("spec.replicatedJobs.0.template.spec.podFailurePolicy.rules.0.onExitCodes.values", ["two"]),
        ("spec.replicatedJobs.0.template.spec.template.spec.containers.0.workingDirectory", "/"),
        ("spec.replicatedJobs.0.template.spec.template.spec.securityContext.runAsUser", "nobody"),
        ("spec.suspended", True),
    ],
)
def test_the_schemas_would_tell(path, value, capsys):
    jobset = copy.deepcopy(manifests(dry(capsys))[1])
    *parents, last = path.split(".")
    inner = jobset
    for key in parents:
        inner = inner[int(key)] if key.isdigit() else inner[key]
    inner[last] = value
    assert jobset_problems(jobset)


def test_bash_runs_what_is_shown(kubectl, capsys):
    shown = dry(capsys, "--name=a-run")
    subprocess.run(["bash", "-e"], input=shown, text=True, check=True, capture_output=True)
    shown_calls = calls(kubectl)
    assert [call[0][0] for call in shown_calls] == ["apply", "get", "logs", "delete"]
    (kubectl / "calls").unlink()
    assert launch("--name=a-run", "--detach") == 0
    assert calls(kubectl) == shown_calls[:1]


def test_hosts_run_the_config_as_it_was(tmp_path, capsys):
    arguments = ("--job=evaluate", "--name=scores", "--", "--tasks=vqav2", "--data=$(HOME)/evaluation")
    config, jobset = manifests(dry(capsys, "--config.seed=7", *arguments))
    (container,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    command = ["anygpt", "evaluate", "--config=/config/config.py", "--tasks=vqav2", "--data=$$(HOME)/evaluation"]
    assert container["command"] == command
    assert config["metadata"]["name"] == "scores"
    (tmp_path / "config.py").write_text(config["data"]["config.py"])
    loaded = cli.load_config(str(tmp_path / "config.py"))
    assert (loaded.seed, loaded.multihost, loaded.model.d_ff) == (7, True, 11008)


def test_one_host_joins_nobody(tmp_path, capsys):
    config, _ = manifests(dry(capsys, accelerator="v6e-8"))
    (tmp_path / "config.py").write_text(config["data"]["config.py"])
    assert cli.load_config(str(tmp_path / "config.py")).multihost is False


def test_exit_codes_are_judged_as_everywhere(capsys):
    _, jobset = manifests(dry(capsys))
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    (of_set,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], of_set["action"], of_set["onJobFailureReasons"]) == (
        "FailJob", "FailJobSet", ["PodFailurePolicy"],
    )  # fmt: skip
    assert rule["onExitCodes"]["operator"] == "In"
    ends = {code for code in range(1, 256) if judge([code], 0, 100) is Verdict.USER_ERROR}
    assert set(rule["onExitCodes"]["values"]) == ends
    assert job["backoffLimit"] == 0


@pytest.mark.parametrize(
    ("arguments", "where", "said"),
    [
        ((), {"accelerator": "v5p-8", "slices": 2}, "GKE joins slices of several hosts only"),
        (("--workdir=/data/run",), {}, "--workdir /data/run must lie in the bucket"),
        (("--grace=0",), {}, "--grace must be at least 1"),
    ],
)
def test_what_gke_cannot_do_is_said(arguments, where, said, capsys):
    assert launch("--dry-run", *arguments, **where) == 2
    assert said in capsys.readouterr().err


def status(*conditions, restarts=0):
    found = [{"type": kind, "status": "True", "message": "because"} for kind in conditions]
    return [0, json.dumps({"status": {"restarts": restarts, "conditions": found}}), ""]


SILENT = [1, "", "Unable to connect to the server"]
APPLIED = [0, "jobset created", ""]


def test_waits_through_restarts_and_silence(kubectl, caplog):
    answers = [APPLIED, [0, "{}", ""], SILENT, [0, "no JSON", ""], status(restarts=1), status(restarts=1)]
    (kubectl / "answers").write_text(json.dumps([*answers, status("Suspended"), status("Completed")]))
    with caplog.at_level("INFO", gke.__name__):
        assert launch() == 0
    told = [record.getMessage() for record in caplog.records if record.name == gke.__name__]
    assert told == ["Restart 1 of at most 100.", "llama2-7b is done."]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([[1, "", "error: no context"]], "kubectl did not take the job: error: no context"),
        ([APPLIED, status(), status("Failed")], "llama2-7b failed (because)"),
        ([APPLIED, [1, "", "Error from server (NotFound): jobsets"]], "somebody deleted it"),
        ([APPLIED, SILENT], "The cluster does not answer (Unable to connect to the server)"),
    ],
)
def test_how_it_ends_badly(answers, said, kubectl, capsys, monkeypatch):
    monkeypatch.setattr(gke, "PATIENCE", 3)
    (kubectl / "answers").write_text(json.dumps(answers))
    assert launch() == 2
    assert said in capsys.readouterr().err


def test_no_kubectl_is_said(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    shown = dry(capsys)  # needs none
    assert "kubectl apply -f -" in shown
    assert launch() == 2
    assert "There is no program 'kubectl'" in capsys.readouterr().err


def test_texts_stay_as_they_are():
    odd = {"a": "x: y\n  # no comment\n'''\n", "b": "ü\ttab \n", "c": "on", "d": "0"}
    assert yaml.safe_load(gke.dump([odd])) == odd


def test_stacks_of_every_host(kubectl, capsys, monkeypatch):
    monkeypatch.setattr(gke, "STACKS_SECONDS", 0)
    answers = [[0, "pod/a\npod/b", ""], [0, "", ""], [0, "", ""], [0, "Thread 1 of a", ""], [1, "", "b is gone"]]
    (kubectl / "answers").write_text(json.dumps(answers))
    assert launch("--stacks", "--name=job") == 0
    assert [words[0] for words, _ in calls(kubectl)] == ["get", "exec", "exec", "logs", "logs"]
    assert all(ASK_FOR_STACKS in words for words, _ in calls(kubectl)[1:3])
    printed = capsys.readouterr().out
    assert "--- pod/a\nThread 1 of a" in printed and "--- pod/b\nb is gone" in printed
    (kubectl / "answers").write_text(json.dumps([[0, "", ""]]))
    assert launch("--stacks", "--name=job") == 2
    assert "No host of job is there" in capsys.readouterr().err
