"""`--target=gke`: a JobSet on Google Kubernetes Engine, one child Job a slice, one pod a host.

GKE's webhook gives the pods of an Indexed Job with a headless service (JobSet makes it) TPU_WORKER_ID and
TPU_WORKER_HOSTNAMES, and those of a JobSet of several slices MEGASCALE_COORDINATOR_ADDRESS, _NUM_SLICES and _SLICE_ID;
`jax.distributed.initialize()` reads them (jax/_src/clusters/cloud_tpu_cluster.py), so that the manifest sets none. API:
jobset.sigs.k8s.io (v1alpha2); labels: cloud.google.com/kubernetes-engine/docs/how-to/tpus and …/tpu-multislice; volume:
…/how-to/cloud-storage-fuse-csi-driver-ephemeral.
"""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
import time
from typing import Any

import yaml

from anygpt_jax.errors import UserError
from anygpt_jax.launching.job import Job
from anygpt_jax.launching.policy import USER_ERROR
from anygpt_jax.launching.shell import Command, call
from anygpt_jax.launching.tpu_vm_hosts import ASK_FOR_STACKS

log = logging.getLogger(__name__)

BUCKET = pathlib.PurePosixPath("/bucket")  # where pods have it
CONFIG = "/config/config.py"
CONTAINER = "anygpt"
# TPU hosts among each other, the coordinator of several slices, the TPU runtime's metrics, jax's coordinator.
PORTS = (8471, 8080, 8431, 8482)
# Hosts must see at once what others wrote: no cached metadata. A bucket without folders of its own renames by copying.
MOUNT_OPTIONS = "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0,rename-dir-limit=1000000"
POLL_SECONDS = 30.0
STACKS_SECONDS = 3  # until they are in the log
PATIENCE = 20  # polls without an answer, after which the cluster is given up


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("gke", "a JobSet, applied with kubectl to its current cluster")
    group.add_argument("--image", required=True, help="the container's, with its tag")
    group.add_argument("--bucket", required=True, help=f"mounted at {BUCKET}, the folder that all paths begin in")
    group.add_argument("--namespace", default="default", help="of Kubernetes (default)")
    group.add_argument("--service-account", metavar="NAME", help="of Kubernetes, which may read and write the bucket")
    group.add_argument("--spot", action="store_true", help="on Spot machines")
    group.add_argument("--grace", type=int, default=600, metavar="SECONDS", help="that a save may take (600)")
    group.add_argument(
        "--uid", type=int, default=1000, metavar="N",
        help="the container's user (1000); 0, root, for nodes that open their TPUs to root alone",
    )  # fmt: skip
    group.add_argument("--detach", action="store_true", help="submit, and do not wait for the end")
    group.add_argument("--stacks", action="store_true", help="print what all hosts of the running job are doing")


def run(job: Job, args: argparse.Namespace) -> None:
    """Submits the job and waits for its end. UserError if it fails, or kubectl does."""
    if args.stacks:
        stacks(job, args)
        return
    apply = Command(("kubectl", "apply", "-f", "-"), dump(manifest(job, args)), "submit")
    if args.dry_run:
        print("\n".join(command.shown() for command in (apply, *others(job, args))))
        return
    outcome = call(apply, 120)
    if outcome.code:
        raise UserError(f"kubectl did not take the job: {outcome.error.strip()}")
    print(outcome.output.rstrip())
    for command in others(job, args):
        print(command.shown())
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
        Command(("kubectl", "delete", f"jobset/{job.name}", f"configmap/{job.name}", space), why="end it"),
    )


def stacks(job: Job, args: argparse.Namespace) -> None:
    """Prints what every Python thread of every host is doing, and changes nothing. UserError if no host is there."""
    space = f"--namespace={args.namespace}"
    of_job = f"--selector=jobset.sigs.k8s.io/jobset-name={job.name}"
    listed = Command(("kubectl", "get", "pods", space, of_job, "--output=name"), why="of each of them:")

    def of_host(host: str) -> tuple[Command, Command]:
        inside = (space, host, f"--container={CONTAINER}")
        return (
            Command(("kubectl", "exec", *inside, "--", "sh", "-c", ASK_FOR_STACKS)),
            Command(("kubectl", "logs", *inside, f"--since={STACKS_SECONDS * 3}s"), why="some seconds later"),
        )

    if args.dry_run:
        print("\n".join(command.shown() for command in (listed, *of_host("POD"))))
        return
    outcome = call(listed, 60)
    hosts = outcome.output.split()
    if outcome.code or not hosts:
        raise UserError(f"No host of {job.name} is there: {outcome.error.strip() or 'kubectl lists none'}.")
    for host in hosts:
        call(of_host(host)[0], 60)
    time.sleep(STACKS_SECONDS)
    for host in hosts:
        said = call(of_host(host)[1], 60)
        print(f"--- {host}\n{said.output.strip() or said.error.strip()}")


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
            log.info("%s is done.", job.name)
            return
        if "Failed" in conditions:
            why = conditions["Failed"].get("message", "no reason given")
            raise UserError(f"{job.name} failed ({why}); read its log, then end it and run the same command again.")
        if (now := (status or {}).get("restarts", 0)) > restarts:
            log.warning("Restart %d of at most %d.", now, job.max_restarts)
            restarts = now
        time.sleep(POLL_SECONDS)


def manifest(job: Job, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The config's ConfigMap and the JobSet, as Kubernetes' API has them. UserError for what GKE cannot do."""
    slices = job.accelerator
    assert slices is not None  # main.py sees to it
    if slices.slices > 1 and slices.hosts == 1:
        raise UserError(f"GKE joins slices of several hosts only, and {slices.name} is one; take larger slices.")
    workdir = pathlib.PurePosixPath(job.config.workdir)
    if workdir.is_absolute() and not workdir.is_relative_to(BUCKET):
        raise UserError(f"--workdir {workdir} must lie in the bucket, {BUCKET}/…, or be relative to it.")
    if args.grace < 1 or args.uid < 0:
        raise UserError("--grace must be at least 1, --uid at least 0.")
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": job.name, "namespace": args.namespace},
        "immutable": True,
        "data": {pathlib.PurePosixPath(CONFIG).name: job.config_file()},
    }
    policy = {
        "maxRestarts": job.max_restarts,
        "restartStrategy": "BlockingRecreate",  # no pod of the last start answers to a name of the next
        # A Job fails by its pod failure policy only if a host ended with a UserError: it would come again.
        "rules": [{"name": "userError", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    slice_job = {
        "completionMode": "Indexed",
        "completions": slices.hosts,
        "parallelism": slices.hosts,
        "backoffLimit": 0,  # a host alone cannot come back: the whole set starts again
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [USER_ERROR]},
                }
            ]
        },
        "template": pod(job, args),
    }
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "namespace": args.namespace,
            # A slice is a node pool of its own.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": policy,
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [{"name": "slice", "replicas": slices.slices, "template": {"spec": slice_job}}],
        },
    }
    return [config, jobset]


def pod(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """The template of a host's pod."""
    slices = job.accelerator
    assert slices is not None
    user = args.uid
    spot = {"cloud.google.com/gke-spot": "true"} if args.spot else {}
    tolerations: list[dict[str, str]] = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    tolerations += [{"key": k, "operator": "Equal", "value": v, "effect": "NoSchedule"} for k, v in spot.items()]
    container = {
        "name": CONTAINER,
        "image": args.image,
        "command": [word.replace("$(", "$$(") for word in job.argv(CONFIG)],  # Kubernetes would expand $(NAME)
        "workingDir": str(BUCKET),  # the config's relative paths lie in the bucket
        "env": [{"name": "JAX_PLATFORMS", "value": "tpu,cpu"}],  # without its TPU a host fails, and is no slow CPU
        "ports": [{"containerPort": port} for port in PORTS],
        "resources": {"limits": {"google.com/tpu": slices.chips_per_host}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "config", "mountPath": str(pathlib.PurePosixPath(CONFIG).parent), "readOnly": True},
            {"name": "bucket", "mountPath": str(BUCKET)},
        ],
    }
    attributes = {"bucketName": args.bucket, "mountOptions": f"{MOUNT_OPTIONS},uid={user},gid={user}"}
    spec = {
        "restartPolicy": "Never",
        # Only training has something to save. A Spot machine gives less, whatever is said here (docs/launching.md).
        "terminationGracePeriodSeconds": args.grace if job.verb == "train" else 30,
        "shareProcessNamespace": True,  # process 1 would not hear SIGTERM until jax listens for it
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": slices.family.gke_label,
            "cloud.google.com/gke-tpu-topology": slices.shape,
            **spot,
        },
        "tolerations": tolerations,
        "securityContext": {
            "runAsNonRoot": user != 0,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": job.name}},
            {"name": "bucket", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}},
        ],
    }
    if args.service_account:
        spec["serviceAccountName"] = args.service_account
    # The sidecar that mounts the bucket may use what the host has.
    limits = {f"gke-gcsfuse/{what}-limit": "0" for what in ("cpu", "memory", "ephemeral-storage")}
    return {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true", **limits}}, "spec": spec}


class _Dumper(yaml.SafeDumper):
    """Texts of several lines are written as such."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def dump(documents: list[dict[str, Any]]) -> str:
    """As `kubectl apply` reads it."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=10**9, allow_unicode=True)
