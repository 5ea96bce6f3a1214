"""What a request's messages become: segments, plan, sampling; and ids that hold the codes of media."""

import base64
import json

import numpy as np
import pytest
import serving_world as world

from anygpt_jax.modalities.base import Audio
from anygpt_jax.serving import handles, schema
from anygpt_jax.serving.conversation import Reader
from anygpt_jax.serving.limits import Limits
from anygpt_jax.serving.refusal import Refusal
from anygpt_jax.templates import Segment

PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(world.png()).decode()}"}}
SOUND = {"type": "input_audio", "input_audio": {"data": base64.b64encode(world.wav(0.4)).decode(), "format": "wav"}}


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(world.pipeline(), Limits(), {"ada": Audio(np.ones(16_000, np.float32), 16_000)}, longest=128)


def prepare(reader: Reader, messages, **fields):
    turns = (
        [{"role": "user", "content": messages}]
        if not isinstance(messages[0], dict) or "role" not in messages[0]
        else messages
    )
    return reader.prepare(schema.parse(json.dumps({"messages": turns, **fields}).encode()))


def prompt_of(reader: Reader, *segments: tuple) -> list[int]:
    return reader.pipeline.prompt([Segment(m, c, r) for m, c, r in segments]).tolist()


def test_turns_become_segments_in_order(reader):
    codes = [reader.pipeline.tokenizers["image"].encode([np.full((8, 8, 3), 90, np.uint8)])[0]]
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [PICTURE, {"type": "text", "text": " what is it "}]},
        {"role": "assistant", "content": "a flag"},
        {"role": "user", "content": "why"},
    ]
    expected = prompt_of(
        reader, ("text", "be brief", "human"), ("image", codes[0], "human"), ("text", "what is it", "human"),
        ("text", "a flag", "assistant"), ("text", "why", "human"),
    )  # fmt: skip
    assert prepare(reader, turns).requests[0].prompt.tolist() == expected


def test_sound_is_speech_unless_it_says_music(reader):
    speech = reader.pipeline.tokenizers["speech"].encode([reader.pipeline.tokenizers["speech"].load(world.wav(0.4))])[0]
    asked = [{"type": "text", "text": "listen"}, SOUND]
    assert prepare(reader, asked).requests[0].prompt.tolist() == prompt_of(
        reader, ("text", "listen", "human"), ("speech", speech, "human")
    )
    music = prepare(reader, [asked[0], {**SOUND, "modality": "music"}]).requests[0].prompt.tolist()
    assert music == prompt_of(reader, ("text", "listen", "human"), ("music", speech, "human"))


@pytest.mark.parametrize(
    ("content", "modalities", "plan"),
    [
        ("hello", None, ("text",)),
        ("hello", ["image"], ("image",)),
        ("hello", ["text", "audio"], ("speech",)),
        ("hello", ["audio"], ("speech",)),
        ("hello", ["text", "speech"], ("text", "speech")),
        ("hello", ["music", "text", "image"], ("music", "text", "image")),
        ("hello", ["any"], "any"),
        ([PICTURE], ["text"], ("text",)),
        ([PICTURE], ["audio"], ("text", "speech")),
        ([PICTURE], ["text", "audio"], ("text", "speech")),
        ([SOUND], ["image"], ("text", "image")),
    ],
)
def test_plans(reader, content, modalities, plan):
    assert prepare(reader, content, modalities=modalities).requests[0].plan == plan


def test_the_oldest_turns_go_when_all_do_not_fit(reader):
    turns = [{"role": r, "content": f"turn number {i}"} for i in range(30) for r in ("user", "assistant")]
    prompt = prepare(reader, [*turns, {"role": "user", "content": "the last"}]).requests[0].prompt.tolist()
    said = [("text", m["content"], "human" if m["role"] == "user" else "assistant") for m in turns]
    possible = [prompt_of(reader, *said[2 * i :], ("text", "the last", "human")) for i in range(31)]
    assert prompt == max((p for p in possible if len(p) <= 128), key=len)
    assert len(possible[0]) > 128 > len(prompt) > len(possible[-1])
    with pytest.raises(Refusal, match="tokens and the model was trained on at most 128; say less at once"):
        prepare(reader, "many words " * 200)


def test_sampling_goes_over_the_models_own(reader):
    assert prepare(reader, "x").requests[0].sampling is None
    sampling = prepare(reader, "x", temperature=0.5, top_k=3).requests[0].sampling
    assert {(s.temperature, s.top_p, s.top_k) for s in sampling.values()} == {(0.5, 1.0, 3)}
    assert set(sampling) == {"text", "image", "speech", "music"}


def test_tokens_are_capped_by_the_request_and_the_server(reader):
    assert prepare(reader, "x", max_tokens=9).requests[0].max_new_tokens == 9
    assert prepare(reader, "x", max_tokens=9, max_completion_tokens=8).requests[0].max_new_tokens == 8
    assert prepare(reader, "x", max_tokens=10**9).requests[0].max_new_tokens == Limits().new_tokens


class TestIds:
    tokenizers = world.pipeline().tokenizers

    def test_hold_the_codes(self):
        codes = np.arange(32, dtype=np.int32)
        name = handles.name("speech", codes, self.tokenizers["speech"])
        modality, found = handles.read(name, self.tokenizers, "x")
        assert modality == "speech" and found.tolist() == codes.tolist() and found.dtype == np.int32
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")

    def test_are_refused_when_changed_or_of_another_tokenizer(self):
        name = handles.name("speech", np.arange(20, dtype=np.int32), self.tokenizers["speech"])
        impossible = handles.name("image", np.zeros(3, np.int32), self.tokenizers["image"])
        foreign = "music" + name.removeprefix("speech")
        changed = [name[:i] + ("A" if name[i] != "A" else "B") + name[i + 1 :] for i in range(7, len(name))]
        for bad in ("", "speech", "speech-", "speech-*", "dance-AAAA", foreign, impossible, name[:-4], *changed):
            with pytest.raises(Refusal, match="This id is of no medium that this model made"):
                handles.read(bad, self.tokenizers, "x")
