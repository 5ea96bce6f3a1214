"""The account of a run's wall time: a made-up history in closed form, and processes that really are killed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import synthetic
from compiling import QUICK

from anygpt_jax.errors import UserError
from anygpt_jax.training import goodput, loop
from anygpt_jax.training.goodput import PARTS, Clock, Goodput, account, process_began, read_events

ROOT = pathlib.Path(goodput.__file__).parents[2]


def event(what, time, done=None, run="a", more=None, **spent):
    return {"event": what, "time": time, "run": run, "step": done, "spent": dict.fromkeys(goodput.MEASURED, 0.0) | spent, **(more or {})}  # fmt: skip


# A run that begins at 0 and is killed at 66, ten steps past its newest checkpoint of step 20 (its last line: 60 s, step
# 30); one that starts at 100, is lost before it trains; one that starts at 150, goes on from 20 and rolls back.
HISTORY = [
    event("start", 8.0, startup=8.0),
    event("resume", 9.0, 0, startup=9.0),
    event("first_step", 10.0, 1, startup=10.0),
    event("log", 30.0, 11, startup=10.0, step=15.0, data=5.0),
    event("save", 44.0, 20, startup=10.0, step=25.0, data=5.0, checkpoint=4.0),
    event("log", 60.0, 30, startup=10.0, step=39.0, data=5.0, checkpoint=4.0, evaluation=2.0),
    event("start", 110.0, run="b", startup=10.0),
    event("start", 155.0, run="c", startup=5.0),
    event("resume", 165.0, 20, run="c", startup=7.0, restore=8.0),
    event("first_step", 170.0, 21, run="c", startup=12.0, restore=8.0),
    event("log", 178.0, 25, run="c", startup=12.0, restore=8.0, step=8.0),
    event("log", 188.0, 30, run="c", startup=12.0, restore=8.0, step=18.0),
    # Back to 20, where the first run's steps end: all of this run's are lost.
    event("rollback", 191.0, 20, run="c", more={"reached": 30}, startup=12.0, restore=11.0, step=18.0),
    event("log", 203.0, 30, run="c", startup=12.0, restore=11.0, step=30.0),
    event("end", 204.0, run="c", more={"reason": "finished"}, startup=12.0, restore=11.0, step=31.0),
]


def test_a_made_up_history_in_closed_form():
    found = account(HISTORY)
    # Of the first run 25 s of steps stay (14 s, past its save, are repeated); of the third 12 s after the rollback,
    # and the second after its last line.
    assert found.seconds == pytest.approx(
        {
            "step": 25 + 13, "repeated": 14 + 18, "startup": 10 + 10 + 12, "restore": 11, "data": 5, "checkpoint": 4,
            "evaluation": 2, "down": (100 - 60) + (150 - 110),
        }
    )  # fmt: skip
    assert set(found.seconds) == set(PARTS)
    assert found.total == pytest.approx(204.0)  # the wall time from the first start to the end
    assert found.goodput == pytest.approx(38 / 204)
    assert found.repeated_steps == 10 + 10
    assert found.rollbacks == ((30, 20),)
    assert [(run.resumed_at, run.reached, run.end) for run in found.runs] == [
        (0, 30, "no end: killed or running"), (None, None, "no end: killed or running"), (20, 30, "finished"),
    ]  # fmt: skip
    assert [run.began for run in found.runs] == [0.0, 100.0, 150.0]


def test_a_checkpoint_between_two_lines_cuts_their_time_in_proportion():
    found = account([*HISTORY[:4], event("start", 200.0, run="b"), event("resume", 201.0, 6, run="b", restore=1.0)])
    # Steps 1 to 11 took 15 s; 6 to 11 are done again.
    assert found.seconds["repeated"] == pytest.approx(7.5)
    assert found.seconds["step"] == pytest.approx(7.5)
    assert found.repeated_steps == 5
    assert found.total == pytest.approx(201.0)


def test_time_after_a_finished_run_is_nobodys_loss():
    more = [event("start", 1010.0, run="d", startup=10.0), event("resume", 1012.0, 30, run="d", startup=12.0)]
    found = account([*HISTORY, *more])
    assert found.seconds["down"] == pytest.approx(80.0)
    assert found.total == pytest.approx(204.0 + 12.0)
    assert found.seconds["repeated"] == pytest.approx(32.0)


def test_the_library_of_cloud_tpus_comes_to_the_same_productive_share():
    """ml-goodput-measurement 0.2.3, given this history by a logger in memory: 30 % productive.

    Two starts with 10 s of preparation, steps of 1 s; killed after 10 s at step 10, down for 10 s, resumed at step 5.
    """
    found = account(
        [
            event("start", 0.0), event("resume", 10.0, 0, startup=10.0), event("save", 15.0, 5, startup=10.0, step=5.0),
            event("log", 20.0, 10, startup=10.0, step=10.0), event("start", 30.0, run="b"),
            event("resume", 40.0, 5, run="b", startup=10.0), event("end", 50.0, 15, run="b", more={"reason": "finished"}, startup=10.0, step=10.0),
        ]
    )  # fmt: skip
    assert found.goodput == pytest.approx(0.30)
    assert found.seconds["repeated"] == pytest.approx(5.0)


def test_nothing_told_is_nothing_spent():
    found = account([])
    assert (found.total, found.goodput, found.runs) == (0, 0.0, ())


def started(path, run, writes=True):
    found = Goodput(path, Clock(), run, writes)
    found.start()
    return found


def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path):
    path = tmp_path / "logs" / "goodput.jsonl"
    started(path, "a").event("log", 4)
    with path.open("a") as file:
        file.write('{"event": "log", "ti')
    started(path, "b").event("log", 8)
    assert [(e["run"], e["event"], e["step"]) for e in read_events(path)] == [
        ("a", "start", None), ("a", "log", 4), ("b", "start", None), ("b", "log", 8),
    ]  # fmt: skip
    before = path.read_bytes()
    started(path, "c", writes=False).event("log", 9)
    assert path.read_bytes() == before


def test_a_process_knows_when_it_began():
    code = "from anygpt_jax.training.goodput import process_began; print(process_began())"
    began = time.time()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert float(out.stdout) == pytest.approx(began, abs=0.3)
    assert process_began() <= time.time()


WORKER = """
import pathlib, sys, time
from anygpt_jax.training.goodput import Clock, Goodput, process_began
root = pathlib.Path(sys.argv[1])
clock = Clock(time.time() - process_began())
log = Goodput(root / "goodput.jsonl", clock, sys.argv[2])
log.start()
kept = root / "checkpoint"
with clock.within("restore"):
    time.sleep(0.2)
    start = int(kept.read_text()) if kept.exists() else 0
log.event("resume", start)
clock.steps_begin()
for done in range(start + 1, 31):
    time.sleep(0.05)
    log.event("log", done)
    if done % 10 == 0:
        with clock.within("checkpoint"):
            time.sleep(0.1)
            kept.write_text(str(done))
        log.event("save", done)
log.event("end", reason="finished")
"""


def test_a_process_that_is_killed_and_started_again_adds_up_to_the_time_on_the_wall(tmp_path):
    began = time.time()
    first = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), "a"], cwd=ROOT)
    until = time.monotonic() + 60
    while not any(e["step"] == 17 for e in read_events(tmp_path / "goodput.jsonl")):
        assert first.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(0.5)
    subprocess.run([sys.executable, "-c", WORKER, str(tmp_path), "b"], cwd=ROOT, check=True)
    events = read_events(tmp_path / "goodput.jsonl")
    found = account(events)
    # All the time from when the first process was asked for to the last line.
    assert found.total == pytest.approx(events[-1]["time"] - began, abs=0.5)
    assert [(run.resumed_at, run.end) for run in found.runs] == [(0, "no end: killed or running"), (10, "finished")]
    assert 7 <= found.repeated_steps <= 9
    # Nothing sleeps less than it is told to; a busy machine makes it longer.
    least = {"repeated": 0.05 * found.repeated_steps, "step": 30 * 0.05, "restore": 0.4, "checkpoint": 0.3, "down": 0.5}
    for part, seconds in least.items():
        assert found.seconds[part] > seconds - 0.02, part
    assert found.seconds["data"] == found.seconds["evaluation"] == 0


@pytest.mark.slow
def test_a_training_run_that_is_killed_and_resumed_accounts_for_all_its_time(tmp_path):
    synthetic.write_cache(tmp_path / "cache")
    config = synthetic.config(tmp_path, steps=400, save_every=50, log_every=10, eval_every=100)
    code = (
        "import json, sys, ml_collections; from anygpt_jax.training import loop; "
        "loop.run(ml_collections.ConfigDict(json.loads(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, config.to_json()]
    environment = {**os.environ, "XLA_FLAGS": QUICK, "PYTHONPATH": str(pathlib.Path(loop.__file__).parents[2])}
    events = tmp_path / "logs" / "goodput.jsonl"
    began = time.time()
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as first:
        try:
            until = time.monotonic() + 400
            while not any(e["event"] == "log" and e["step"] > 100 for e in read_events(events)):
                assert first.poll() is None and time.monotonic() < until
                time.sleep(0.01)
        finally:
            first.kill()
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    found = account(read_events(events))
    # All the time from when the first process was asked for to the last line.
    assert found.total == pytest.approx(read_events(events)[-1]["time"] - began, abs=0.5)
    assert len(found.runs) == 2
    assert found.runs[0].end == "no end: killed or running"
    resumed = found.runs[1].resumed_at
    assert resumed in (50, 100, 150)
    assert (found.runs[1].reached, found.runs[1].end) == (400, "finished")
    assert found.repeated_steps == max(found.runs[0].reached - resumed, 0)
    assert all(seconds >= 0 for seconds in found.seconds.values())
    assert found.seconds["startup"] > found.seconds["step"] > 0
    assert found.seconds["restore"] > 0 and found.seconds["checkpoint"] > 0 and found.seconds["evaluation"] > 0
    logged = [json.loads(text) for text in (tmp_path / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if row["split"] == "train"] == list(range(10, 401, 10))
    assert len(list((tmp_path / "logs" / "runs").iterdir())) == 2


def starts(*ends):
    """A history of starts: each with a first step ("step"), killed (None), or ended by (reason, error)."""
    events = []
    for end in ends:
        events.append(event("start", 1.0))
        if end == "step":
            events.append(event("first_step", 2.0, 1))
        elif end:
            reason, error = end
            events.append(event("end", 3.0, more={"reason": reason} | ({"error": error} if error else {})))
    return events


def write_events(path, events):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(e) + "\n" for e in events))


OWN = ("JaxRuntimeError", "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 19.50G of 15.75G hbm.")
PEER = ("JaxRuntimeError", "INTERNAL: Gloo allreduce failed: Connection reset by peer [10.0.0.3]:41177")
STOP, USER = ("signal 15", ""), ("UserError", "The last 5 starts …")


@pytest.mark.parametrize(
    ("ends", "refused"),
    [
        ([OWN] * 5, True),
        ([OWN] * 4, False),
        (["step", *[OWN] * 5], True),
        (["step", *[OWN] * 4], False),
        ([*[OWN] * 4, "step", OWN], False),
        ([OWN, None, OWN, None, None, OWN, STOP, PEER, OWN, OWN], True),  # a storm in between
        ([None] * 50, False),  # preempted without notice, before the first step
        ([STOP] * 50, False),
        ([PEER] * 50, False),  # as process 0 hears of the preemption of another
        ([*[OWN] * 5, USER], False),  # who starts again after that has been told
        ([*[OWN] * 5, USER, *[OWN] * 5], True),
    ],
)
def test_starts_that_fail_before_their_first_step_come_to_an_end(ends, refused, tmp_path):
    write_events(tmp_path / "goodput.jsonl", starts(*ends))
    now = Goodput(tmp_path / "goodput.jsonl", Clock(), "now")
    if not refused:
        return now.refuse_fruitless()
    with pytest.raises(UserError, match=r"last 5 starts ended with an error .*RESOURCE_EXHAUSTED.* it counts anew"):
        now.refuse_fruitless()


@pytest.mark.parametrize(
    "place", [(loop.Training, "_state_at"), (loop.train_step, "build"), (loop, "load_vocabulary")], ids=lambda p: p[1]
)
def test_a_run_that_fails_says_by_what_and_is_refused_once(place, tmp_path, monkeypatch):
    synthetic.write_cache(tmp_path / "cache")
    config = synthetic.config(tmp_path, steps=2, eval_every=0)
    path = tmp_path / "logs" / "goodput.jsonl"
    write_events(path, starts(*[OWN] * 4))

    def fails(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: so it is")

    monkeypatch.setattr(*place, fails)
    ends = []
    for error in (RuntimeError, UserError):
        with pytest.raises(error):
            loop.run(config)
        ends.append((last := read_events(path)[-1])["reason"])
        assert last["event"] == "end" and "RESOURCE_EXHAUSTED: so it is" in last["error"]
    assert ends == ["RuntimeError", "UserError"]


def test_what_is_refused_before_there_is_something_to_do_leaves_nothing(tmp_path):
    synthetic.write_cache(tmp_path / "cache")
    config = synthetic.config(tmp_path, steps=2, eval_every=0)
    config.train.batch_size = 0
    with pytest.raises(UserError, match="batch_size"):
        loop.run(config)
    assert not (tmp_path / "logs").exists()
