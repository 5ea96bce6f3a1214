"""The HTTP API over a service whose answers and pace are known: shapes, streams, refusals, and slots that come free."""

import base64
import io
import time

import numpy as np
import pytest
import serving_world as world
import soundfile
from PIL import Image


@pytest.fixture(scope="module")
def server():
    with world.serving() as running:
        yield running


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes) -> dict:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def audio_part(data: bytes, **more) -> dict:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}, **more}


def test_an_answer_in_text_has_the_shape_of_a_chat_completion(server):
    reply = server.chat("hello there", seed=5)
    assert reply.status == 200
    whole = reply.json()
    assert whole["object"] == "chat.completion" and whole["model"] == "anygpt-test"
    (choice,) = whole["choices"]
    assert choice["finish_reason"] == "stop" and choice["index"] == 0
    assert choice["message"]["content"] == server.service.written
    assert choice["message"]["parts"] == [{"type": "text", "text": server.service.written}]
    asked = server.service.seen[-1]
    assert (asked.seed, asked.plan) == (5, ("text",))
    assert whole["usage"]["prompt_tokens"] == len(asked.prompt)
    assert whole["usage"]["total_tokens"] == whole["usage"]["prompt_tokens"] + whole["usage"]["completion_tokens"]


def test_media_come_as_png_and_in_the_sound_format_asked_for(server):
    for kind, container in (("wav", "WAV"), ("flac", "FLAC"), ("mp3", "MP3"), ("opus", "OGG")):
        reply = server.chat(
            "a picture and a voice", modalities=["text", "image", "speech"], seed=1, audio={"format": kind}
        )
        message = reply.json()["choices"][0]["message"]
        assert [p["type"] for p in message["parts"]] == ["text", "image_url", "audio"]
        url = message["images"][0]["image_url"]["url"]
        picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        assert (picture.format, picture.size) == ("PNG", (16, 16))
        sound = soundfile.SoundFile(io.BytesIO(base64.b64decode(message["audio"]["data"])))
        assert sound.format == container
        assert abs(sound.frames / sound.samplerate - 60 / 25) < 0.1
        assert message["audio"]["modality"] == "speech"


def test_a_stream_says_the_same_as_the_whole(server):
    fields = {"modalities": ["text", "speech", "image"], "seed": 9}
    whole = server.chat("x", **fields, audio={"format": "pcm16"}).json()["choices"][0]["message"]
    reply = server.chat("x", **fields, stream=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, end = reply.events()
    assert end == "[DONE]" and usage["choices"] == [] and usage["usage"]["completion_tokens"] > 0
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(d.get("content", "") for d in deltas) == whole["content"]
    pieces = [d["audio"] for d in deltas if "audio" in d]
    assert len(pieces) == 2 and [bool(p["id"]) for p in pieces] == [False, True]
    assert pieces[0]["sample_rate"] == 16_000 and pieces[0]["transcript"] == whole["content"]
    assert b"".join(base64.b64decode(p["data"]) for p in pieces) == base64.b64decode(whole["audio"]["data"])
    assert [d["images"] for d in deltas if "images" in d] == [whole["images"]]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert {c["id"] for c in chunks} == {usage["id"]}


def test_text_is_streamed_while_media_are_decoded(server):
    """The picture comes second in the answer, and text goes on after it: nothing waits for the decoder."""
    with world.serving(world.Service(pace=0.01)) as slow:
        decode = slow.api.decoder.tokenizers["image"].decode
        slow.api.decoder.tokenizers["image"].decode = lambda codes: time.sleep(0.6) or decode(codes)
        deltas = [
            c["choices"][0]["delta"] for c in slow.chat("x", modalities=["image", "text"], stream=True).events()[:-1]
        ]
    order = ["image" if "images" in d else "text" for d in deltas if d.get("part") is not None]
    assert order[-1] == "image" and set(order[:-1]) == {"text"}
    assert {d["part"] for d in deltas if d.get("content")} == {1}


def test_several_answers_have_consecutive_seeds(server):
    reply = server.chat("x", n=3, seed=2**32 - 1, modalities=["music"])
    choices = reply.json()["choices"]
    assert [c["index"] for c in choices] == [0, 1, 2]
    assert [r.seed for r in server.service.seen[-3:]] == [2**32 - 1, 0, 1]
    assert len({c["message"]["audio"]["id"] for c in choices}) == 3
    chunks = server.chat("x", n=2, stream=True).events()[:-1]
    texts = {
        i: "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"][0]["index"] == i)
        for i in (0, 1)
    }
    assert texts == {0: server.service.written, 1: server.service.written}


def test_the_voice_is_a_name_or_a_recording(server):
    def loudest(**audio) -> float:
        reply = server.chat("x", modalities=["audio"], seed=4, audio={"format": "pcm16", **audio})
        return np.abs(
            np.frombuffer(base64.b64decode(reply.json()["choices"][0]["message"]["audio"]["data"]), "<i2")
        ).max()

    own = loudest()
    assert loudest(voice="default") == own
    assert loudest(voice="ada") == pytest.approx(1.5 * own, abs=2)
    recording = {"data": base64.b64encode(world.wav(1.0)).decode(), "format": "wav"}
    assert loudest(voice=recording) == pytest.approx(1.5 * own, abs=2)
    reply = server.chat("x", modalities=["audio"], audio={"voice": "alloy"})
    assert (reply.status, reply.error) == (400, "There is no voice 'alloy'; voices are default, ada.")


def test_models_health_and_metrics(server):
    (model,) = server.ask("GET", "/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("anygpt-test", "model")
    assert model["modalities"] == ["text", "image", "speech", "music"] and model["seconds"]["speech"] == 6.0
    assert server.ask("GET", "/v1/models/anygpt-test").json() == model
    assert server.ask("GET", "/v1/models/other").status == 404
    assert server.ask("GET", "/healthz").json()["status"] == "ok"
    before = server.metric('anygpt_responses_total{status="200"}')
    server.chat("x")
    assert server.metric('anygpt_responses_total{status="200"}') == before + 1
    assert server.metric("anygpt_slots") == server.service.slots


@pytest.mark.parametrize(
    ("fields", "status", "sentence"),
    [
        ({"n": 5}, 400, "'n' may be at most 4, not 5."),
        ({"temperature": 3}, 400, "'temperature': Input should be less than or equal to 2."),
        ({"top_p": 0}, 400, "'top_p': Input should be greater than 0."),
        ({"seed": 1.5}, 400, "'seed': Input should be a valid integer, got a number with a fractional part."),
        ({"modalities": ["smell"]}, 400, "An answer cannot be of 'smell'; modalities are text, image, speech, music, audio, any."),
        ({"modalities": ["any", "text"]}, 400, "An answer cannot be of 'any'; modalities are text, image, speech, music, audio, any."),
        ({"model": "gpt-5"}, 404, "There is no model 'gpt-5' here, only 'anygpt-test'."),
        ({"tools": [{}]}, 400, "'tools' is not supported by this model; leave it out."),
        ({"response_format": {"type": "json_object"}}, 400, "Only response_format {'type': 'text'} is supported."),
        ({"max_tokens": 1}, 400, "An answer needs at least 2 tokens."),
        ({"audio": {"format": "aac"}}, 400, "'audio.format': Input should be 'wav', 'flac', 'mp3', 'opus' or 'pcm16'."),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_in_a_sentence(server, fields, status, sentence):
    reply = server.chat("x", **fields)
    assert (reply.status, reply.error) == (status, sentence)
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_unknown_fields_are_ignored_as_elsewhere(server):
    assert server.chat("x", user="me", store=True, metadata={"a": 1}, reasoning_effort="low").status == 200


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "The body is not JSON: EOF while parsing a value at line 1 column 0."),
        (b"{", "The body is not JSON: EOF while parsing an object at line 1 column 1."),
        (b"[]", "The body must be a JSON object with 'messages': Input should be an object."),
        (b'{"messages": []}', "'messages': List should have at least 1 item after validation, not 0."),
        (b'{"messages": [{"role": "tool", "content": ""}]}',
         "'messages.0.role': Input should be 'system', 'developer', 'user' or 'assistant'."),
        (b'{"messages": [{"role": "user", "content": "  "}]}', "The last message says nothing; give it a text or a medium."),
        (b'{"messages": [{"role": "assistant", "content": "x"}]}',
         "The last message must be the user's: an answer cannot be begun for the model."),
        (b"[" * 100_000, None),
        (b'{"messages": ' + b"[" * 500 + b"]" * 500 + b"}", None),
        ('{"messages": [{"role": "user", "content": "\ud800"}]}'.encode("utf-8", "surrogatepass"), None),
    ],
)  # fmt: skip
def test_bodies_that_say_nothing(server, body, sentence):
    reply = server.ask("POST", "/v1/chat/completions", body)
    assert reply.status == 400
    assert sentence is None or reply.error == sentence


def test_paths_methods_and_types(server):
    assert server.ask("GET", "/v2").status == 404
    assert server.ask("GET", "/web/../app.py").status == 404
    assert server.ask("GET", "/v1/chat/completions").status == 405
    assert server.ask("POST", "/v1/chat/completions", b"{}", {"Content-Type": "text/plain"}).status == 415
    assert server.ask("POST", "/v1/chat/completions", b"{}", {"Content-Encoding": "gzip"}).status == 415


def test_the_page_is_whole_and_may_load_nothing_from_elsewhere(server):
    page = server.ask("GET", "/")
    assert page.status == 200 and b"http://" not in page.body and b"https://" not in page.body
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "script-src 'self'" in policy
    named = {part.split(b'"')[0].decode() for part in page.body.split(b'"web/')[1:]}
    assert {"app.js", "style.css"} <= named
    for name in named:
        assert server.ask("GET", f"/web/{name}").status == 200


def test_a_conversation_refers_to_media_of_earlier_answers_by_id(server):
    first = server.chat("draw and speak", modalities=["image", "speech"], seed=3).json()["choices"][0]["message"]
    codes = [s.content for s in _answered(server)]
    said = {
        "role": "assistant",
        "content": [{"type": "media", "id": first["images"][0]["id"]}],
        "audio": {"id": first["audio"]["id"]},
    }
    turns = [{"role": "user", "content": "draw and speak"}, said, {"role": "user", "content": "again"}]
    assert server.chat(turns).status == 200
    prompt = server.service.seen[-1].prompt
    vocabulary = server.api.reader.pipeline.formatter.vocabulary
    for modality, content in zip(("image", "speech"), codes, strict=True):
        begin = int(np.flatnonzero(prompt == vocabulary.block(modality).begin)[0])
        found = vocabulary.decode_codes(modality, prompt[begin + 1 : begin + 1 + len(content)])
        assert found.tolist() == content.tolist()


def _answered(server):
    """What the stand-in answers to the last request."""
    segments = []
    ticket = world.Ticket(server.service, server.service.seen[-1], None)
    for modality in ticket.request.plan:
        list(ticket._part(modality, segments))
    return segments
