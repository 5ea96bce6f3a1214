"""The judges of text: exact on what the grammar writes, at chance on shuffled truth, blind to hedging."""

import numpy as np
import pytest

from anygpt_jax.embedded import grammar, scenes, sentences
from anygpt_jax.tasks.metrics import caption_attributes, main_score, music_caption_attributes, word_error_rate
from anygpt_jax.tasks.metrics.scores import attribute_scores
from anygpt_jax.tasks.metrics.text import parse, parse_attributes

IMAGE = ("object", "colour", "size", "place")


def _scenes(n):
    rng = np.random.default_rng(0)
    attributes = [scenes.sample(rng, "train") for _ in range(n)]
    return attributes, [sentences.caption_scene(a, rng) for a in attributes]


def test_every_caption_of_the_grammar_is_read_exactly():
    attributes, captions = _scenes(500)
    assert set(caption_attributes(attributes, captions).values()) == {1.0}


def test_every_music_caption_of_the_grammar_is_read_exactly():
    rng = np.random.default_rng(1)
    names = grammar.MUSIC_SLOTS.values()
    tunes = [{name: rng.choice(list(phrases)) for name, phrases in names} for _ in range(500)]
    captions = [sentences.caption_music(t, rng) for t in tunes]
    assert music_caption_attributes(tunes, captions) == {"instrument": 1, "tempo": 1, "dance": 1, "key": 1}


def test_spoken_sentences_state_what_they_mention():
    for sentence in sentences.sample("train", 300, np.random.default_rng(2)):
        names = IMAGE if sentence.kind == "image" else ("instrument", "tempo", "dance")
        assert parse_attributes(sentence.text, names) == sentence.mentioned


def test_shuffled_captions_are_at_chance():
    attributes, captions = _scenes(2000)
    scores = caption_attributes(attributes, captions[1:] + captions[:1])
    expected = {"object": 1 / 40, "colour": 1 / 8, "size": 1 / 2, "place": 1 / 9}
    for name, chance in expected.items():
        assert scores[name] == pytest.approx(chance, abs=0.04)


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("A tiny CRAB, in the top left corner of an orange picture!", ("crab", "orange", "small", "top left")),
        ("on the left side a huge piano and behind it plain gray", ("piano", "gray", "large", "left")),
        ("a big fox in the middle on a blue background", ("fox", "blue", "large", "center")),
    ],
)
def test_phrases(text, stated):
    assert parse_attributes(text, IMAGE) == dict(zip(IMAGE, stated, strict=True))


def test_naming_everything_scores_nothing():
    everything = " ".join([*scenes.OBJECTS, *scenes.COLOURS, "small large", *scenes.PLACES])
    assert parse_attributes(everything, IMAGE) == {}
    assert parse_attributes("", IMAGE) == {}


def test_parse_takes_the_longest_phrase():
    lexicon = {"place": {"top": "top", "left": "left", "top left": "top left"}, "key": {"a major": "a major"}}
    assert parse("a fox at the top left", lexicon) == {"place": "top left"}
    assert parse("at the top and on the left", lexicon) == {}
    assert parse("a jig in a major", lexicon) == {"key": "a major"}


def test_attribute_scores_by_hand():
    targets = [{"object": "fox", "colour": "red"}, {"object": "crab"}, {"text": "hello"}]
    scores = attribute_scores(targets, [{"object": "fox", "colour": "blue"}, {"object": "crab"}, None], IMAGE)
    assert scores == {"attributes": 0.75, "all": 0.5, "object": 1.0, "colour": 0.0}
    with pytest.raises(ValueError, match="2 targets"):
        attribute_scores(targets[:2], [{}], IMAGE)


def test_word_error_rate_by_hand():
    targets = [{"text": "a red fox on blue"}, {"text": "good morning"}]
    assert word_error_rate(targets, ["a red fox on blue", "good morning"]) == {"wer": 0.0}
    # One substitution, one deletion, one insertion over seven reference words.
    assert word_error_rate(targets, ["a red box blue", "good good morning"])["wer"] == pytest.approx(3 / 7)
    # The rate is of the corpus: an empty answer to the short sentence costs two of seven words, not half.
    assert word_error_rate(targets, ["a red fox on blue", ""])["wer"] == pytest.approx(2 / 7)
    assert word_error_rate([{"text": "An apple"}], ["a Apple."]) == {"wer": 0.0}


def test_main_score_is_unambiguous():
    assert main_score({"wer": 0.2}) == ("wer", 0.2, False)
    assert main_score({"attributes": 0.5, "object": 1.0}) == ("attributes", 0.5, True)
    with pytest.raises(ValueError, match="exactly one"):
        main_score({"wer": 0.2, "instrument": 1.0})
