"""Error rates of transcripts: counted by hand and by a table of edits, and what the normalizers leave the same."""

import numpy as np
import pytest

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.measures.transcripts import NORMALIZERS, character_errors, paper, whisper, word_errors

PAPER = word_errors("paper")


def _edits(a, b):
    """Levenshtein's table."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y))
    return table[-1, -1]


def test_word_errors_by_hand():
    references = ["the cat sat on the mat", "good morning", "one two three"]
    # A substitution and a deletion; an insertion; nothing right.
    predictions = ["the cat sit on mat", "good good morning", "four five six"]
    rows = PAPER.rows(references, predictions)
    np.testing.assert_array_equal(rows, [[2, 6], [1, 2], [3, 3]])
    assert rows.dtype == np.float64 and PAPER.name == "wer_paper" and not PAPER.higher_is_better
    assert PAPER.score(rows) == pytest.approx(6 / 11)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_the_best_and_the_worst(normalizer):
    references = ["The quick brown fox", "jumps over a lazy dog."]
    for measure in (word_errors(normalizer), character_errors(normalizer)):
        assert measure.score(measure.rows(references, ["THE QUICK, BROWN FOX!", "jumps over a lazy dog"])) == 0
        assert measure.score(measure.rows(references, [None, None])) == 1
        assert measure.score(measure.rows(references, ["", "?"])) == 1
        assert measure.score(measure.rows(references, references[::-1])) >= 0.7
    assert word_errors(normalizer).score(word_errors(normalizer).rows(references, ["zzz " * 9] * 2)) == 2


def test_counts_by_a_table_of_edits():
    rng = np.random.default_rng(0)
    references, predictions = (
        [" ".join(rng.choice(["ba", "bo", "bi"], size=rng.integers(0, 9))) for _ in range(60)] for _ in range(2)
    )
    pairs = list(zip(references, predictions, strict=True))
    np.testing.assert_array_equal(
        PAPER.rows(references, predictions), [[_edits(r.split(), p.split()), len(r.split())] for r, p in pairs]
    )
    np.testing.assert_array_equal(
        character_errors("paper").rows(references, predictions), [[_edits(r, p), len(r)] for r, p in pairs]
    )


def test_a_reference_without_words_counts_insertions_over_no_words():
    rows = PAPER.rows(["...", "a b c d", ""], ["thank you", "a b c d", None])
    np.testing.assert_array_equal(rows, [[2, 0], [0, 4], [0, 0]])
    assert PAPER.score(rows) == pytest.approx(2 / 4)
    assert PAPER.rows([], []).shape == (0, 2)


def test_resampled_rows_are_those_of_the_resampled_examples():
    references, predictions = ["a b c", "d e", "f g h i"], ["a b", "d e f", None]
    drawn = [2, 0, 0, 1, 2]
    resampled = PAPER.rows([references[i] for i in drawn], [predictions[i] for i in drawn])
    np.testing.assert_array_equal(PAPER.rows(references, predictions)[drawn], resampled)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("You're late, aren't you?", "you are late are not you"),
        ("YOU ARE LATE", "you are late"),
        ("I’m sure they’ll say: we've won!", "i am sure they will say we have won"),
        ("It won't; she can't -- I shan't.", "it will not she can not i shall not"),
        ("He cannot say what's what; let's go", "he can not say what is what let us go"),
        ("It's John's well-known o'clock", "it is johns well known oclock"),
        ("that'd be the dogs' 3rd “home”", "that would be the dogs 3rd home"),
        ("I'mpossible swirl's won'ts", "impossible swirls wonts"),
    ],
)
def test_paper_normalizer(text, normalized):
    assert paper(text) == normalized
    assert paper(normalized) == normalized


def test_whisper_normalizer():
    """The examples of the Whisper paper's appendix C and of its own tests."""
    assert whisper("Let's") == "let us"
    assert whisper("Mr. Park visited Assoc. Prof. Kim Jr.") == "mister park visited associate professor kim junior"
    assert whisper("ten thousand dollars") == whisper("$10000")
    assert whisper("um, the colour [noise] of twenty-two") == whisper("the color of 22") == "the color of 22"
    measure = word_errors("whisper")
    assert measure.score(measure.rows(["I have twenty dollars"], ["I've $20."])) == 0
    assert PAPER.score(PAPER.rows(["I have twenty dollars"], ["I've $20."])) == 2 / 4


def test_an_unknown_normalizer_is_refused():
    with pytest.raises(UserError, match="'kaldi'; take one of paper, whisper"):
        word_errors("kaldi")
