"""`anygpt serve` with the model in the package: all modalities both ways, judged as the model's card does, and its end."""

import base64
import http.client
import io
import json
import signal
import threading
import time

import numpy as np
import pytest
import serving_process
import serving_world as world
import soundfile
from PIL import Image

from anygpt_jax.embedded import scenes, sentences
from anygpt_jax.modalities import pictures
from anygpt_jax.tasks import metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving_process.process(tmp_path_factory.mktemp("serve"), "--drain-seconds", "20") as (process, port):
        yield world.World(None, None, "127.0.0.1", port), process


def message(reply) -> dict:
    assert reply.status == 200, reply.body
    return reply.json()["choices"][0]["message"]


def test_it_draws_what_is_asked_and_describes_what_it_is_shown(server):
    server, _ = server
    rng = np.random.default_rng(3)
    asked = [scenes.sample(rng, "test") for _ in range(8)]
    drawn = []
    for i, attributes in enumerate(asked):
        answer = message(server.chat(sentences.caption_scene(attributes, rng, "test"), modalities=["image"], seed=i))
        data = base64.b64decode(answer["images"][0]["image_url"]["url"].partition(",")[2])
        drawn.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert metrics.image_attributes(asked, drawn)["attributes"] > 0.8
    told = []
    for attributes in asked:
        png = base64.b64encode(pictures.save_png(scenes.render(attributes))).decode()
        parts = [
            {"type": "text", "text": "describe the picture"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}},
        ]
        told.append(message(server.chat(parts, seed=1))["content"])
    assert metrics.caption_attributes(asked, told)["attributes"] > 0.8


def test_it_speaks_in_pieces_and_understands_itself(server):
    server, _ = server
    said = [s.text for s in sentences.sample("test", 4, np.random.default_rng(12))]
    fields = {"modalities": ["audio"], "seed": 1, "audio": {"format": "pcm16", "voice": "ben"}}
    heard = []
    for text in said:
        chunks = server.chat(f"say this {text}", stream=True, **fields).events()[:-1]
        pieces = [c["choices"][0]["delta"]["audio"] for c in chunks if "audio" in c["choices"][0]["delta"]]
        joined = np.frombuffer(b"".join(base64.b64decode(p["data"]) for p in pieces), "<i2") / 32768
        whole = message(server.chat(f"say this {text}", **fields))["audio"]
        samples = np.frombuffer(base64.b64decode(whole["data"]), "<i2") / 32768
        assert whole["id"] == pieces[-1]["id"] and len(joined) == len(samples)
        assert np.sqrt(np.mean((joined - samples) ** 2)) < 1e-2 * np.sqrt(np.mean(samples**2))
        out = io.BytesIO()
        soundfile.write(out, joined, 16_000, format="WAV")
        data = base64.b64encode(out.getvalue()).decode()
        parts = [
            {"type": "text", "text": "write what you hear"},
            {"type": "input_audio", "input_audio": {"data": data}},
        ]
        heard.append(message(server.chat(parts, seed=1))["content"])
    assert metrics.word_error_rate([{"text": text} for text in said], heard)["wer"] < 0.4, (said, heard)


def test_it_plays_in_every_format(server):
    server, _ = server
    for kind in ("wav", "flac", "mp3", "opus"):
        audio = message(server.chat("a slow waltz on the flute", modalities=["music"], seed=2, audio={"format": kind}))[
            "audio"
        ]
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(audio["data"])))
        assert abs(len(samples) / rate - 4) < 0.2 and np.abs(samples).max() > 0.02


def test_sigterm_lets_answers_end_and_then_the_process_ends_well(server):
    server, process = server
    chunks: list[dict] = []

    def follow() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        body = {"messages": [{"role": "user", "content": "a fast reel"}], "modalities": ["music"], "stream": True}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        started.set()
        lines = response.read().decode().split("\n\n")
        chunks.extend(json.loads(line[6:]) for line in lines if line.startswith("data: {"))

    started = threading.Event()
    listener = threading.Thread(target=follow)
    listener.start()
    assert started.wait(30)
    process.send_signal(signal.SIGTERM)
    statuses = []
    while process.poll() is None:
        try:
            statuses.append(server.ask("GET", "/healthz").status)
        except OSError:
            time.sleep(0.05)
    listener.join()
    assert process.wait(30) == 0
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert any("audio" in c["choices"][0]["delta"] for c in chunks)
    assert set(statuses) <= {503}
