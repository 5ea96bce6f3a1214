"""The grammar's sentences, captions and recognizer."""

import re

import numpy as np
import pytest

from anygpt_jax.embedded import assets, grammar, scenes, sentences
from anygpt_jax.embedded.settings import Settings
from anygpt_jax.embedded.splits import pair_split, split_of
from anygpt_jax.errors import UserError


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    return {
        split: sentences.sample(split, n, rng) for split, n in {"train": 1200, "validation": 96, "test": 96}.items()
    }


def jsgf_to_regex(text: str) -> re.Pattern[str]:
    """A reader of JSGF by its definition, for rules of words, references and alternatives."""
    rules = dict(re.findall(r"^(?:public )?<(\w+)> = (.*);$", text, re.M))

    def expand(rule: str) -> str:
        body = re.sub(r"<(\w+)>", lambda m: expand(m[1]), rules[rule])
        return f"(?:{body.replace(' | ', '|')})"

    return re.compile(expand("sentence"))


def test_the_recognizers_grammar_accepts_every_sentence_and_little_else(drawn):
    pattern = jsgf_to_regex(sentences.to_jsgf())
    for split in drawn.values():
        for sentence in split:
            assert pattern.fullmatch(sentence.text), sentence.text
    for wrong in ("a small fox", "fox on blue", "play a slow reel on the fox", "good morning how are", ""):
        assert not pattern.fullmatch(wrong)


def test_pocketsphinx_reads_the_grammar_and_knows_every_word(tmp_path):
    pocketsphinx = pytest.importorskip("pocketsphinx")
    path = tmp_path / "world.gram"
    path.write_text(sentences.to_jsgf())
    pocketsphinx.Decoder(jsgf=str(path), samprate=16000, loglevel="FATAL")
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
    assert heard == set(sentences.spoken_words())
    assert set(sentences.word_counts(drawn["test"])) <= heard


def test_mentioned_attributes_are_said(drawn):
    """Read back with nothing but the word lists: each value mentioned is there, and no other value of it."""
    for sentence in drawn["test"]:
        for attribute, phrases in (grammar.IMAGE_SLOTS | grammar.MUSIC_SLOTS).values():
            if attribute in ("key", "place") or sentence.kind == "everyday":
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
        for name, phrases in grammar.IMAGE_SLOTS.values():
            assert any(f" {p} " in f" {text} " for p in phrases[attributes[name]]), text
        if split == "train":
            assert split_of("sentence", text) == "train"
        assert not re.search(r"\b(a [aeiou]|an [^aeiou])", text), text


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
