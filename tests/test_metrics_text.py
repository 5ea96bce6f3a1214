"""The judges of text: exact on what the grammar writes, at chance on shuffled truth, blind to hedging."""

import numpy as np
import pytest

from anygpt_jax.embedded import grammar, scenes, sentences
from anygpt_jax.tasks.metrics import (
    caption_attributes,
    main_score,
    music_caption_attributes,
    unspoken_word_recall,
    word_error_rate,
)
from anygpt_jax.tasks.metrics.scores import IMAGE_ATTRIBUTES, attribute_scores
from anygpt_jax.tasks.metrics.text import parse, parse_attributes

IMAGE = ("object", "colour", "size", "place")
BLUE = {"colour": "blue"}


def _scenes(n):
    rng = np.random.default_rng(0)
    attributes = [scenes.sample(rng, "train") for _ in range(n)]
    return attributes, [sentences.caption_scene(a, rng) for a in attributes]


def test_every_caption_of_the_grammar_is_read_exactly():
    attributes, captions = _scenes(500)
    assert set(caption_attributes(attributes, captions).values()) == {1.0}


def test_every_caption_of_two_objects_is_read_exactly():
    rng = np.random.default_rng(0)
    attributes = [scenes.sample_two(rng, "train") for _ in range(500)]
    captions = [sentences.caption_scene(a, rng) for a in attributes]
    assert caption_attributes(attributes, captions) == {
        "attributes": 1, "all": 1, "object": 1, "second": 1, "relation": 1, "colour": 1
    }  # fmt: skip
    stated = [parse_attributes(c, IMAGE_ATTRIBUTES) for c in captions]
    assert all(s.keys() == {"object", "second", "relation", "colour"} for s in stated)


def test_every_music_caption_of_the_grammar_is_read_exactly():
    rng = np.random.default_rng(1)
    names = grammar.MUSIC_SLOTS.values()
    tunes = [{name: rng.choice(list(phrases)) for name, phrases in names} for _ in range(500)]
    captions = [sentences.caption_music(t, rng) for t in tunes]
    assert music_caption_attributes(tunes, captions) == {"instrument": 1, "tempo": 1, "dance": 1, "key": 1}


def test_spoken_sentences_state_what_they_mention():
    for sentence in sentences.sample("train", 300, np.random.default_rng(2)):
        names = IMAGE_ATTRIBUTES if sentence.kind == "image" else ("instrument", "tempo", "dance")
        assert parse_attributes(sentence.text, names) == sentence.mentioned


def test_shuffled_captions_are_at_chance():
    attributes, captions = _scenes(2000)
    scores = caption_attributes(attributes, captions[1:] + captions[:1])
    expected = {"object": 1 / len(scenes.OBJECTS), "colour": 1 / 8, "size": 1 / 2, "place": 1 / 9}
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


FOX_AND_TREE = {"object": "fox", "second": "tree", "relation": "left of"}


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("a fox left of a tree", FOX_AND_TREE),
        ("a tree to the right of a fox", FOX_AND_TREE),
        ("Left of a tree there is a fox.", FOX_AND_TREE),
        ("a fox is to the left of the big red tree", FOX_AND_TREE | {"size": "large", "colour": "red"}),
        ("a fox left of a tree, so the tree is right of the fox", FOX_AND_TREE),
        ("a crab over a fox on a blue background", {"object": "crab", "second": "fox", "relation": "above"} | BLUE),
        ("a fox under a crab and everything is blue", {"object": "crab", "second": "fox", "relation": "above"} | BLUE),
        ("a fox and a tree on a blue background", BLUE),  # no relation: neither is stated
        ("a fox left of and above a tree", {}),
        ("a fox left of a tree and a tree left of a fox", {}),
        ("a fox left of a tree and a crab on a blue background", BLUE),  # three are too many
        ("a fox left of the blue background", {"object": "fox"} | BLUE),  # and not at the left
        ("a small fox on the left", {"object": "fox", "size": "small", "place": "left"}),
        ("on the left of a blue picture there is a fox", {"object": "fox", "place": "left"} | BLUE),
        ("in the top left of a blue picture there is a fox", {"object": "fox", "place": "top left"} | BLUE),
        ("a fox below in the top right corner", {"object": "fox", "place": "top right"}),
    ],
)
def test_two_objects(text, stated):
    assert parse_attributes(text, IMAGE_ATTRIBUTES) == stated


def test_relations_by_brute_force():
    """Every wording of a relation either way round says what holds on a grid."""
    corner = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
    for relation, said in grammar.RELATIONS.items():
        row, column = corner[relation]
        for phrase in said:
            stated = parse_attributes(f"a crab {phrase} an owl", IMAGE_ATTRIBUTES)
            expected = ["crab", "owl"] if (row, column) < (0, 0) else ["owl", "crab"]
            assert [stated["object"], stated["second"]] == expected
            assert stated["relation"] == ("left of" if column else "above")
            assert "place" not in stated


def test_naming_everything_scores_nothing():
    everything = " ".join([*scenes.OBJECTS, *scenes.COLOURS, "small large", *scenes.PLACES])
    assert parse_attributes(everything, IMAGE) == {}
    related = " ".join(f"{relation} a {name}" for name in scenes.OBJECTS for relation in grammar.RELATIONS)
    assert parse_attributes(f"a fox {related}", IMAGE_ATTRIBUTES) == {}
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


def test_unspoken_word_recall_by_hand():
    targets: list[dict] = [{"unspoken": ["giraffe", "candle"]}, {"text": "good morning"}, {"unspoken": ["volcano"]}]
    assert unspoken_word_recall(targets, ["A Giraffe!", "volcano", "a volcanoes"]) == {"unspoken_recall": 1 / 3}
    assert unspoken_word_recall(targets, ["candle giraffe", "", "volcano"]) == {"unspoken_recall": 1.0}
    assert unspoken_word_recall(targets[1:2], ["volcano"]) == {}


def test_main_score_is_unambiguous():
    assert main_score({"wer": 0.2}) == ("wer", 0.2, False)
    assert main_score({"attributes": 0.5, "object": 1.0}) == ("attributes", 0.5, True)
    with pytest.raises(ValueError, match="exactly one"):
        main_score({"wer": 0.2, "instrument": 1.0})
