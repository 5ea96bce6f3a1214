"""Manifests for GKE: by Kubernetes' and JobSet's own schemas, by a count of chips, and by a shell that runs their words."""

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
from test_launching_gke import dry, hosts_pod, launch, manifests

from anygpt_jax import cli
from anygpt_jax.launching.jobset import dump
from anygpt_jax.launching.policy import Verdict, judge

KUBERNETES = "1.37"

# cloud.google.com/tpu/docs and cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus, not this project's table:
# name -> GKE's label, topology, chips of a slice, its hosts.
PUBLISHED = {
    "v4-128": ("tpu-v4-podslice", "4x4x4", 64, 16),
    "v5e-256": ("tpu-v5-lite-podslice", "16x16", 256, 64),
    "v5p-128": ("tpu-v5p-slice", "4x4x4", 64, 16),
    "v6e-256": ("tpu-v6e-slice", "16x16", 256, 64),
}


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


@pytest.mark.parametrize("uid", [0, 1000])
def test_privileges(uid, capsys):
    _, jobset = manifests(dry(capsys, f"--uid={uid}"))
    (container,) = hosts_pod(jobset)["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]} | ({"add": ["SYS_RESOURCE"]} if uid == 0 else {}),
    }
    assert hosts_pod(jobset)["securityContext"]["runAsNonRoot"] is (uid != 0)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user, or raise a limit")
@pytest.mark.parametrize("uid", [0, 1000])
def test_hosts_raise_the_limit_of_locked_memory(uid, capsys):
    _, jobset = manifests(dry(capsys, f"--uid={uid}"))
    (container,) = hosts_pod(jobset)["containers"]
    # The same words with a program of ours at their end, whose limit is at first 64 KiB and may not be more for uid 1000.
    words = [word.replace("$$(", "$(") for word in container["command"]]
    start = words[: words.index("anygpt")]
    low = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536)); os.setgroups([]);"
    low += f" os.setuid({uid}); os.execvp(sys.argv[1], sys.argv[1:])"
    ended = subprocess.run(
        [sys.executable, "-c", low, *start, "sh", "-c", 'echo "$$ $1"; ulimit -l; exit 2', "sh", "two words"],
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    said, limit = ended.stdout.splitlines()
    assert ended.returncode == 2  # the program's
    assert said.endswith(" two words")
    raised = may_raise()
    assert limit == ("68719476736" if uid == 0 and raised else "64")
    assert ("could not be raised" in ended.stderr) is not (uid == 0 and raised)


def may_raise():
    """Whether root has CAP_SYS_RESOURCE (bit 24) here."""
    (line,) = [line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")]
    return bool(int(line.split()[1], 16) >> 24 & 1)


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


def test_texts_stay_as_they_are():
    odd = {"a": "x: y\n  # no comment\n'''\n", "b": "ü\ttab \n", "c": "on", "d": "0"}
    assert yaml.safe_load(dump([odd])) == odd
