"""The image's Dockerfile: a linter, and what it must agree with in the rest of the repository."""

import fnmatch
import importlib.metadata
import importlib.util
import pathlib
import re
import runpy
import shutil
import subprocess
import sys

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from anygpt_jax.training.run_folder import SECRET

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "launch" / "container"

spec = importlib.util.spec_from_file_location("replay", FOLDER / "replay.py")
replay = importlib.util.module_from_spec(spec)
sys.modules["replay"] = replay  # dataclasses look for it there
spec.loader.exec_module(replay)

TEXT = (FOLDER / "Dockerfile").read_text()
STAGES = {stage.name: stage for stage in replay.parse(TEXT)}
TARGETS = ("trainer", "beam-worker")


def steps(target, word):
    return [rest for stage in replay.chain(list(STAGES.values()), target) for w, rest in stage.steps if w == word]


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
    (constraint,) = [rest for rest in steps("trainer", "ARG") if rest.startswith("PIP_CONSTRAINT=")]
    assert constraint.partition("=")[2] == "/opt/anygpt/constraints/py311.txt"
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
                  "launch/container/replay.py", "anygpt_jax/model/__pycache__/decoder.cpython-311.pyc"):  # fmt: skip
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


def test_replay_reads_a_dockerfile(tmp_path, monkeypatch):
    """The builder's stand-in, on a file whose meaning is plain."""
    monkeypatch.setattr(replay, "REPOSITORY", tmp_path)
    (tmp_path / "code" / "__pycache__").mkdir(parents=True)
    (tmp_path / "code" / "a.py").write_text("1")
    (tmp_path / "code" / "__pycache__" / "a.pyc").write_text("1")
    (tmp_path / "one").write_text("1")
    stages = replay.parse(
        'FROM image:1 AS first\n# a comment\nARG NAME="a b"\nRUN one \\\n && two\nFROM other AS unused\n'
        "FROM first AS last\nENV X=1 Y=2\nWORKDIR /opt/x\nCOPY one code ./\nCOPY one /etc/two\nCOPY --from=first /a.py /b/\nUSER 7\n"
    )
    assert [s.name for s in replay.chain(stages, "last")] == ["first", "last"]
    assert stages[0].steps == (("ARG", 'NAME="a b"'), ("RUN", "one   && two"))

    root = replay.Root(tmp_path / "root", {}, {"first": tmp_path / "code"})
    for word, rest in (stages[0].steps[0], *stages[2].steps):
        root.do(word, rest)
    assert root.arguments == {"NAME": "a b"}
    assert root.environment == {"PATH": replay.PATH, "X": "1", "Y": "2"}
    assert (str(root.workdir), root.user) == ("/opt/x", "7")
    files = sorted(str(p.relative_to(root.path)) for p in root.path.rglob("*") if p.is_file())
    assert files == ["b/a.py", "etc/two", "opt/x/a.py", "opt/x/one"]
    with pytest.raises(SystemExit):
        root.do("HEALTHCHECK", "x")
