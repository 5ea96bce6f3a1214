"""What GKE runs of a job: its config as a ConfigMap, and a JobSet of one child Job a slice and one pod a host.

GKE's webhook gives the pods of an Indexed Job with a headless service (JobSet makes it) TPU_WORKER_ID and
TPU_WORKER_HOSTNAMES, and those of a JobSet of several slices MEGASCALE_COORDINATOR_ADDRESS, _NUM_SLICES and _SLICE_ID;
`jax.distributed.initialize()` reads them (jax/_src/clusters/cloud_tpu_cluster.py), so that the manifest sets none. API:
jobset.sigs.k8s.io (v1alpha2); labels: cloud.google.com/kubernetes-engine/docs/how-to/tpus and …/tpu-multislice; volume:
…/how-to/cloud-storage-fuse-csi-driver-ephemeral.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import yaml

from anygpt_jax.errors import UserError
from anygpt_jax.launching.job import Job
from anygpt_jax.launching.policy import USER_ERROR

BUCKET = pathlib.PurePosixPath("/bucket")  # where pods have it
CONFIG = "/config/config.py"
CONTAINER = "anygpt"
LABEL = "anygpt-job"  # of all that a job is on the cluster
# TPU hosts among each other, the coordinator of several slices, the TPU runtime's metrics, jax's coordinator.
PORTS = (8471, 8080, 8431, 8482)
# Hosts must see at once what others wrote: no cached metadata. A bucket without folders of its own renames by copying.
MOUNT_OPTIONS = "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0,rename-dir-limit=1000000"
# The driver locks the memory that TPUs read and write (…/how-to/tpus#privileged-mode; in KiB). Only root with the
# capability may raise the limit.
START = (
    "ulimit -l 68719476736 || echo 'The limit of locked memory could not be raised; the TPU may refuse to work, or hang. "
    'See --uid.\' >&2; exec "$0" "$@"'
)


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
        # Named by what is in it: a JobSet that runs keeps its own, and a new one never gets an old one.
        "metadata": {"name": config_name(job), "namespace": args.namespace, "labels": {LABEL: job.name}},
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
            "labels": {LABEL: job.name},
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


def config_name(job: Job) -> str:
    """Of the job's ConfigMap: JOB-DIGEST, so that another config has another one."""
    return f"{job.name}-{job.digest()}"


def pod(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """The template of a host's pod."""
    slices = job.accelerator
    assert slices is not None
    user = args.uid
    capabilities = {"drop": ["ALL"]} | ({"add": ["SYS_RESOURCE"]} if user == 0 else {})
    spot = {"cloud.google.com/gke-spot": "true"} if args.spot else {}
    tolerations: list[dict[str, str]] = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    tolerations += [{"key": k, "operator": "Equal", "value": v, "effect": "NoSchedule"} for k, v in spot.items()]
    container = {
        "name": CONTAINER,
        "image": args.image,
        # Kubernetes would expand $(NAME).
        "command": [word.replace("$(", "$$(") for word in ("sh", "-c", START, *job.argv(CONFIG))],
        "workingDir": str(BUCKET),  # the config's relative paths lie in the bucket
        "env": [{"name": "JAX_PLATFORMS", "value": "tpu,cpu"}],  # without its TPU a host fails, and is no slow CPU
        "ports": [{"containerPort": port} for port in PORTS],
        "resources": {"limits": {"google.com/tpu": slices.chips_per_host}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": capabilities},
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
            {"name": "config", "configMap": {"name": config_name(job)}},
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
