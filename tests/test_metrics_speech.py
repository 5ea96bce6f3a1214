"""The recognizer as a judge: what it hears of the voices, and that its grammar gives nothing for free."""

import numpy as np
import pytest

from anygpt_jax.embedded import scenes, sentences, voices
from anygpt_jax.modalities.base import Audio
from anygpt_jax.tasks.metrics import (
    heard_unspoken_word_recall,
    speech,
    speech_word_error_rate,
    spoken_image_attributes,
    spoken_music_attributes,
)


@pytest.fixture(scope="module")
def spoken():
    drawn = sentences.sample("test", 18, np.random.default_rng(3))
    imitated = voices.names("tts")
    sounds = [voices.synthesize(s.text, imitated[i % len(imitated)]) for i, s in enumerate(drawn)]
    return [{"text": s.text, "kind": s.kind, **s.mentioned} for s in drawn], sounds


def test_imitated_voices_are_understood(spoken):
    assert speech_word_error_rate(*spoken)["wer"] <= 0.06


def test_another_sentence_is_all_wrong(spoken):
    targets, sounds = spoken
    assert speech_word_error_rate(targets, sounds[1:] + sounds[:1])["wer"] > 0.8


def test_noise_is_not_understood(spoken):
    targets, sounds = spoken
    rng = np.random.default_rng(0)
    noise = [Audio(rng.normal(0, 0.1, 24_000).astype(np.float32), 16_000) for _ in range(3)]
    shaped = [
        Audio((rng.normal(size=len(s.samples)) * np.abs(s.samples)).astype(np.float32), 16_000) for s in sounds[:3]
    ]
    assert speech_word_error_rate(targets[:6], noise + shaped)["wer"] > 0.9
    assert speech_word_error_rate(targets[:1], [None])["wer"] == 1.0


def test_spoken_attributes_are_heard(spoken):
    targets, sounds = spoken
    pictures = [i for i, t in enumerate(targets) if t["kind"] == "image"]
    scores = spoken_image_attributes([targets[i] for i in pictures], [sounds[i] for i in pictures])
    assert scores["attributes"] >= 0.9
    tunes = [i for i, t in enumerate(targets) if "instrument" in t]
    assert spoken_music_attributes([targets[i] for i in tunes], [sounds[i] for i in tunes])["instrument"] >= 0.75


def test_words_that_training_never_hears_are_heard_by_the_judge():
    drawn = sentences.sample("test", 6, np.random.default_rng(4), naming=scenes.UNSPOKEN)
    targets = [{"unspoken": [w for w in s.text.split() if w in scenes.UNSPOKEN]} for s in drawn]
    sounds = [voices.synthesize(s.text, voices.names("tts")[i % 3]) for i, s in enumerate(drawn)]
    assert heard_unspoken_word_recall(targets, sounds)["unspoken_recall"] >= 0.8
    assert heard_unspoken_word_recall(targets, [None] * 6) == {"unspoken_recall": 0.0}
    assert heard_unspoken_word_recall([{"text": "hello"}], [None]) == {}


def test_two_objects_are_heard():
    targets = [{"object": "fox", "second": "castle", "relation": "left of"}] * 2
    texts = ("a fox left of a castle", "a castle to the right of a fox")
    scores = spoken_image_attributes(targets, [voices.synthesize(text, "ada") for text in texts])
    assert scores == {"attributes": 1, "all": 1, "object": 1, "second": 1, "relation": 1}


def test_a_recording_is_heard_once(spoken, monkeypatch):
    speech.recognise(spoken[1][:2])
    monkeypatch.setattr(speech, "_hear", None)
    assert len(speech.recognise(spoken[1][:2])) == 2
