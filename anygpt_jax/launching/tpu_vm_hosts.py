"""What the hosts of a TPU slice run, as lines for their shell: the job in a container, and questions about it.

A container is named by the job and the number of its start, so that a start can be asked for twice and happens once, and
what earlier starts said stays on the host. A start may come late, by an ssh that hung: it does nothing where one of its
number or a later one has been made, and ends what still runs of earlier ones. Docker needs --privileged for the TPU's devices and the host's network for the
metadata server, from which jax and libtpu learn of the slice's hosts and, with several slices, of the other slices
(cloud.google.com/tpu/docs/run-in-container; jax's cloud_tpu_cluster.py).
"""

from __future__ import annotations

import base64
import dataclasses
import re
import shlex

from anygpt_jax.launching.job import Job

BUCKET = "/bucket"  # where the bucket is mounted, on the host and in the container
CONFIG = "/anygpt/config.py"  # in the container

# Asks every process of a container that has a handler for SIGUSR2 (the trainer's prints all its stacks, see
# training/profiler.py) to run it; the others would die of the signal. For `sh -c`, by docker exec or kubectl exec.
ASK_FOR_STACKS = (
    "for p in /proc/[0-9]*; do while read -r k v; do "
    'if [ "$k" = SigCgt: ] && [ $((0x${v#????????} & 0x800)) -ne 0 ]; then kill -USR2 "${p#/proc/}"; fi; '
    "done < $p/status; done 2> /dev/null; true"
)

# Hosts must see at once what others wrote: no cached metadata. Packages: cloud.google.com/storage/docs/
# cloud-storage-fuse/install. A host that has just booted may be installing updates, hence the patience with apt's lock.
_GCSFUSE = """\
if ! command -v gcsfuse > /dev/null; then
  curl --fail --silent --show-error https://packages.cloud.google.com/apt/doc/apt-key.gpg \
| sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt \
gcsfuse-$(lsb_release -c -s) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list
  sudo apt-get -o DPkg::Lock::Timeout=300 -q update
  sudo apt-get -o DPkg::Lock::Timeout=300 -q -y install gcsfuse
fi
sudo mkdir -p {bucket_path}
mountpoint -q {bucket_path} || \
sudo gcsfuse -o allow_other --implicit-dirs --rename-dir-limit=1000000 --metadata-cache-ttl-secs=0 \
--metadata-cache-negative-ttl-secs=0 {bucket} {bucket_path}
"""

_START = """\
set -eu
leave_if_late() {{
  runs=$(sudo docker ps --all --filter=label=anygpt-job={job} --format='{{{{.Label "anygpt-run"}}}}')
  for number in $runs; do if [ "$number" -ge {run} ]; then exit 0; fi; done
}}
leave_if_late
mkdir -p ~/anygpt
echo {config} | base64 --decode > ~/anygpt/{job}.py
{bucket}{login}sudo docker pull --quiet {image}
echo always | sudo tee /sys/kernel/mm/transparent_hugepage/enabled
exec 9> ~/anygpt/{job}.lock
flock 9
leave_if_late
older=$(sudo docker ps --quiet --filter=label=anygpt-job={job})
test -z "$older" || sudo docker kill $older
sudo docker run --detach --name={container} --label=anygpt-job={job} --label=anygpt-run={run} \
--label=anygpt-digest={digest} --privileged --network=host --ulimit=memlock=-1 --stop-timeout=120 \
--user=root --init --env=JAX_PLATFORMS=tpu,cpu --workdir={path} --volume={path}:{path} \
--volume=$HOME/anygpt/{job}.py:{config_path}:ro --entrypoint={program} {image} {arguments}
"""

_LOOK = """\
names=$(sudo docker ps --all --quiet --filter=label=anygpt-job={job}) || exit 1
set -- $names
if [ $# -eq 0 ]; then
  echo "anygpt-host $(hostname) absent"
else
  sudo docker container inspect --format="anygpt-host $(hostname) {fields}" $1
fi
"""
_FIELDS = " ".join(
    (
        r"{{index .Config.Labels \"anygpt-run\"}}",
        "{{.State.Status}} {{.State.ExitCode}} {{.State.FinishedAt}}",
        r"{{index .Config.Labels \"anygpt-digest\"}}",
    )
)
_SAID = re.compile(
    r"^anygpt-host (?P<name>\S+) (?:absent|(?P<run>\d+) (?P<status>[a-z]+) (?P<code>\d+) (?P<ended>\S+Z) (?P<digest>\w+))$"
)

_STOP = """\
names=$(sudo docker ps --quiet --filter=label=anygpt-job={job}) || exit 1
test -z "$names" || sudo docker kill $names
"""

_STACKS = """\
names=$(sudo docker ps --quiet --filter=label=anygpt-job={job}) || exit 1
set -- $names
if [ $# -eq 0 ]; then echo "$(hostname): the job does not run here"; exit 0; fi
sudo docker exec --user=root $1 sh -c {ask}
sleep 3
sudo docker logs --since=6s $1 2>&1 | sed "s/^/$(hostname): /"
"""


@dataclasses.dataclass(frozen=True)
class Host:
    """What a host says of the job's newest container on it."""

    name: str
    run: int = -1  # the number of the start that made the container; -1: it has none
    status: str = ""  # Docker's
    code: int = 0  # of its end
    ended_at: str = ""  # RFC 3339, UTC
    digest: str = ""  # of what was to be run

    @property
    def ended(self) -> bool:
        """Created with a code: Docker could not run the program."""
        return self.status in ("exited", "dead") or (self.status == "created" and self.code != 0)

    @property
    def runs(self) -> bool:
        """Whether the container has not ended: it is at work, or is about to start."""
        return self.run >= 0 and not self.ended


def hosts(output: str) -> list[Host]:
    """Reads what `look` printed, on all hosts; lines that are not whole are left out."""
    found: dict[str, Host] = {}
    for line in output.splitlines():
        if said := _SAID.match(line.strip()):
            name = said["name"]
            if said["run"] is None:
                found[name] = Host(name)
            else:
                code = 255 if said["status"] == "dead" else int(said["code"])
                found[name] = Host(name, int(said["run"]), said["status"], code, said["ended"], said["digest"])
    return sorted(found.values(), key=lambda host: host.name)


def container(job: Job, run: int) -> str:
    """A container's name, on every host the same; earlier starts' keep theirs."""
    return f"{job.name}-{run}"


def start(job: Job, run: int, image: str, bucket: str, digest: str) -> str:
    """Runs the job in a new container, unless its start number `run` or a later one has been made here."""
    program, *arguments = job.argv(CONFIG)
    registry = image.partition("/")[0]
    login = ""
    if registry.endswith(("-docker.pkg.dev", "gcr.io")):  # by the host's service account
        login = f"sudo gcloud auth configure-docker {shlex.quote(registry)} --quiet\n"
    return _START.format(
        container=container(job, run),
        job=job.name,
        run=run,
        digest=digest,
        config=base64.b64encode(job.config_file().encode()).decode(),
        bucket=_GCSFUSE.format(bucket=shlex.quote(bucket), bucket_path=BUCKET),
        login=login,
        image=shlex.quote(image),
        path=BUCKET,
        config_path=CONFIG,
        program=program,
        arguments=shlex.join(arguments),
    )


def look(job: Job) -> str:
    """Says what became of the job's newest container."""
    return _LOOK.format(job=job.name, fields=_FIELDS)


def stop(job: Job) -> str:
    """Ends the job's containers, at once."""
    return _STOP.format(job=job.name)


def stacks(job: Job) -> str:
    """Prints what every thread of the job's processes is doing."""
    return _STACKS.format(job=job.name, ask=shlex.quote(ASK_FOR_STACKS))


def log(job: Job, run: int, since: str) -> str:
    """Prints what the container has said since a time (RFC 3339; "": the last 50 lines), each line after its time."""
    which = f"--since={shlex.quote(since)}" if since else "--tail=50"
    return f"sudo docker logs --timestamps {which} {container(job, run)} 2>&1"


def last_words(job: Job, run: int, host: str) -> str:
    """Prints the last lines of one host's container; the others print nothing."""
    return (
        f'if [ "$(hostname)" = {shlex.quote(host)} ]; then\n  sudo docker logs --tail=30 {container(job, run)} 2>&1\nfi'
    )
