"""The cost ceiling: what is counted, what is not sent, and that processes keep one ceiling together."""

import concurrent.futures
import json
import multiprocessing
import threading

import misbehaving_server as bad
import pytest

from anygpt_jax.errors import UserError
from anygpt_jax.synthesis.backends import Failure, medium_request, text_request
from anygpt_jax.synthesis.backends import spending as spending_module
from anygpt_jax.synthesis.backends.cached import Cached
from anygpt_jax.synthesis.backends.http import Http
from anygpt_jax.synthesis.backends.http_settings import HttpSettings
from anygpt_jax.synthesis.backends.spending import Prices, Spending, Use


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Nobody waits for what a killed process had reserved."""
    monkeypatch.setattr(spending_module, "PATIENCE", 0.0)


def ask(content):
    return text_request("topics", [("user", content)], {}, 0)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    with bad.running() as server:
        yield server


def settings(server, modality="text", **changes):
    more = {"timeout": 5.0, "retries": 1, "concurrency": 1, **changes}
    return HttpSettings(modality, server.url, "m", **more)


def test_prices():
    prices = Prices(input=2.5, output=10, image=0.04, speech=15)
    assert prices.of(Use(1_000_000, 500_000)) == 7.5
    assert prices.of(Use(images=2)) == 0.08
    assert prices.of(Use(characters=2_000)) == 0.03
    with pytest.raises(UserError, match=r"prices\.image must be"):
        Prices(image=-1)
    with pytest.raises(UserError, match="prices has no images; it has: input"):
        Prices.from_config({"images": 1})


def test_the_ledger_is_summed_at_the_next_start(tmp_path):
    spending = Spending(tmp_path, 1.0)
    spending.settle(spending.reserve(0.5), 0.25, Use(10, 5))
    spending.reserve(0.125)  # never settled: the process may have been killed
    with open(next(tmp_path.glob("*.jsonl")), "ab") as file:
        file.write(b'{"ticket": "cut of')
    later = Spending(tmp_path, 1.0)
    spent = later.spent()
    assert (spent.requests, spent.tokens, spent.dollars) == (1, 15, 0.25)
    with pytest.raises(
        UserError, match=r"\$0\.2500 are spent \(1 requests, 15 tokens\), \$0\.1250 more may be, .*raise max"
    ):
        later.reserve(0.75)
    later.reserve(0.625)  # the last cent may be spent


def test_what_is_under_way_is_waited_for(tmp_path):
    spending = Spending(tmp_path, 1.0)
    first = spending.reserve(0.75)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        second = pool.submit(spending.reserve, 0.5)
        with pytest.raises(concurrent.futures.TimeoutError):
            second.result(0.05)
        spending.settle(first, 0.25, Use())
        spending.settle(second.result(5), 0.5, Use())
    with pytest.raises(UserError, match="raise max_cost"):
        spending.reserve(0.5)


def spend(folder, ceiling, barrier, sums):
    spending = Spending(folder, ceiling)
    barrier.wait()
    try:
        for _ in range(100):
            spending.settle(spending.reserve(0.01), 0.01, Use(1, 0))
            sums.put(0.01)
    except UserError:
        pass


def test_processes_keep_one_ceiling(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, sums = context.Barrier(3), context.Queue()
    workers = [context.Process(target=spend, args=(tmp_path, 0.505, barrier, sums)) for _ in range(3)]
    for worker in workers:
        worker.start()
    spent = [sums.get(timeout=20) for _ in range(50)]
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0
    assert sums.empty() and sum(spent) == pytest.approx(0.5)
    assert Spending(tmp_path).spent().dollars == pytest.approx(0.5)


def test_tokens_are_charged_as_the_server_counts_them(server, tmp_path):
    spending = Spending(tmp_path)
    server.plan = {
        "says": [bad.says(bad.chat("fine", usage={"prompt_tokens": 1000, "completion_tokens": 100}))],
        "refused": [bad.fails(400)],
        "busy": [bad.fails(500)],
    }
    prices = Prices(input=1000, output=10_000)
    assert Http(settings(server, prices=prices), spending).make([ask(name) for name in server.plan])[1:] == [
        Failure("the server answered 400: no"),
        b"echo busy",
    ]
    assert spending.spent().dollars == pytest.approx(1 + 1 + 0.01 + 0.05)  # errors are free; the good one says 10 and 5
    assert spending.spent().tokens == 1100 + 15
    assert spending.spent().requests == 4


@pytest.mark.parametrize(
    "usage",
    [{}, {"prompt_tokens": -5, "completion_tokens": 1}, {"prompt_tokens": 10**15, "completion_tokens": 1}, "much"],
)
def test_senseless_counts_are_the_worst_case(server, tmp_path, usage):
    spending = Spending(tmp_path)
    server.plan = {"a": [bad.says(bad.chat("fine", usage=usage))]}
    Http(settings(server, max_tokens=7, prices=Prices(output=1_000_000)), spending).make([ask("a")])
    assert spending.spent().dollars == 7


def test_half_an_answer_may_have_been_charged(server, tmp_path):
    spending = Spending(tmp_path)
    server.plan = {"a": [bad.cuts_short]}
    assert Http(settings(server, max_tokens=7, prices=Prices(output=1_000_000)), spending).make([ask("a")]) == [
        b"echo a"
    ]
    assert spending.spent().dollars == 7 + 5


def test_pictures_and_speech(server, tmp_path):
    spending = Spending(tmp_path)
    Http(settings(server, "image", prices=Prices(image=0.04)), spending).make([medium_request("image", "x", {}, 0)])
    Http(settings(server, "speech", prices=Prices(speech=15)), spending).make([medium_request("speech", "four", {}, 0)])
    assert spending.spent().dollars == pytest.approx(0.04 + 4 * 15 / 1_000_000)


def test_the_ceiling_stops_the_job_and_it_goes_on(server, tmp_path):
    """Ten pictures of 4 cents by four threads, with money for seven."""
    requests = [medium_request("image", f"picture {i}", {}, 0) for i in range(10)]

    def backend(ceiling):
        priced = settings(server, "image", prices=Prices(image=0.04), concurrency=4)
        return Cached(Http(priced, Spending(tmp_path / "spent", ceiling)), tmp_path / "answers")

    with pytest.raises(UserError, match=r"\$0\.2800 are spent .* max_cost = \$0\.3; raise max_cost"):
        backend(0.3).make(requests)
    assert len(server.asked) == 7
    with pytest.raises(UserError, match=r"\$0\.2800 are spent"):
        backend(0.3).make(requests)
    assert len(server.asked) == 7
    assert backend(1.0).make(requests) == [bad.PICTURE] * 10
    assert len(server.asked) == 10  # none twice


def test_no_ceiling_below_nothing(tmp_path):
    for wrong in (-1.0, float("nan")):
        with pytest.raises(UserError, match="max_cost must be"):
            Spending(tmp_path, wrong)


def test_lines_of_threads_are_whole(tmp_path):
    spending = Spending(tmp_path)
    threads = [threading.Thread(target=lambda: spending.settle(spending.reserve(1), 1, Use(1, 1))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = next(tmp_path.glob("*.jsonl")).read_text().splitlines()
    assert len(lines) == 40 and all(json.loads(line)["ticket"] for line in lines)
    assert spending.spent().dollars == 20


def test_a_process_waits_for_what_others_have_under_way(tmp_path, monkeypatch):
    monkeypatch.setattr(spending_module, "PATIENCE", 30.0)
    first, second = Spending(tmp_path, 1.0), Spending(tmp_path, 1.0)
    ticket = first.reserve(0.9)  # at worst; it will be a cent
    timer = threading.Timer(0.5, first.settle, (ticket, 0.01, Use(1, 1)))
    timer.start()
    second.settle(second.reserve(0.5), 0.5, Use(1, 1))
    timer.join()
    assert second.spent().dollars == pytest.approx(0.51)
    with pytest.raises(UserError, match="would pass max_cost"):  # at once: nothing under way could change it
        second.reserve(0.6)
