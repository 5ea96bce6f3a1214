"""The grammar's sentences, captions and recognizer."""

import re

import numpy as np
import pytest

from anygpt_jax.embedded import assets, automaton, grammar, scenes, sentences
from anygpt_jax.embedded.settings import Settings
from anygpt_jax.embedded.splits import pair_split, split_of
from anygpt_jax.errors import UserError


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    return {
        split: sentences.sample(split, n, rng) for split, n in {"train": 3000, "validation": 96, "test": 96}.items()
    }


def regex_of_the_grammar() -> re.Pattern[str]:
    """Every spoken template with its slots written out as alternatives."""

    def alternatives(slot: re.Match[str]) -> str:
        return f"(?:{'|'.join(p for said in grammar.slot_phrases(slot[1]).values() for p in said)})"

    templates = [t for of_kind in grammar.SPOKEN.values() for t in of_kind]
    return re.compile("|".join(sentences.SLOT.sub(alternatives, t) for t in templates))


def test_the_recognizer_accepts_every_sentence_and_nothing_else(drawn):
    pattern, recognizer = regex_of_the_grammar(), sentences.recognizer()
    rng = np.random.default_rng(1)
    words = sentences.spoken_words()
    texts = [s.text for split in drawn.values() for s in split]
    assert all(pattern.fullmatch(text) and automaton.accepts(recognizer, text) for text in texts)
    refused = 0
    for text in texts:
        changed = text.split()
        place = rng.integers(len(changed))
        changed[place : place + rng.integers(2)] = [] if rng.random() < 0.3 else [str(rng.choice(words))]
        expected = pattern.fullmatch(" ".join(changed)) is not None
        assert automaton.accepts(recognizer, " ".join(changed)) == expected, changed
        refused += not expected
    assert refused > len(texts) / 2
    for wrong in ("a small fox", "fox on blue", "play a slow reel on the fox", "good morning how are", ""):
        assert not automaton.accepts(recognizer, wrong)


def test_the_automaton_is_the_language_and_minimal():
    slots = {"animal": ("red fox", "fox", "red cat"), "do": ("runs", "runs away", "sleeps")}
    transitions, accepting = built = automaton.build(("the {animal} {do}", "a {animal} {do}", "the fox"), slots)
    language = {f"{a} {x} {d}" for a in ("the", "a") for x in slots["animal"] for d in slots["do"]} | {"the fox"}
    paths, found = [(0, "")], set()
    while paths:
        state, text = paths.pop()
        if state in accepting:
            found.add(text.strip())
        paths += [(target, f"{text} {word}") for word, target in transitions[state].items()]
    assert found == language
    # Myhill and Nerode: as many states as there are different sets of continuations.
    prefixes = {tuple(s.split()[:i]) for s in language for i in range(len(s.split()) + 1)}
    after = {
        frozenset(tuple(s.split()[len(p) :]) for s in language if tuple(s.split()[: len(p)]) == p) for p in prefixes
    }
    assert len(transitions) == len(after)
    assert automaton.to_fsg(built).count("TRANSITION") == sum(map(len, transitions)) + len(accepting)


def test_the_recognizer_knows_every_word():
    pytest.importorskip("pocketsphinx")
    dictionary = assets.package_path("pocketsphinx", "model", "en-us", "cmudict-en-us.dict").read_text()
    known = {line.split()[0] for line in dictionary.splitlines()}
    assert set(sentences.spoken_words()) <= known


def test_splits_share_no_sentence_and_no_held_out_pair(drawn):
    texts = {split: {s.text for s in of} for split, of in drawn.items()}
    assert all(len(texts[split]) == len(of) for split, of in drawn.items())  # all different
    assert not texts["train"] & (texts["test"] | texts["validation"])
    assert not texts["test"] & texts["validation"]
    for sentence in drawn["train"]:
        said = sentence.mentioned
        if {"object", "colour"} <= set(said):
            assert pair_split(said["object"], said["colour"]) == "train"
    held_out = [s for s in drawn["test"] if {"object", "colour"} <= set(s.mentioned)]
    assert any(pair_split(s.mentioned["object"], s.mentioned["colour"]) == "test" for s in held_out)


def test_test_sentences_hold_only_words_heard_in_training(drawn):
    heard = set(sentences.word_counts(drawn["train"]))
    assert set(sentences.spoken_words()) - heard == set(scenes.UNSPOKEN)
    assert set(sentences.word_counts(drawn["test"])) <= heard


def test_sentences_with_a_word_that_is_never_spoken_in_training(drawn):
    found = sentences.sample("test", 60, np.random.default_rng(3), kind="image", naming=scenes.UNSPOKEN)
    assert all(s.mentioned["object"] in scenes.UNSPOKEN and s.mentioned["object"] in s.text.split() for s in found)
    others = set(sentences.word_counts(found)) - set(scenes.UNSPOKEN)
    assert others <= set(sentences.word_counts(drawn["train"]))


def test_two_objects_and_their_relation_are_said_in_either_order(drawn):
    """Read by the words between the two names, against the scene's own order."""
    between = {"left of": 1, "to the left of": 1, "above": 1, "over": 1}
    between |= {"right of": -1, "to the right of": -1, "below": -1, "under": -1}
    rng = np.random.default_rng(4)
    spoken = [(s.mentioned, s.text) for s in drawn["train"] if "second" in s.mentioned]
    scenes_drawn = [scenes.sample_two(rng) for _ in range(300)]
    written = [(a, sentences.caption_scene(a, rng)) for a in scenes_drawn]
    orders = set()
    for attributes, text in spoken + written:
        first, second = attributes["object"], attributes["second"]
        padded = f" {text} "
        forwards = padded.index(f" {first} ") < padded.index(f" {second} ")
        start, end = (first, second) if forwards else (second, first)
        said = padded.split(f" {start} ")[1].split(f" {end} ")[0].removeprefix("is ").rsplit(" ", 1)[0]
        assert between[said] == (1 if forwards else -1), text
        vertical = said in ("above", "over", "below", "under")
        assert (attributes["relation"] == "above") == vertical, text
        orders.add(forwards)
    assert orders == {True, False} and len(spoken) > 100


def test_a_scene_of_two_shows_both_where_the_relation_says():
    rng = np.random.default_rng(5)
    for _ in range(200):
        attributes = scenes.sample_two(rng)
        (one, _, (row, column)), (other, _, (row2, column2)) = scenes.corners(attributes)
        assert (one, other) == (attributes["object"], attributes["second"]) and one != other
        if attributes["relation"] == "left of":
            assert row == row2 and column < column2
        else:
            assert column == column2 and row < row2
        assert scenes.split(attributes) == "train"
        picture = scenes.render(attributes)
        ground = np.array(scenes.COLOURS[attributes["colour"]])
        for r, c in ((row, column), (row2, column2)):
            assert (picture[r : r + 24, c : c + 24] != ground).any()
        empty = picture.copy()
        for r, c in ((row, column), (row2, column2)):
            empty[r : r + 24, c : c + 24] = ground
        assert (empty == ground).all()


def test_mentioned_attributes_are_said(drawn):
    """Read back with nothing but the word lists: each value mentioned is there, and no other value of it."""
    for sentence in drawn["test"]:
        for attribute, phrases in (grammar.IMAGE_SLOTS | grammar.MUSIC_SLOTS).values():
            skipped = ("key", "place", "second", "relation")
            if attribute in skipped or sentence.kind == "everyday" or "second" in sentence.mentioned:
                continue
            found = {v for v, said in phrases.items() if any(f" {p} " in f" {sentence.text} " for p in said)}
            want = {sentence.mentioned[attribute]} if attribute in sentence.mentioned else set()
            if not (sentence.kind == "image" and attribute == "instrument") and not (
                sentence.kind == "music" and attribute == "object"
            ):
                assert found == want, sentence


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_caption_names_all_four_attributes(split):
    rng = np.random.default_rng(1)
    for _ in range(300):
        attributes = scenes.sample(rng, split)
        text = sentences.caption_scene(attributes, rng, split)
        for name, phrases in (grammar.IMAGE_SLOTS[slot] for slot in ("object", "colour", "size", "where")):
            assert any(f" {p} " in f" {text} " for p in phrases[attributes[name]]), text
        if split == "train":
            assert split_of("sentence", text) == "train"
        assert not re.search(r"\b(a (?!uni)[aeiou]|an (?!hour)[^aeiou])", text), text


def test_the_written_words_are_those_of_all_captions():
    rng, words = np.random.default_rng(1), set()
    for _ in range(3000):
        for attributes in (scenes.sample(rng), scenes.sample_two(rng)):
            words.update(sentences.caption_scene(attributes, rng).split())
    written = set(sentences.written_words())
    assert words <= written and {"above", "under"} <= words


def test_a_music_caption_names_all_four_attributes():
    rng = np.random.default_rng(1)
    for key in grammar.KEYS:
        attributes = {"instrument": "accordion", "tempo": "slow", "dance": "jig", "key": key}
        text = sentences.caption_music(attributes, rng)
        assert all(value in text for value in attributes.values()), text


def test_phrases_are_unambiguous():
    for slots in (grammar.IMAGE_SLOTS, grammar.MUSIC_SLOTS):
        for _, phrases in slots.values():
            said = [p for value in phrases.values() for p in value]
            assert len(said) == len(set(said))


def test_drawing_is_deterministic():
    first, second = (sentences.sample("train", 50, np.random.default_rng(7)) for _ in range(2))
    assert first == second


def test_asking_for_more_sentences_than_there_are_says_so(monkeypatch):
    monkeypatch.setattr(sentences, "TRIES", 30)
    with pytest.raises(UserError, match="ask for fewer sentences"):
        sentences.sample("validation", 4000, np.random.default_rng(0))


@pytest.mark.parametrize("bad", [{"objects": 4}, {"scenes": 0}, {"clips": 2.5}])
def test_bad_settings_are_named(bad):
    with pytest.raises(UserError, match=f"config.data.{next(iter(bad))} is"):
        Settings(**bad)
