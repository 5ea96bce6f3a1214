"""A modality from another package: registered by entry point, it goes through the system untouched."""

import importlib

import numpy as np
import pytest

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import main, pairs, report
from anygpt_jax.evaluation.predictions import Predictions
from anygpt_jax.generation import media
from anygpt_jax.modalities import base
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.tasks.instructions import INSTRUCTIONS, pair_segments
from anygpt_jax.templates import Formatter, Segment
from anygpt_jax.vocabulary import BlockSpec, Vocabulary

SOURCE = '''
import numpy as np
from anygpt_jax.modalities.base import Grammar


class Digits:
    """Rows of a table: a sign, then pairs of tens and units. Media are int64 arrays of 0..99 and a sign."""

    name = "digits"
    symbol = "🔢"
    codebook_size = 22
    rate = 2.0
    fingerprint = "0" * 64
    grammar = Grammar(cycle=((2, 12), (12, 22)), min_length=3, max_length=9, prefix=((0, 2),))
    extension = ".csv"
    instructions = {("text", "digits"): ("count this", "make a table")}

    def html(self, media):
        return f"<b>{len(media)} numbers</b>"

    def load(self, data):
        return np.array([int(x) for x in data.decode().split(",")])

    def save(self, media):
        return ",".join(map(str, media)).encode()

    def encode(self, media):
        return [
            np.array([int(m[0] < 0), *(c for x in m for c in (2 + abs(x) // 10, 12 + abs(x) % 10))], np.int32)
            for m in media
        ]

    def decode(self, codes):
        signs = [-1 if c[0] else 1 for c in codes]
        return [s * ((c[1::2] - 2) * 10 + c[2::2] - 12) for s, c in zip(signs, codes)]


def load():
    return Digits()
'''


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """The tokenizer of a distribution that is installed nowhere but on this test's path."""
    (tmp_path / "anygpt_digits.py").write_text(SOURCE, encoding="utf-8")
    info = tmp_path / "anygpt_digits-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: anygpt-digits\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[anygpt_jax.modalities]\ndigits = anygpt_digits:load\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    base._entry_points.cache_clear()
    base.get.cache_clear()
    yield base.get("digits")
    base._entry_points.cache_clear()
    base.get.cache_clear()


def test_it_is_found_beside_the_shipped_ones(digits):
    assert {"digits", "image", "music", "speech"} <= set(base.available())
    assert isinstance(digits, base.ModalityTokenizer)
    assert base.get("digits") is digits


def test_an_unknown_one_is_named_with_those_that_exist(digits):
    with pytest.raises(UserError, match=r"'smell'.*digits"):
        base.get("smell")


def test_it_goes_through_vocabulary_and_record(digits):
    text = TextTokenizer.load()
    old = Vocabulary.build(
        text_size=text.size, text_fingerprint=text.fingerprint, blocks=[BlockSpec("image", 100), BlockSpec("music", 50)]
    )
    vocabulary = old.append(BlockSpec(digits.name, digits.codebook_size, digits.symbol))
    # Nothing that existed has moved.
    assert vocabulary.blocks[:2] == old.blocks and vocabulary.markers == old.markers
    table = np.array([-42, -7, -30])
    codes = digits.encode([table])[0]
    assert digits.grammar.problem(codes) is None
    record = Formatter(vocabulary, text).record(
        "k", "test", [Segment("text", "read the table", "human"), Segment("digits", codes, "assistant", loss=True)]
    )
    block = vocabulary.block("digits")
    start = list(record.tokens).index(block.begin)
    end = list(record.tokens).index(block.end)
    inside = vocabulary.decode_codes("digits", record.tokens[start + 1 : end])
    np.testing.assert_array_equal(digits.decode([inside])[0], table)
    assert record.loss_mask()[start : end + 1].all() and not record.loss_mask()[:start].any()
    assert (vocabulary.modality_ids()[record.tokens[start : end + 1]] == 3).all()


def test_its_grammar_speaks_for_it(digits):
    rng = np.random.default_rng(0)
    for length in (3, 5, 9):
        assert digits.grammar.may_end(length)
        codes = np.array([rng.integers(*digits.grammar.allowed(i)) for i in range(length)], np.int32)
        np.testing.assert_array_equal(digits.encode(digits.decode([codes]))[0][1:], codes[1:])
    assert not digits.grammar.may_end(4)
    assert "outside" in digits.grammar.problem([0, 12, 12])


def test_it_says_how_its_pairs_are_asked_for(digits):
    asked, given = pair_segments("text", "digits", "three times seven", tokenizers={"digits": digits})
    assert (asked.content, given.content) == ("count this", "three times seven")
    with pytest.raises(UserError, match="digits to text"):
        pair_segments("digits", "text", np.zeros(3), tokenizers={"digits": digits})
    with pytest.raises(UserError, match="text to digits"):
        pair_segments("text", "digits", "three")
    ours = pair_segments("text", "image", "a fox", tokenizers={"digits": digits})
    assert ours[0].content == INSTRUCTIONS["text", "image"][0]


def test_its_files_have_its_extension_and_the_report_its_picture(digits, tmp_path, monkeypatch):
    assert str(media.default_output("digits", digits)) == "digits.csv"
    assert media.extension("image", None) == ".png" and media.extension("smell", object()) == ".bin"
    predictions = Predictions(tmp_path / "digits", {"digits": digits})
    predictions.start()
    named = predictions.media("a/1", "", "digits", np.array([7, 12]))
    assert named == {"modality": "digits", "file": "a_1.csv", "html": "<b>2 numbers</b>"}
    assert (tmp_path / "digits" / "a_1.csv").read_text() == "7,12"
    assert report.media_tag(tmp_path / "digits", named) == "<b>2 numbers</b>"
    monkeypatch.delattr(type(digits), "html")
    named = predictions.media("a/2", "", "digits", np.array([7]))
    assert report.media_tag(tmp_path / "digits", named) == "<code>a_2.csv</code>"


def test_a_pair_without_a_ceiling_is_still_shown():
    entry = {"metric": "attributes", "score": 0.5, "chance": 0.1, "ceiling": None, "n": 4, "trained": True}
    assert report.cell("digits", "text", {**entry, "higher_is_better": True})["reached"] == 0.0
    (line,) = main.table({"digits": {"text": entry}}).splitlines()[1:]
    assert line.split() == ["digits", "to", "text", "attributes", "0.50", "0.10", "–", "4", "trained"]
    assert pairs.directed_pairs(("text", "image", "digits"), ("digits_to_text", "text_to_image", "documents")) == [
        ("text", "image"), ("digits", "text")
    ]  # fmt: skip
