"""Replays the steps of the Dockerfile beside it in a folder, where there is no builder of images.

    python launch/container/replay.py /var/tmp/replay [--target beam-worker] [--build-arg EXTRAS=tpu]

mmdebstrap (Debian's package of that name) makes the base, from the Debian release that the base image's tag names and its
Python of the same minor version. Then what the file says is done, in its order, in a namespace of its own, and the image's
user tries what the image is for. Needs root, the network and 10 GB; takes some minutes, and so is no part of the tests.
What it cannot show: the base image's own files, and what is copied from Beam's image.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
PATH = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
# Of this machine, for the network's sake; no builder has them from the Dockerfile either.
NETWORK = re.compile(r"PIP_(CERT|INDEX_URL|DEFAULT_TIMEOUT)|SSL_CERT_FILE|(https?|no)_proxy", re.IGNORECASE)
NETWORK_FILES = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")

CHECK = """\
set -e
echo "user $(id -u), home $HOME"
test "$(id -u)" != 0
touch "$HOME/may-write"
if touch "$(python -c 'import anygpt_jax; print(anygpt_jax.__path__[0])')/may-not-write" 2> /dev/null; then exit 1; fi
if touch /opt/anygpt/may-not-write 2> /dev/null; then exit 1; fi
cd "$HOME"
python -c 'import anygpt_jax.training.main, anygpt_jax.multihost, jax; print("jax", jax.__version__)'
python -c 'import soundfile; print("libsndfile", soundfile.__libsndfile_version__)'
if python -c 'import seqio' 2> /dev/null; then
  python -c 'import anygpt_jax.tasks.tokenize, anygpt_jax.evaluation.main; import apache_beam as b; print("Beam", b.__version__)'
fi
if test -e /opt/anygpt/constraints/google_cloud.txt; then  # a worker of Beam
  python -c 'import apache_beam.runners.dataflow.internal.apiclient, apache_beam.io.gcp.gcsio'
fi
anygpt --help > /dev/null
"""


@dataclasses.dataclass(frozen=True)
class Stage:
    """`FROM base AS name` and the instructions after it."""

    base: str
    name: str
    steps: tuple[tuple[str, str], ...]  # ("RUN", "pip …")


def parse(text: str) -> list[Stage]:
    """A Dockerfile's stages; continued lines are joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = re.fullmatch(r"(\S+)( AS (\S+))?", rest.strip()).groups()  # type: ignore[union-attr]
            stages.append(Stage(base, name or "", ()))
        else:
            stages[-1] = dataclasses.replace(stages[-1], steps=(*stages[-1].steps, (word, rest.strip())))
    return stages


def chain(stages: list[Stage], target: str) -> list[Stage]:
    """The stages that become `target`, the first of them from an image."""
    by_name = {stage.name: stage for stage in stages}
    found = [by_name[target]]
    while found[0].base in by_name:
        found.insert(0, by_name[found[0].base])
    return found


class Root:
    """A folder that is becoming a stage's image; `others` are the folders of stages that are made."""

    def __init__(self, path: pathlib.Path, given: dict[str, str], others: dict[str, pathlib.Path]):
        self.path, self.given, self.others = path, given, others
        self.environment = {"PATH": PATH}
        self.arguments: dict[str, str] = {}
        self.workdir, self.user, self.entrypoint = pathlib.PurePosixPath("/"), "0", ""

    def do(self, word: str, rest: str) -> None:
        match word:
            case "ARG":
                name, _, value = rest.partition("=")
                self.arguments[name] = self.given.get(name, "".join(shlex.split(value)))
            case "ENV":
                self.environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
            case "WORKDIR":
                self.workdir = self.workdir / rest
                self.inside(self.workdir).mkdir(parents=True, exist_ok=True)
            case "USER":
                self.user = re.sub(r"\$\{(\w+)\}", lambda m: self.arguments[m[1]], rest)
            case "COPY":
                self.copy(rest.split())
            case "RUN":
                self.run(rest)
            case "ENTRYPOINT":
                self.entrypoint = rest
            case _:
                sys.exit(f"replay: {word} is not known here.")

    def inside(self, path: pathlib.PurePosixPath) -> pathlib.Path:
        return self.path / path.relative_to("/")

    def copy(self, words: list[str]) -> None:
        context = REPOSITORY
        if words[0].startswith("--from="):
            stage = words.pop(0).partition("=")[2]
            if stage not in self.others:
                print(f"    left out: there is no {stage} here")
                return
            context = self.others[stage]
        *sources, target = words
        into = self.inside(self.workdir / target)
        for source in sources:
            path = context / source.lstrip("/")
            if path.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, into, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                file = into / path.name if target.endswith("/") else into
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, file)

    def run(self, command: str) -> None:
        """As /bin/sh of the image runs it, with its own mounts, which end with it."""
        network = {name: value for name, value in os.environ.items() if NETWORK.fullmatch(name)}
        variables = [f"{k}={v}" for k, v in (network | self.environment | self.arguments).items()]
        mounts = [f"mount -t proc proc {self.path}/proc", f"mount --rbind /dev {self.path}/dev"]
        for name in NETWORK_FILES:
            mounts += [
                f"mkdir -p $(dirname {self.path}{name})",
                f"touch {self.path}{name}",
                f"mount --bind {name} {self.path}{name}",
            ]
        inner = shlex.join(
            ["env", "-i", *variables, "/bin/sh", "-c", f"cd {shlex.quote(str(self.workdir))} && {command}"]
        )
        user = f"{self.user}:{self.user}"
        script = f"set -e; {'; '.join(mounts)}; exec chroot --userspec={user} {self.path} {inner}"
        subprocess.run(["unshare", "--mount", "--pid", "--fork", "sh", "-c", script], check=True)


def bootstrap(path: pathlib.Path, image: str) -> None:
    """A Debian with `python` and `pip` in /usr/local, as the base image has them."""
    version, release = re.fullmatch(r"python:(3\.\d+)-slim-(\w+)", image).groups()  # type: ignore[union-attr]
    packages = f"ca-certificates,python{version},python{version}-venv"
    command = ["mmdebstrap", "--mode=root", "--variant=apt", f"--include={packages}", release, str(path)]
    subprocess.run(command, check=True)
    Root(path, {}, {}).run(f"python{version} -m venv /usr/local")


def replay(folder: pathlib.Path, target: str, given: dict[str, str]) -> Root:
    """Makes the stages of `target`, and those that it copies from, each in folder/NAME."""
    stages = parse((HERE / "Dockerfile").read_text())
    by_name = {stage.name: stage for stage in stages}
    done: dict[str, pathlib.Path] = {}
    began = time.time()

    def say(what: str) -> None:
        print(f"[{time.time() - began:4.0f} s] {what}", flush=True)

    def make(name: str) -> Root:
        needed = chain(stages, name)
        image = folder / needed[0].base.replace(":", "-").replace("/", "-")
        if not image.exists():
            say(f"FROM {needed[0].base}, by mmdebstrap")
            bootstrap(image, needed[0].base)
        for stage in needed:
            for word, rest in stage.steps:
                other = re.match(r"--from=(\S+)", rest) if word == "COPY" else None
                if other and other[1] not in done and chain(stages, other[1])[0].steps:
                    make(other[1])
        root = Root(folder / name, given, done)
        subprocess.run(["rm", "-rf", str(root.path)], check=True)
        subprocess.run(["cp", "-a", str(image), str(root.path)], check=True)
        for stage in needed:
            for word, rest in stage.steps:
                say(f"{stage.name}: {word} {rest}")
                root.do(word, rest)
        done[name] = root.path
        return root

    if target not in by_name:
        sys.exit(f"There is no target {target}; there are {', '.join(by_name)}.")
    root = make(target)
    say(f"checking as user {root.user}; the entry point is {root.entrypoint}")
    root.workdir = pathlib.PurePosixPath("/")
    root.run(CHECK)
    say("done")
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=pathlib.Path, help="where stages are made, NAME/; the base stays for the next time"
    )
    parser.add_argument("--target", default="trainer")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    replay(args.folder.resolve(), args.target, dict(a.split("=", 1) for a in args.build_arg))


if __name__ == "__main__":
    main()
