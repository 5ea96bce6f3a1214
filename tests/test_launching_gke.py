"""`--target=gke`: what kubectl is told, what the user is told of the job, and how it ends."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import yaml

from anygpt_jax import cli
from anygpt_jax.launching import gke
from anygpt_jax.launching.tpu_vm_hosts import ASK_FOR_STACKS

ROOT = pathlib.Path(__file__).parents[1]

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


def hosts_pod(jobset):
    """The template of its hosts' pods."""
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_bash_runs_what_is_shown(kubectl, capsys):
    shown = dry(capsys, "--name=a-run")
    subprocess.run(["bash", "-e"], input=shown, text=True, check=True, capture_output=True)
    shown_calls = calls(kubectl)
    assert [call[0][0] for call in shown_calls] == ["apply"]
    later = [line.split()[2] for line in shown.splitlines() if line.startswith("# kubectl ")]
    assert later == ["get", "logs", "delete"]  # to be read, and not run with the script
    (kubectl / "calls").unlink()
    assert launch("--name=a-run", "--detach") == 0
    assert calls(kubectl) == shown_calls


def test_another_config_takes_nobodys_place(kubectl, capsys):
    first, of_first = manifests(dry(capsys, "--name=a-run"))
    second, of_second = manifests(dry(capsys, "--name=a-run", "--config.seed=7"))
    again, _ = manifests(dry(capsys, "--name=a-run"))
    names = [config["metadata"]["name"] for config in (first, second, again)]
    assert names[0] == names[2] != names[1]
    for name, jobset in zip(names[:2], (of_first, of_second), strict=True):
        assert jobset["metadata"]["name"] == "a-run"
        assert hosts_pod(jobset)["volumes"][0] == {"name": "config", "configMap": {"name": name}}
    (kubectl / "answers").write_text(json.dumps([[1, "", "field is immutable"]]))
    assert launch("--name=a-run") == 2
    assert "must be ended first: kubectl delete jobsets,configmaps" in capsys.readouterr().err


def test_the_end_takes_all_of_the_job(capsys):
    shown = dry(capsys, "--name=a-run", "--namespace=ours")
    (end,) = [line.removeprefix("# ").split() for line in shown.splitlines() if line.startswith("# kubectl delete")]
    kinds, space, (flag, key, value) = end[2].split(","), end[3], end[4].split("=")
    assert (kinds, space, flag) == (["jobsets", "configmaps"], "--namespace=ours", "--selector")
    for document in manifests(shown):
        assert document["kind"].lower() + "s" in kinds
        assert document["metadata"]["labels"] == {key: value}
        assert document["metadata"]["namespace"] == "ours"


def test_hosts_run_the_config_as_it_was(tmp_path, capsys):
    arguments = ("--job=evaluate", "--name=scores", "--", "--tasks=vqav2", "--data=$(HOME)/evaluation")
    config, jobset = manifests(dry(capsys, "--config.seed=7", *arguments))
    (container,) = hosts_pod(jobset)["containers"]
    command = ["anygpt", "evaluate", "--config=/config/config.py", "--tasks=vqav2", "--data=$$(HOME)/evaluation"]
    assert container["command"][-len(command) :] == command
    assert config["metadata"]["name"].startswith("scores-")
    (tmp_path / "config.py").write_text(config["data"]["config.py"])
    loaded = cli.load_config(str(tmp_path / "config.py"))
    assert (loaded.seed, loaded.multihost, loaded.model.d_ff) == (7, True, 11008)


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
    assert told[:2] == [
        "Needs node pools in the cluster, one a slice: 1 of 16 ct5p-hightpu-4t with topology 4x4x4.",
        "Restart 1 of at most 100.",
    ]
    (done,) = told[2:]
    assert done.startswith("llama2-7b is done.") and "node pools" in done


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


# A cluster whose hosts take a while to be asked, and whose logs hold what was said within --since, on the second.
STACKS = """#!/bin/bash
case "$1" in
  get) cat "$FOLDER/pods" ;;
  exec)
    sleep 0.1
    [ "$5" = -- ] && [ "$8" = "$ASK" ] && date +%s.%N > "$FOLDER/${3#pod/}"
    ;;
  logs)
    since=${5#--since=}
    said=$(cat "$FOLDER/${3#pod/}" 2> /dev/null) || { echo "${3#pod/} was not asked" >&2; exit 1; }
    if (( $(date +%s) - ${since%s} < ${said%.*} )); then echo "Thread 1 of ${3#pod/}"; fi
    ;;
esac
"""


def test_stacks_of_every_host(kubectl, capsys, monkeypatch):
    (kubectl / "bin" / "kubectl").write_text(STACKS)
    monkeypatch.setattr(gke, "STACKS_SECONDS", 0)
    monkeypatch.setenv("FOLDER", str(kubectl))
    monkeypatch.setenv("ASK", ASK_FOR_STACKS)
    hosts = [f"host-{i}" for i in range(64)]
    (kubectl / "pods").write_text("".join(f"pod/{host}\n" for host in hosts))
    assert launch("--stacks", "--name=job") == 0
    assert capsys.readouterr().out == "".join(f"--- pod/{host}\nThread 1 of {host}\n" for host in hosts)

    (kubectl / "pods").write_text("pod/a")
    monkeypatch.setenv("ASK", "another question")
    assert launch("--stacks", "--name=job") == 0
    assert "--- pod/a\na was not asked" in capsys.readouterr().out

    (kubectl / "pods").write_text("")
    assert launch("--stacks", "--name=job") == 2
    assert "No host of job is there" in capsys.readouterr().err


def test_stacks_dry(kubectl, capsys):
    shown = dry(capsys, "--stacks", "--name=job")
    subprocess.run(["bash", "-e"], input=shown, text=True, check=True, capture_output=True)
    assert [words[0] for words, _ in calls(kubectl)] == ["get"]
    assert "\n# kubectl exec" in shown and "\n# kubectl logs" in shown
