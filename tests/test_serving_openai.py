"""OpenAI's own client talks to the server, as programs do that were written for it."""

import base64
import io

import pytest
import serving_world as world
import soundfile

openai = pytest.importorskip("openai")

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def server():
    with world.serving(token=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=TOKEN, max_retries=0)


def test_text(client, server):
    answer = client.chat.completions.create(
        model="anygpt-test", messages=[{"role": "user", "content": "hello"}], seed=1
    )
    assert answer.choices[0].message.content == server.service.written
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert [m.id for m in client.models.list()] == ["anygpt-test"]


def test_text_in_a_stream(client, server):
    stream = client.chat.completions.create(
        model="anygpt-test", messages=[{"role": "user", "content": "hello"}], stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == server.service.written
    assert chunks[-1].usage.completion_tokens > 0 and chunks[-2].choices[0].finish_reason == "stop"


def test_speech_as_their_documentation_asks_for_it(client):
    answer = client.chat.completions.create(
        model="anygpt-test", modalities=["text", "audio"], audio={"voice": "ada", "format": "wav"},
        messages=[{"role": "user", "content": "good morning"}],
    )  # fmt: skip
    audio = answer.choices[0].message.audio
    sound = soundfile.SoundFile(io.BytesIO(base64.b64decode(audio.data)))
    assert (sound.samplerate, sound.frames) == (16_000, 60 * world.FRAME)
    # A later turn refers to it by its id.
    again = client.chat.completions.create(
        model="anygpt-test",
        messages=[
            {"role": "user", "content": "good morning"},
            {"role": "assistant", "audio": {"id": audio.id}},
            {"role": "user", "content": "say the same"},
        ],
    )
    assert again.usage.prompt_tokens > 60


def test_pictures_and_sound_in_and_pictures_out(client):
    picture = base64.b64encode(world.png()).decode()
    sound = base64.b64encode(world.wav(0.5)).decode()
    answer = client.chat.completions.create(
        model="anygpt-test",
        messages=[{"role": "user", "content": [
            {"type": "text", "text": "what is this"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}", "detail": "low"}},
            {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
        ]}],
        extra_body={"modalities": ["text", "image"]},
    )  # fmt: skip
    message = answer.choices[0].message
    assert message.content and message.images[0]["image_url"]["url"].startswith("data:image/png;base64,")


def test_errors_are_their_exceptions(client, server):
    ask = [{"role": "user", "content": "x"}]
    with pytest.raises(openai.NotFoundError, match="There is no model"):
        client.chat.completions.create(model="gpt-4o", messages=ask)
    part = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    with pytest.raises(openai.BadRequestError, match="fetches no URLs"):
        client.chat.completions.create(model="anygpt-test", messages=[{"role": "user", "content": [part]}])
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").chat.completions.create(model="anygpt-test", messages=ask)
    server.service.queue = 0
    try:
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="anygpt-test", messages=ask)
    finally:
        server.service.queue = 64
