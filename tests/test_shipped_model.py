"""The model in the package: it is whole, small enough, answers as its card says, and the card says what was measured."""

import json
import pathlib

import numpy as np
import pytest

from anygpt_jax import shipped
from anygpt_jax.embedded import scenes, sentences, voices
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.shipped import card
from anygpt_jax.tasks import metrics
from anygpt_jax.tasks.instructions import pair_segments
from anygpt_jax.tasks.metrics.melody import melody_scores
from anygpt_jax.templates import TEXT

PACKAGE = pathlib.Path(shipped.__file__).parents[1]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(shipped.config())


@pytest.fixture(scope="module")
def measured() -> dict:
    return json.loads(shipped.METRICS.read_text())["shipped"]


def ask(pipeline: Pipeline, source: str, target: str, contents: list) -> list:
    """What the model answers to each content, with a seed for each."""
    if source != TEXT:
        contents = pipeline.tokenizers[source].encode(contents)
    prompts = [
        pipeline.prompt(pair_segments(source, target, content, key=str(i))) for i, content in enumerate(contents)
    ]
    return pipeline.media(target, pipeline.engine.generate(prompts, (target,), range(len(prompts))))


def test_model_and_tokenizers_fit_into_thirty_megabytes():
    files = [p for place in ("modalities/weights", "shipped") for p in (PACKAGE / place).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 30e6


def test_the_card_shows_what_was_measured_of_this_checkpoint(measured, pipeline):
    text = card.CARD.read_text()
    assert card.insert(text, card.tables(measured)) == text
    assert measured["step"] == pipeline.step
    assert f"| {measured['matrix']['text']['image']['n']} |" in text


def test_it_draws_and_describes_held_out_scenes(pipeline):
    rng = np.random.default_rng(11)
    asked = [(scenes.sample_two if i % 4 == 3 else scenes.sample)(rng, "test") for i in range(32)]
    captions = [sentences.caption_scene(a, rng, "test") for a in asked]
    drawn = metrics.image_attributes(asked, ask(pipeline, TEXT, "image", captions))
    told = metrics.caption_attributes(asked, ask(pipeline, "image", TEXT, [scenes.render(a) for a in asked]))
    assert drawn["attributes"] > 0.85 and drawn["object"] > 0.75, drawn
    assert told["attributes"] > 0.85 and told["object"] > 0.75, told


def test_it_speaks_and_understands_held_out_sentences(pipeline):
    drawn = sentences.sample("test", 16, np.random.default_rng(12))
    targets = [{"text": s.text} for s in drawn]
    spoken = ask(pipeline, TEXT, "speech", [s.text for s in drawn])
    heard = ask(pipeline, "speech", TEXT, [voices.synthesize(s.text, "ada") for s in drawn])
    assert metrics.speech_word_error_rate(targets, spoken)["wer"] < 0.4
    assert metrics.word_error_rate(targets, heard)["wer"] < 0.25


def test_it_plays_in_the_tempo_and_the_key_asked_for(pipeline):
    rng = np.random.default_rng(13)
    keys = ("d major", "e flat major", "a minor", "g major")
    asked = [
        {"instrument": "violin", "tempo": ("slow", "medium", "fast")[i % 3], "dance": "reel", "key": keys[i % 4]}
        for i in range(12)
    ]
    clips = ask(pipeline, TEXT, "music", [sentences.caption_music(a, rng, "test") for a in asked])
    assert all(clip.seconds > 3 for clip in clips)
    found = melody_scores(asked, clips)
    assert found["on_scale"] > 0.75 and found["tempo_within_10"] > 0.5, found


def test_the_same_seed_gives_the_same_answer(pipeline):
    prompt = pipeline.prompt(pair_segments(TEXT, "image", "a small fox on a red background", key="0"))
    one, two = (pipeline.engine.generate([prompt], ("image",), [5])[0].ids for _ in range(2))
    np.testing.assert_array_equal(one, two)
