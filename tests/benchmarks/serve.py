"""How much `anygpt serve` bears: its sustained rate, an overload of ten times that, its memory, malformed requests.

    python tests/benchmarks/serve.py [--json PATH] [--seconds 60] [--requests 5000] [--fuzz 10000] [--users 16]

Locust asks a server of the shipped model on this machine, each user again as soon as it is answered: 60 % texts and
descriptions of pictures, 30 % pictures, 7 % speech, 3 % music, all streamed. The time to the first token is that to the
first event with text, a picture or sound in it.

Phases: `--users` users for `--seconds` (the sustained rate); ten times as many for half of that; then as many as at first
until `--requests` were answered in all, while the server's memory is read every second; then `--fuzz` malformed requests.
"""

from __future__ import annotations

import argparse
import base64
import collections
import csv
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
HERE = pathlib.Path(__file__)
LOCUST = "locust" in sys.modules  # it reads this file for the class of its users

if LOCUST:
    import locust
    import serving_world as world

    PICTURE = "data:image/png;base64," + base64.b64encode(world.png(72, 72)).decode()
    KINDS = (
        (40, "text", "say something about the sea", ["text"]),
        (20, "describe", None, ["text"]),
        (30, "image", "a penguin left of a pizza on a green background", ["image"]),
        (7, "speech", "please say the small house stands behind a green hill", ["speech"]),
        (3, "music", "a fast reel in d major played on the violin", ["music"]),
    )

    class Person(locust.HttpUser):
        """Asks, reads the answer to its end, and asks again; told to come later, it does so after a second."""

        wait_time = locust.constant(0)

        @locust.task
        def ask(self) -> None:
            _, name, text, modalities = random.choices(KINDS, [kind[0] for kind in KINDS])[0]
            content = text or [
                {"type": "text", "text": "describe the picture"},
                {"type": "image_url", "image_url": {"url": PICTURE}},
            ]
            body = {
                "messages": [{"role": "user", "content": content}],
                "modalities": modalities,
                "stream": True,
                "seed": random.randrange(2**32),
            }
            started = time.perf_counter()
            first = None
            with self.client.post(
                "/v1/chat/completions", json=body, stream=True, catch_response=True, name=name
            ) as response:
                if response.status_code == 429:
                    response.success()
                    self.environment.events.request.fire(
                        request_type="refused", name="429", response_time=0, response_length=0, exception=None
                    )
                    time.sleep(1.0)
                    return
                last = b""
                for line in response.iter_lines():
                    last = line or last
                    if first is None and b'"part"' in line:
                        first = time.perf_counter() - started
                if response.status_code != 200 or last != b"data: [DONE]" or first is None:
                    response.failure(f"{response.status_code} {last[:200]!r}")
                    return
                response.success()
            for kind, seconds in (("first", first), ("whole", time.perf_counter() - started)):
                self.environment.events.request.fire(
                    request_type=kind, name="all", response_time=1000 * seconds, response_length=0, exception=None
                )


def load(pid: int, port: int, users: int, seconds: float, folder: pathlib.Path) -> dict[str, float]:
    """One run of Locust: answers, refusals, failures, rate, processor time an answer, and percentiles in seconds."""
    before = cpu(pid)
    prefix = folder / f"users{users}-{time.time():.0f}"
    command = [sys.executable, "-m", "locust", "-f", str(HERE), "--headless", "--host", f"http://127.0.0.1:{port}"]
    command += [
        "-u",
        str(users),
        "-r",
        str(users),
        "-t",
        f"{seconds:.0f}s",
        "--stop-timeout",
        "30",
        "--csv",
        str(prefix),
    ]
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    stats = pathlib.Path(f"{prefix}_stats.csv")
    if not stats.is_file():
        raise SystemExit(run.stderr)
    with stats.open() as file:
        rows = {(row["Type"], row["Name"]): row for row in csv.DictReader(file)}
    posts = [row for (kind, _), row in rows.items() if kind == "POST"]
    first, whole = rows.get(("first", "all")), rows.get(("whole", "all"))
    found = {
        "users": users,
        "answers": int(whole["Request Count"]) if whole else 0,
        "refused": int(rows[("refused", "429")]["Request Count"]) if ("refused", "429") in rows else 0,
        "failures": sum(int(row["Failure Count"]) for row in posts),
        "rate": float(whole["Requests/s"]) if whole else 0.0,
    }
    found["cpu_seconds_an_answer"] = round((cpu(pid) - before) / max(1, found["answers"]), 4)
    for name, row in (("first", first), ("whole", whole)):
        if row:
            found |= {f"{name}_p50": float(row["50%"]) / 1000, f"{name}_p95": float(row["95%"]) / 1000}
    return found


def cpu(pid: int) -> float:
    """Seconds of processor time so far: on a machine that does other work too, the rate tells little and this much."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss(pid: int) -> float:
    """MiB of memory."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


class Memory(threading.Thread):
    """Reads it every second until told to stop."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.seen, self.stopped = pid, [], threading.Event()

    def run(self) -> None:
        started = time.monotonic()
        while not self.stopped.wait(1.0):
            self.seen.append((time.monotonic() - started, rss(self.pid)))


def storm(port: int, count: int) -> dict[str, int]:
    """How often each status was the answer to malformed requests."""
    import serving_fuzz
    import serving_world as world

    media = {"image": world.png(16, 16), "sound": world.wav(0.5)}
    with ThreadPoolExecutor(4) as pool:
        requests = serving_fuzz.requests(count, 3, media)
        seen = collections.Counter(pool.map(lambda r: serving_fuzz.status("127.0.0.1", port, r, 120), requests))
    return {str(status): n for status, n in sorted(seen.items())}


def main() -> None:
    import serving_process

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--fuzz", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=16)
    args = parser.parse_args()
    found: dict = {}

    def tell(name: str, what: object) -> None:
        found[name] = what
        print(f"{name}: {json.dumps(what)}", flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1))

    with tempfile.TemporaryDirectory() as folder, serving_process.process(pathlib.Path(folder)) as (process, port):
        folder = pathlib.Path(folder)
        tell("rss_at_start", round(rss(process.pid)))
        tell("warm", load(process.pid, port, args.users, 20, folder))
        tell("sustained", load(process.pid, port, args.users, args.seconds, folder))
        tell("overload", load(process.pid, port, 10 * args.users, args.seconds / 2, folder))
        memory = Memory(process.pid)
        memory.start()
        answered, failures = 0, 0
        while answered < args.requests:
            part = load(process.pid, port, args.users, 60, folder)
            answered, failures = answered + part["answers"], failures + part["failures"]
            if not part["answers"]:
                break
        memory.stopped.set()
        times, sizes = np.array(memory.seen).T
        half = len(times) // 2  # allocators settle in the first half
        slope = np.polyfit(times[half:], sizes[half:], 1)[0] * (times[-1] - times[half]) if half > 1 else 0.0
        tell("memory", {"answers": answered, "failures": failures, "first_mib": round(sizes[0]), "last_mib": round(sizes[-1]),
                        "most_mib": round(sizes.max()), "mib_a_thousand": round(2000 * slope / max(answered, 1), 2)})  # fmt: skip
        tell("fuzz", storm(port, args.fuzz))
        tell("after", load(process.pid, port, args.users, 10, folder))


if __name__ == "__main__" and not LOCUST:
    main()
