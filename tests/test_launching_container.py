"""The image's Dockerfile: a linter, and what it must agree with in the rest of the repository."""

import dataclasses
import fnmatch
import importlib.metadata
import io
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys

import pytest
import setuptools
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from anygpt_jax.training.run_folder import SECRET

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "launch" / "container"

TEXT = (FOLDER / "Dockerfile").read_text()
TARGETS = ("trainer", "beam-worker")


@dataclasses.dataclass(frozen=True)
class Stage:
    """`FROM base AS name` and the (instruction, its words) after it."""

    base: str
    name: str
    steps: list[tuple[str, str]]


def stages():
    found = {}
    for one in DockerfileParser(fileobj=io.BytesIO(TEXT.encode()), env_replace=False).structure:
        if one["instruction"] == "FROM":
            base, _, name = one["value"].split()
            last = found[name] = Stage(base, name, [])
        elif one["instruction"] != "COMMENT":
            last.steps.append((one["instruction"], one["value"]))
    return found


STAGES = stages()


def steps(target, word):
    """What the target's image is made by, its own stage's and those of the stages below it."""
    stage = STAGES[target]
    below = steps(stage.base, word) if stage.base in STAGES else []
    return below + [rest for w, rest in stage.steps if w == word]


@pytest.fixture(scope="module")
def packaging():
    """What setup.py says of the package."""
    found = {}
    before = setuptools.setup
    setuptools.setup = lambda **said: found.update(said)
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        setuptools.setup = before
    return found


def pins(path):
    """A constraints file: {package: version}."""
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def test_hadolint():
    hadolint = shutil.which("hadolint", path=str(pathlib.Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("there is no hadolint; it is in the dev extra on Linux")
    done = subprocess.run([hadolint, "--no-color", str(FOLDER / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_beam_is_that_of_setup(packaging):
    (required,) = [r for r in packaging["extras_require"]["data"] if r.startswith("apache-beam")]
    version = required.partition("==")[2]
    assert re.findall(r"beam_python3.11_sdk:(\S+)", TEXT) == [version]
    assert re.findall(r"apache-beam\[gcp\]==([\d.]+)", TEXT) == [version]
    assert pins(ROOT / "constraints" / "py311.txt")["apache-beam"] == version


def test_every_package_has_one_version(packaging):
    """The extras' in constraints/, Google's clients in a file beside the Dockerfile; each is there when pip runs."""
    for (
        name,
        stage,
    ) in STAGES.items():  # in each that installs: not every builder hands arguments on from stage to stage
        installs = [rest for word, rest in stage.steps if word == "RUN" and re.search(r"pip (wheel|install)", rest)]
        if any("--force-reinstall" not in rest for rest in installs):
            assert ("ARG", "PIP_CONSTRAINT=/opt/anygpt/constraints/py311.txt") in stage.steps, name
    assert "constraints constraints" in steps("trainer", "COPY")
    assert "/opt/anygpt" in steps("trainer", "WORKDIR")
    pinned = pins(ROOT / "constraints" / "py311.txt")
    (extras,) = [rest.partition("=")[2] for rest in steps("trainer", "ARG") if rest.startswith("EXTRAS=")]
    asked = [Requirement(r) for extra in extras.split(",") for r in packaging["extras_require"][extra]]
    asked += [Requirement(r) for r in packaging["install_requires"]]
    assert {canonicalize_name(r.name) for r in asked} - pinned.keys() == set()

    (google,) = [rest for rest in steps("beam-worker", "RUN") if "apache-beam[gcp]" in rest]
    assert " -c constraints/google_cloud.txt " in google
    assert "launch/container/google_cloud.txt constraints/" in steps("beam-worker", "COPY")
    clouds = pins(FOLDER / "google_cloud.txt")
    assert not pinned.keys() & clouds.keys()
    required = [Requirement(line) for line in importlib.metadata.requires("apache-beam")]
    brought = {canonicalize_name(r.name) for r in required if r.marker and r.marker.evaluate({"extra": "gcp"})}
    assert "google-cloud-storage" in brought
    assert brought - (pinned | clouds).keys() == set()


def test_what_is_copied_is_there_and_sent_to_the_builder():
    for target in (*TARGETS, "wheel"):
        sources = [word for rest in steps(target, "COPY") if "--from" not in rest for word in rest.split()[:-1]]
        assert sources
        for source in sources:
            assert (ROOT / source).exists(), source
            assert sent(source), source
    for other in ("tests/conftest.py", ".git/config", "runs/a/logs/launch/config.py", ".env", "launch/test.sh",
                  "launch/container/build.sh", "anygpt_jax/model/__pycache__/decoder.cpython-311.pyc"):  # fmt: skip
        assert not sent(other), other


def sent(path):
    """Whether Docker sends a path: the last pattern that matches it, or a folder it is in, decides (docs.docker.com)."""
    parts = path.split("/")
    found = True
    for line in (FOLDER / "Dockerfile.dockerignore").read_text().split():
        pattern = line.lstrip("!")
        prefixes = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        if any(matches(prefix, pattern) for prefix in prefixes):
            found = line.startswith("!")
    return found


def matches(path, pattern):
    """`*` is of one folder, `**/` of any number of them."""
    if pattern.startswith("**/"):
        return fnmatch.fnmatch(path.rsplit("/", 1)[-1], pattern[3:])
    names, patterns = path.split("/"), pattern.split("/")
    return len(names) == len(patterns) and all(map(fnmatch.fnmatch, names, patterns))


@pytest.mark.parametrize("target", TARGETS)
def test_user_is_no_root(target):
    """A number: Kubernetes' runAsNonRoot knows no names."""
    *earlier, last = steps(target, "USER")
    assert not earlier
    assert last in ("1000", "${WORKER_USER}")
    if last != "1000":
        assert "WORKER_USER=1000" in steps(target, "ARG")
    assert any("useradd --uid 1000 " in rest for rest in steps(target, "RUN"))
    assert STAGES[target].steps[-1][0] == "ENTRYPOINT"


def test_the_trainer_is_built_if_no_target_is_named():
    assert list(STAGES)[-1] == "trainer"


def test_no_secret_is_asked_for():
    for target in TARGETS:
        for rest in steps(target, "ARG") + steps(target, "ENV"):
            assert not SECRET.search(rest), rest
    assert "--mount=type=secret" not in TEXT


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("ANYGPT_BUILD_IMAGES"), reason="takes 10 GB and half an hour")
@pytest.mark.parametrize("target", TARGETS)
def test_the_image_is_built_and_does_what_it_is_for(target):
    bases = {"BASES": "debian"} | dict(os.environ)
    subprocess.run(["bash", str(FOLDER / "build.sh"), target, f"localhost/anygpt-{target}:test"], env=bases, check=True)
