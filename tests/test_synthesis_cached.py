"""The response cache: what was answered is not asked again, not even after a kill in the middle of a batch."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import misbehaving_server as bad
import pytest

from anygpt_jax.errors import UserError
from anygpt_jax.synthesis.backends import Failure, medium_request, spending, text_request
from anygpt_jax.synthesis.backends.cached import BATCH, Cached
from anygpt_jax.synthesis.backends.http import Http
from anygpt_jax.synthesis.backends.http_settings import HttpSettings
from anygpt_jax.synthesis.backends.spending import Prices, Spending


def ask(content, seed=0):
    return text_request("topics", [("user", content)], {}, seed)


class Echo:
    """Fails where it is told to, and stops at "stop"."""

    def __init__(self, name="echo"):
        self.name, self.asked = name, []

    def make(self, requests):
        self.asked += [request.content for request in requests]
        if "stop" in self.asked:
            raise UserError("no more")
        return [Failure("will not") if r.content == "fail" else r.content.encode() for r in requests]


def test_nothing_is_asked_twice(tmp_path):
    echo = Echo()
    cached = Cached(echo, tmp_path)
    assert cached.name == "echo"
    assert cached.make([ask("a"), ask("b"), ask("a")]) == [b"a", b"b", b"a"]
    assert cached.make([ask("b"), ask("c")]) == [b"b", b"c"]
    assert Cached(echo, tmp_path).make([ask("c"), ask("a")]) == [b"c", b"a"]
    assert echo.asked == ["a", "b", "c"]
    Cached(echo, tmp_path).make([ask("a", seed=1)])
    other = Echo("another")
    Cached(other, tmp_path).make([ask("a")])
    assert echo.asked == ["a", "b", "c", "a"] and other.asked == ["a"]


def test_where_the_answers_are(tmp_path):
    class Painter:
        name = "painter"

        def make(self, requests):
            return [{"image": bad.PICTURE, "speech": bad.SOUND}[request.modality] for request in requests]

    requests = [medium_request("image", "a cat", {}, 0), medium_request("speech", "hello", {}, 0, "ada")]
    Cached(Painter(), tmp_path).make(requests)
    for request, extension, data in zip(requests, ("png", "wav"), (bad.PICTURE, bad.SOUND), strict=True):
        digest = request.digest("painter")
        assert (tmp_path / digest[:2] / f"{digest}.{extension}").read_bytes() == data


def test_failures_are_kept_until_they_are_wanted_again(tmp_path):
    echo = Echo()
    assert Cached(echo, tmp_path).make([ask("fail"), ask("a")]) == [Failure("will not"), b"a"]
    assert Cached(echo, tmp_path).make([ask("fail")]) == [Failure("will not")]
    assert echo.asked == ["fail", "a"]
    again = Cached(echo, tmp_path, retry_failures=True)
    assert [again.make([ask("fail"), ask("a")]) for _ in range(2)] == [[Failure("will not"), b"a"]] * 2
    assert echo.asked == ["fail", "a", "fail"]  # once in this run

    class Better(Echo):
        def make(self, requests):
            return [b"now I will" for _ in requests]

    assert Cached(Better(), tmp_path, retry_failures=True).make([ask("fail")]) == [b"now I will"]
    assert Cached(echo, tmp_path).make([ask("fail")]) == [b"now I will"]


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "missing"])
def test_a_damaged_answer_is_asked_again(tmp_path, damage):
    echo = Echo()
    Cached(echo, tmp_path).make([ask("a"), ask("b")])
    digest = ask("a").digest("echo")
    path = tmp_path / digest[:2] / f"{digest}.txt"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": b"", "changed": b"A", "empty": b""}[damage])
    assert Cached(echo, tmp_path).make([ask("a"), ask("b")]) == [b"a", b"b"]
    assert echo.asked == ["a", "b", "a"]
    assert path.read_bytes() == b"a"


def test_a_damaged_ledger_costs_its_damaged_lines(tmp_path):
    echo = Echo()
    Cached(echo, tmp_path).make([ask("a"), ask("b"), ask("fail")])
    [ledger] = tmp_path.glob("answers-*.jsonl")
    first, _, rest = ledger.read_bytes().partition(b"\n")
    ledger.write_bytes(b"\xff{]\n" + b'["a"]\n{"digest": 1}\n' + rest + first[:30])
    assert Cached(echo, tmp_path).make([ask("a"), ask("b"), ask("fail")]) == [b"a", b"b", Failure("will not")]
    assert echo.asked == ["a", "b", "fail", "a"]


def test_a_backend_without_arrivals_is_asked_in_batches(tmp_path):
    """What a batch before the stop gave is kept."""
    requests = [ask(str(i)) for i in range(2 * BATCH)] + [ask("stop")]
    with pytest.raises(UserError, match="no more"):
        Cached(Echo(), tmp_path).make(requests)
    later = Echo()
    assert Cached(later, tmp_path).make(requests[:-1]) == [str(i).encode() for i in range(2 * BATCH)]
    assert later.asked == []


JOB = """
import sys
from test_synthesis_cached import ask, of
of(*sys.argv[1:]).make([ask(f"question {i}") for i in range(8)])
"""


def of(url, folder):
    settings = HttpSettings(
        "text", url, "m", concurrency=2, timeout=60.0, max_tokens=5, prices=Prices(output=1_000_000)
    )
    return Cached(Http(settings, Spending(pathlib.Path(folder) / "spent")), folder)


def wait_until(true):
    for _ in range(12_000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it never was")


def test_kill(tmp_path, monkeypatch):
    """Four are answered, two are under way and two wait when the process is killed."""
    with bad.running() as server:
        server.plan = {"question 4": [bad.hangs], "question 5": [bad.hangs]}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path])}
        job = subprocess.Popen([sys.executable, "-c", JOB, server.url, str(tmp_path)], env=environment)

        def answered():
            assert job.poll() is None
            return sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("answers-*.jsonl"))

        wait_until(lambda: answered() == 4 and len(server.asked) == 6)
        job.send_signal(signal.SIGKILL)
        job.wait()
        assert sorted(server.asked) == [f"question {i}" for i in range(6)]
        backend = of(server.url, tmp_path)
        assert backend.make([ask(f"question {i}") for i in range(8)]) == [
            f"echo question {i}".encode() for i in range(8)
        ]
        assert sorted(server.asked[6:]) == [f"question {i}" for i in range(4, 8)]
    lines = [json.loads(line) for path in (tmp_path / "spent").glob("*.jsonl") for line in path.open()]
    assert sum("reserved" in line for line in lines) == 10 and sum("dollars" in line for line in lines) == 8
    monkeypatch.setattr(spending, "PATIENCE", 0.0)  # what the killed process had reserved is never settled
    with pytest.raises(UserError, match=r"\$40\.0000 are spent \(8 requests, 120 tokens\), \$10\.0000 more may be"):
        Spending(tmp_path / "spent", 50).reserve(1)
