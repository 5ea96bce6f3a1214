"""Short answers: VQA accuracy by brute force over the subsets, its normalization by cases, and reading of choices."""

import itertools

import numpy as np
import pytest

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.measures.answers import (
    EXACT,
    MULTIPLE_CHOICE,
    VQA_ACCURACY,
    Choice,
    chosen,
    normalize_answer,
)

ANIMALS = ("a dog", "a cat", "a hot dog", "Two birds")


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("Yes.", "yes"),
        ("The two dogs", "2 dogs"),
        ("none", "0"),
        ("100,978", "100978"),
        ("red, white and blue!", "red white and blue"),
        ("black/white t-shirt", "black white t shirt"),
        ("x/y /z", "xy z"),
        ("x/y/ z", "xy z"),
        ("2:50 p.m.", "2:50 pm"),
        ("3.5", "3.5"),
        ("girl's", "girl's"),
        ("dont know", "don't know"),
        ("shouldnt've", "shouldn't've"),
        ("shouldn'tve", "shouldn't've"),
        ("it is 5 o clock, oclock", "it is 5 o clock o'clock"),
        ("ill", "ill"),  # no contraction: the word
        (" a\n man \t", "man"),
        ("A", "a"),
        ("?", ""),
    ],
)
def test_normalization(answer, normalized):
    assert normalize_answer(answer) == normalized


@pytest.mark.parametrize("agreeing", range(11))
def test_vqa_accuracy_by_brute_force(agreeing):
    people = ["The dog."] * agreeing + ["cat"] * (10 - agreeing)
    subsets = [sum(p == "The dog." for p in nine) for nine in itertools.combinations(people, 9)]
    expected = np.mean([min(n / 3, 1) for n in subsets])
    assert VQA_ACCURACY.score(VQA_ACCURACY.rows([people], ["dog"])) == pytest.approx(expected)


def test_vqa_accuracy_at_its_ends():
    people = ["two"] * 10
    rows = VQA_ACCURACY.rows([people] * 4, ["2", "three", None, ""])
    assert rows.dtype == np.float64
    np.testing.assert_array_equal(rows, [[1], [0], [0], [0]])
    # An answer without a word agrees with no one.
    np.testing.assert_array_equal(VQA_ACCURACY.rows([["?"] * 10], ["!"]), [[0]])
    np.testing.assert_array_equal(VQA_ACCURACY.rows([["a"] * 10] * 2, ["", "A."]), [[0], [1]])
    with pytest.raises(UserError, match="needs 10 answers"):
        VQA_ACCURACY.rows([["yes"]], ["yes"])
    with pytest.raises(UserError, match="needs 10 answers"):
        VQA_ACCURACY.rows(["ten letter"], ["yes"])


def test_exact():
    rows = EXACT.rows(["The cat", "two", "dog", "dog"], ["cat.", "2", "dogs", None])
    np.testing.assert_array_equal(rows, [[1], [1], [0], [0]])
    assert EXACT.score(rows) == 0.5 and EXACT.score(rows[[0, 0, 0, 2]]) == 0.75


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(B) a dog", "B"),
        ("B) anything", "B"),
        ("B: it is brown", "B"),
        ("**C**", "C"),
        ("  d \n", "D"),
        ("The answer is B.", "B"),
        ("I think the correct option is (c), since it is hot.", "C"),
        ("Answer: D", "D"),
        ("**Answer:** b.", "B"),
        ("B, because it purrs", "B"),
        ("[B] a dog", "B"),
        ("C is right.", "C"),
        ("It must be (C).", "C"),
        ("a cat", "B"),
        ("It is a cat, I think.", "B"),
        ("A cat.", "B"),
        ("a hot dog", "C"),
        ("There are two birds.", "D"),
        ("The answer is a dog", "A"),
        ("The answer, I think: a cat", "B"),
        # No choice.
        ("", None),
        ("A giraffe", None),
        ("the answer is a giraffe", None),
        ("a dog or a cat", None),
        ("either (A) or (B)", None),
        ("A or B", None),
        ("A, B, C, D", None),
        ("A. B. C. D.", None),
        ("option A or option B", None),
        ("E", None),
        ("The answer is I do not know", None),
        ("catalogue", None),
    ],
)
def test_reading_a_choice(answer, letter):
    assert chosen(answer, ANIMALS) == (None if letter is None else "ABCD".index(letter))


def test_options_that_are_numbers_or_letters():
    assert chosen("3", ["2", "3"]) == 1
    assert chosen("three", ["2", "3"]) == 1
    assert chosen("B", ["b", "a"]) == 1  # a letter is the option's name, not its text
    assert chosen("dog", ["dog", "dog"]) is None


def test_multiple_choice():
    references = [Choice(ANIMALS, "B"), Choice(ANIMALS, 1), Choice(ANIMALS, " b "), Choice(ANIMALS, "B")]
    rows = MULTIPLE_CHOICE.rows(references, ["(B)", "a cat", "(A) a cat", None])
    np.testing.assert_array_equal(rows, [[1], [1], [0], [0]])
    assert MULTIPLE_CHOICE.score(rows) == 0.5
    # Naming every option is no better than chance.
    everything = "; ".join(f"({letter}) {option}" for letter, option in zip("ABCD", ANIMALS, strict=True))
    every = MULTIPLE_CHOICE.rows([Choice(ANIMALS, i) for i in range(4)], [everything] * 4)
    assert MULTIPLE_CHOICE.score(every) <= 1 / 4


@pytest.mark.parametrize("answer", ["E", "", "BC", 4, -1])
def test_a_reference_outside_its_options_is_refused(answer):
    with pytest.raises(UserError, match="There is no option"):
        MULTIPLE_CHOICE.rows([Choice(ANIMALS, answer)], ["B"])
