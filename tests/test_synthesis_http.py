"""HTTP backends: what a bad server costs the request that met it, and nothing else; keys appear nowhere."""

import dataclasses
import io
import logging
import threading
import time

import misbehaving_server as bad
import ml_collections
import numpy as np
import openai._base_client
import pytest
import soundfile

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.pictures import load_picture
from anygpt_jax.synthesis.backends import Failure, medium_request, text_request
from anygpt_jax.synthesis.backends.http import Http
from anygpt_jax.synthesis.backends.http_settings import HttpSettings
from anygpt_jax.synthesis.backends.spending import Prices, Spending

KEY = "sk-this-is-secret"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("THE_KEY", KEY)
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.001)
    with bad.running() as server:
        yield server


@pytest.fixture
def make(server, tmp_path):
    def make(**changes):
        settings = HttpSettings("text", server.url, "the-model", "THE_KEY", timeout=10.0, retries=1, concurrency=4)
        return Http(dataclasses.replace(settings, **changes), Spending(tmp_path / "spending"))

    return make


def ask(content, seed=0):
    return text_request("topics", [("system", "be brief"), ("user", content)], {}, seed)


def draw(content):
    return medium_request("image", content, {}, 0)


def speak(content, voice=""):
    return medium_request("speech", content, {}, 0, voice)


def test_good_answers_in_order(server, make):
    requests = [ask(f"question {i}", seed=i) for i in range(20)]
    four = threading.Barrier(4)

    def together(handler):
        four.wait(10)
        bad.good(handler)

    server.plan = {f"question {i}": [together] for i in range(4)}
    assert make().make(requests) == [f"echo question {i}".encode() for i in range(20)]
    assert server.most_active == 4
    body = next(body for body in server.bodies if body["seed"] == 7)
    assert body == {
        "model": "the-model",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "question 7"}],
        "temperature": 1.0,
        "max_tokens": 2048,
        "seed": 7,
    }
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)
    assert all(headers["Accept-Encoding"] == "identity" for headers in server.headers)


def play(content, seed=0):
    return medium_request("music", content, {}, seed)


def music_of(make, server, form, **changes):
    """A backend of music, asked in this form."""
    return make(modality="music", form=form, base_url=server.task if form == "task" else server.url, **changes)


def test_media(server, make):
    [picture] = make(modality="image", extra={"size": "512x512"}).make([draw("a cat")])
    [spoken] = make(modality="speech").make([speak("hello", "ada")])
    assert picture == bad.PICTURE and load_picture(picture).shape == (4, 4, 3)
    assert soundfile.read(io.BytesIO(spoken))[1] == 16_000
    image, speech = sorted(server.bodies, key=lambda body: "input" in body)
    assert image == {
        "model": "the-model",
        "prompt": "a cat",
        "n": 1,
        "response_format": "b64_json",
        "size": "512x512",
    }
    assert speech["voice"] == "ada" and speech["response_format"] == "wav"


def test_music_in_both_forms(server, make):
    extra = {"duration": 20, "negative_prompt": None}
    for form in ("openai", "task"):
        (tune,) = music_of(make, server, form, extra=extra, seed_field="seed").make([play("a slow waltz", 7)])
        assert tune == bad.SOUND
    by_endpoint, by_task = server.bodies
    assert by_endpoint == {
        "model": "the-model", "input": "a slow waltz", "response_format": "wav", "duration": 20, "seed": 7
    }  # fmt: skip
    assert by_task == {"inputs": "a slow waltz", "parameters": {"duration": 20, "seed": 7}}
    assert server.paths == ["/v1/audio/generate", "/models/some/tunes"]
    assert server.headers[1]["Accept"] == "audio/flac, audio/wav"
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)


def test_a_seed_is_sent_where_the_server_takes_one(server, make):
    for modality, request in (("image", medium_request("image", "a", {}, 5)), ("speech", speak("b"))):
        make(modality=modality).make([request])
        make(modality=modality, seed_field="random_seed").make([request])
    assert ["random_seed" in body for body in server.bodies] == [False, True, False, True]
    assert server.bodies[1]["random_seed"] == 5 and not any("seed" in body for body in server.bodies)


SOON = {"retry_after_ms": "1"}
REPEATED = {
    "rate limit": bad.fails(429, **SOON),
    "server error": bad.fails(500),
    "overloaded": bad.fails(503, **SOON),
    "slow": bad.hangs,
    "dripping": bad.drips,
    "truncated JSON": bad.cuts_short,
    "invalid JSON": bad.says(b"{'no': json}"),
    "a page of HTML": bad.says(b"<html>log in first</html>", "text/html"),
    "deep JSON": bad.says(b"[" * 200_000),
    "a JSON list": bad.says(b"[]"),
    "dropped": bad.drops,
}


def test_what_fails_by_chance_is_asked_again(server, make):
    server.plan = {name: [behaviour] for name, behaviour in REPEATED.items()}
    answers = make(concurrency=len(REPEATED), timeout=1.0).make([ask(name) for name in REPEATED])
    assert dict(zip(REPEATED, answers, strict=True)) == {name: f"echo {name}".encode() for name in REPEATED}
    assert sorted(server.asked) == sorted([*REPEATED, *REPEATED])


def test_retry_after_is_waited_for(server, make):
    server.plan = {"a": [bad.fails(429, Retry_After="0.3")]}
    started = time.monotonic()
    assert make().make([ask("a")]) == [b"echo a"]
    assert time.monotonic() - started >= 0.3


POISONED = {  # twice each where it is asked twice; what comes after would be good
    **{name: ([behaviour] * 2, reason) for (name, behaviour), reason in zip(
        REPEATED.items(),
        ["429, asked 2 times: no", "500, asked 2 times: no", "503, asked 2 times", "no answer within 1 s, asked 2 times",
         "no answer within 1 s", "asked 2 times: the answer is cut short or no JSON", "no JSON", "no JSON", "no JSON",
         "no JSON object", "no whole answer, asked 2 times"],
        strict=True,
    )},
    "refused outright": ([bad.fails(400, "your prompt\nis\x1b[31m bad")], "the server answered 400: your prompt is [31m bad"),
    "no such model": ([bad.fails(404, "gone")], "the server answered 404: gone"),
    "elsewhere": ([bad.redirects], "the server answered 302"),
    "refusal": ([bad.says(bad.chat(None, refusal="I will not"))], "the model refused: I will not"),
    "odd refusal": ([bad.says(bad.chat(None, refusal={"why": [[[]]]}))], "the model refused: (a dict)"),
    "filter": ([bad.says(bad.chat("half", "content_filter"))], "content filter"),
    "length": ([bad.says(bad.chat("half of", "length"))], "cut off at max_tokens (2048)"),
    "empty": ([bad.says(bad.chat("  \n"))], "empty"),
    "null": ([bad.says(bad.chat(None))], "empty"),
    "parts": ([bad.says(bad.chat([{"text": "hi"}]))], "empty"),
    "no choices": ([bad.says(b'{"choices": []}')], "no chat completion"),
    "odd choices": ([bad.says(b'{"choices": 3}')], "no chat completion"),
    "half a pair": ([bad.says(bad.chat("\ud800"))], "no Unicode"),
    "echoed key": ([bad.says(bad.chat(f"your key is {KEY}"))], "holds the key"),
    "flood": ([bad.floods], "more than 4,194,304 bytes"),
    "zip bomb": ([bad.zips], "compressed"),
    "odd charset": ([bad.fails(400, "no", Content_Type="text/html; charset=zlib")], "the server answered 400: no"),
    "odd date": ([bad.fails(429, Retry_After="Wed, 21 Oct 99999 07:28:00 GMT")] * 2, "429, asked 2 times"),
    "long error": ([bad.fails(400, f"{KEY} " + "x" * 100_000)], "the server answered 400"),
}  # fmt: skip


def test_a_poisoned_request_costs_itself_alone(server, make, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    server.plan = {name: list(behaviours) for name, (behaviours, _) in POISONED.items()}
    names = [name for poisoned in POISONED for name in (poisoned, f"good beside {poisoned}")]
    backend = make(concurrency=16, timeout=1.0)
    answers = dict(zip(names, backend.make([ask(name) for name in names]), strict=True))
    for name, (behaviours, reason) in POISONED.items():
        assert answers[f"good beside {name}"] == f"echo good beside {name}".encode()
        assert isinstance(answers[name], Failure), name
        assert reason in answers[name].reason and len(answers[name].reason) < 300, (name, answers[name])
        assert server.asked.count(name) == len(behaviours), name
    everything = [repr(answers), caplog.text, repr(backend), repr(backend.settings), backend.name]
    everything += [path.read_text() for path in tmp_path.rglob("*.jsonl")]
    assert not any(KEY in text for text in everything)


def flac():
    out = io.BytesIO()
    soundfile.write(out, np.sin(np.arange(1000) / 9) / 2, 16_000, format="FLAC")
    return out.getvalue()


POISONED_MUSIC = {
    "rate limit": ([bad.fails(429, **SOON)] * 2, "429, asked 2 times: no"),
    "server error": ([bad.fails(500)] * 2, "500, asked 2 times: no"),
    "loading": (
        [bad.says_with(503, {"error": "the model is loading"})] * 2,
        "503, asked 2 times: the model is loading",
    ),
    "slow": ([bad.hangs] * 2, "no answer within 1 s, asked 2 times"),
    "dripping": ([bad.drips] * 2, "no answer within 1 s"),
    "dropped": ([bad.drops] * 2, "no whole answer, asked 2 times"),
    "refusal": ([bad.says_with(400, {"error": "no songs of living artists"})], "400: no songs of living artists"),
    "wrong field": ([bad.says_with(422, {"detail": "no such parameter"})], "422: no such parameter"),
    "elsewhere": ([bad.redirects], "the server answered 302"),
    "truncated": ([bad.says(bad.SOUND[:-1000])], "cut short"),
    "silence": ([bad.says(bad.SILENCE)], "the music is silent"),
    "an error that is fine": ([bad.says(b'{"error": "busy"}')], "the music is no WAV or FLAC file"),
    "arrays": ([bad.says(b'[{"generated_audio": [0.1, 0.2]}]')], "the music is no WAV or FLAC file"),
    "nothing": ([bad.says(b"")], "the music is no WAV or FLAC file"),
    "zip bomb": ([bad.zips], "compressed"),
    "echoed key": ([bad.says(bad.SOUND + KEY.encode())], "holds the key"),
}


@pytest.mark.parametrize("form", ["openai", "task"])
def test_poisoned_music_costs_itself_alone(server, make, form):
    server.plan = {name: list(behaviours) for name, (behaviours, _) in POISONED_MUSIC.items()}
    names = [name for poisoned in POISONED_MUSIC for name in (poisoned, f"good beside {poisoned}")]
    backend = music_of(make, server, form, concurrency=16, timeout=1.0)
    answers = dict(zip(names, backend.make([play(name) for name in names]), strict=True))
    for name, (behaviours, reason) in POISONED_MUSIC.items():
        assert answers[f"good beside {name}"] == bad.SOUND
        assert isinstance(answers[name], Failure) and reason in answers[name].reason, (name, answers[name])
        assert server.asked.count(name) == len(behaviours), name
    server.plan = {"a": [bad.fails(429, **SOON)], "b": [bad.fails(500)], "c": [bad.hangs]}
    again = music_of(make, server, form, timeout=1.0)
    assert again.make([play("a"), play("b"), play("c")]) == [bad.SOUND] * 3


@pytest.mark.parametrize("form", ["openai", "task"])
def test_music_is_paid_for_by_the_piece_under_a_ceiling(server, make, tmp_path, form):
    settings = music_of(make, server, form, concurrency=1, prices=Prices(music=0.03), max_cost=0.1).settings
    spending = Spending(tmp_path / "music", settings.max_cost)
    server.plan = {"tune 0": [bad.fails(400)]}  # an error is not charged
    with pytest.raises(UserError, match="would pass max_cost"):
        Http(settings, spending).make([play(f"tune {i}") for i in range(6)])
    assert server.asked == [f"tune {i}" for i in range(4)]
    assert spending.spent().requests == 4 and spending.spent().dollars == pytest.approx(0.09)


def test_media_that_are_none(server, make):
    images = {
        "bomb": (bad.image(bad.png_bomb()), "at most 16,777,216"),
        "cut": (bad.image(bad.PICTURE[:45]), "damaged or cut short"),
        "svg": (bad.image(b"<svg/>"), "no PNG or JPEG"),
        "not base64": (b'{"data": [{"b64_json": "%%%"}]}', "not base64"),
        "url": (b'{"data": [{"url": "http://127.0.0.1:9/x.png"}]}', "none is fetched"),
        "nothing": (b'{"data": null}', "holds no picture"),
        "fine": (bad.image(bad.PICTURE), None),
    }
    sounds = {
        "silence": (bad.SILENCE, "silent"),
        "cut sound": (bad.SOUND[:-1000], "cut short"),
        "error page": (b'{"error": "busy"}', "no WAV or FLAC"),
        "nothing said": (b"", "no WAV or FLAC"),
        "flac": (flac(), None),
    }
    server.plan = {name: [bad.says(data)] for name, (data, _) in (images | sounds).items()}
    answers = make(modality="image").make([draw(name) for name in images])
    answers += make(modality="speech").make([speak(name) for name in sounds])
    for answer, (name, (_, reason)) in zip(answers, (images | sounds).items(), strict=True):
        if reason is None:
            assert isinstance(answer, bytes), (name, answer)
        else:
            assert isinstance(answer, Failure) and reason in answer.reason, (name, answer)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (bad.fails(401, f"{KEY} is wrong"), "THE_KEY must hold a key"),
        (bad.fails(403), "THE_KEY must hold a key"),
        (bad.fails(402), "nothing left to spend"),
        (bad.fails(429, code="insufficient_quota", retry_after_ms="1"), "nothing left to spend"),
        (bad.fails(429, Retry_After="86400"), "no more for 86,400 s"),
    ],
)
def test_what_stops_the_job_keeps_what_came(server, make, behaviour, said):
    server.plan = {"bad": [behaviour] * 2}
    arrived = []

    def take(answers):
        for answer in answers:
            arrived.append(answer)

    with pytest.raises(UserError, match=said) as e:
        take(make(concurrency=1).answers([ask("a"), ask("bad"), *(ask(f"later {i}") for i in range(200))]))
    assert (0, b"echo a") in arrived
    assert len(server.asked) < 100  # what was not under way was not asked
    assert KEY not in str(e.value)


def test_no_server(make):
    with pytest.raises(UserError, match=r"Nothing answers at http://127\.0\.0\.1:9/v1"):
        make(base_url="http://127.0.0.1:9/v1").make([ask("a")])


def test_no_key(make, monkeypatch):
    for value in ("", "  ", "clé-secrète"):
        monkeypatch.setenv("THE_KEY", value)
        with pytest.raises(UserError, match="THE_KEY in the environment") as e:
            make()
        assert not value.strip() or value not in str(e.value)


def test_rates(server, make, monkeypatch):
    """The fourth request of a minute that has three, and the tokens of a third chat, would have to wait."""
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        raise InterruptedError

    monkeypatch.setattr("pyrate_limiter.limiter.sleep", sleep)
    backend = make(requests_per_minute=3, concurrency=1)
    assert len(backend.make([ask(str(i)) for i in range(3)])) == 3
    with pytest.raises(InterruptedError):
        backend.make([ask("4")])
    backend = make(tokens_per_minute=1000, max_tokens=400, concurrency=1)
    assert len(backend.make([ask(str(i)) for i in range(2)])) == 2
    with pytest.raises(InterruptedError):
        backend.make([ask("3")])
    assert all(50 < seconds <= 61 for seconds in waited) and len(waited) == 2
    assert make(tokens_per_minute=10).make([ask("larger than a minute")]) == [b"echo larger than a minute"]


def test_settings():
    section = ml_collections.ConfigDict(
        {
            "backend": "http",
            "base_url": "https://user.example/v1",
            "model": "m",
            "extra": {"max_tokens": None, "max_completion_tokens": 9},
            "prices": {"input": 2.5},
            "max_cost": 3,
        }
    )
    settings = HttpSettings.from_config(section, "text")
    assert settings.limit == 9 and settings.prices.input == 2.5
    assert "user.example" not in settings.name
    for same in (
        {"concurrency": 1},
        {"key_variable": "X"},
        {"base_url": "http://b/v1"},
        {"timeout": 1.0},
        {"retries": 0},
    ):
        assert dataclasses.replace(settings, **same).name == settings.name
    for other in (
        {"model": "n"},
        {"temperature": 0.5},
        {"extra": {"max_tokens": 8}},
        {"max_cost": None, "modality": "image"},
    ):
        assert dataclasses.replace(settings, **other).name != settings.name
    tunes = HttpSettings("music", "http://a/v1", "m")
    assert tunes.name == 'http music m {"extra": {}}', "answers are kept under it"
    assert dataclasses.replace(tunes, form="task").name != tunes.name
    for wrong, said in {
        "base_url=ftp://x": "base_url must be",
        "base_url=https://me:pw@x/v1": "no name, password",
        "base_url=https://x/v1?key=pw": "no name, password",
    }.items():
        with pytest.raises(UserError, match=said) as e:
            dataclasses.replace(settings, base_url=wrong.partition("=")[2])
        assert "pw" not in str(e.value)
    with pytest.raises(UserError, match="has no key; it has"):
        HttpSettings.from_config(
            ml_collections.ConfigDict({"base_url": "https://x/v1", "model": "m", "key": KEY}), "text"
        )
    with pytest.raises(UserError, match="needs model"):
        HttpSettings.from_config(ml_collections.ConfigDict({"base_url": "https://x/v1"}), "text")
    for changes, said in (
        ({"extra": {"n": 4}}, "cannot set n"),
        ({"extra": {"max_tokens": None}}, "must leave max_tokens"),
        ({"prices": Prices(image=1.0)}, "needs the prices of text"),
        ({"modality": "video"}, "no video"),
        ({"modality": "music", "max_cost": 1.0}, "needs the prices of music"),
        ({"modality": "music", "max_cost": None, "form": "suno"}, "'openai', or for music 'task'"),
        ({"form": "task"}, "for music 'task'"),
        ({"seed_field": "seed"}, "seed_field is of"),
        ({"modality": "image", "max_cost": None, "extra": {"random": 3}, "seed_field": "random"}, "cannot set random"),
        ({"modality": "music", "max_cost": None, "extra": {"parameters": {}}}, "cannot set parameters"),
        ({"retries": -1}, "retries must be 0"),
    ):
        with pytest.raises(UserError, match=said):
            dataclasses.replace(settings, **changes)


def test_none_takes_a_field_out(server, make):
    extra = {"temperature": None, "max_tokens": None, "max_completion_tokens": 7}
    make(extra=extra).make([ask("a")])
    assert "temperature" not in server.bodies[0] and "max_tokens" not in server.bodies[0]
    assert server.bodies[0]["max_completion_tokens"] == 7
