"""Caption measures: CIDEr-D and ROUGE-L against their formulas, BLEU against its formula and sacrebleu's figure."""

import collections
import functools
import math

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.measures.captions import BLEU4, CIDER, ROUGE_L, caption_tokens

REFERENCES = [
    ["A man rides a brown horse on the beach.", "A person riding a horse by the sea", "a man on a horse"],
    ["Two dogs are playing with a red ball.", "two dogs play with a ball in the grass"],
    ["A plate of food on a wooden table", "a wooden table with a plate of food and a glass", "food on a plate"],
    ["A woman holds a blue umbrella in the rain.", "a woman with an umbrella walks in the rain"],
    ["The train is stopped at the station.", "a train at a station with people on the platform"],
]
PREDICTIONS = [
    "a man riding a horse on the beach",
    "two dogs are playing with a ball in a park",
    "a plate of of food on a table",
    "a person holds a blue umbrella",
    "a red bus on a street",
]
RIGHT = [several[0] for several in REFERENCES]
WRONG = ["xylophones quarrel beneath seventeen volcanoes"] * 5


def _random_set(seed, n=12):
    """Sentences over five words, so that n-grams of every order are shared, repeated and unknown."""
    rng = np.random.default_rng(seed)

    def sentence():
        return " ".join(rng.choice(list("abcde"), size=rng.integers(1, 12), p=[0.4, 0.3, 0.2, 0.05, 0.05]))

    return [[sentence() for _ in range(rng.integers(1, 5))] for _ in range(n)], [sentence() for _ in range(n)]


def _ngrams(tokens, n):
    return collections.Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _cider_by_formula(references, predictions):
    """10 / (4 m) times the sum over n and references of exp(-(Δl)² / 72) min(g_c, g_s)·g_s / (|g_c| |g_s|)."""
    scores = []
    for several, prediction in zip(references, predictions, strict=True):
        total = 0.0
        for n in range(1, 5):
            seen = collections.Counter(g for refs in references for g in {g for r in refs for g in _ngrams(r, n)})

            def weights(tokens, n=n, seen=seen):
                counts = _ngrams(tokens, n)
                return {g: c * math.log(len(references) / max(seen[g], 1)) for g, c in counts.items()}

            said = weights(prediction)
            for reference in several:
                true = weights(reference)
                dot = sum(min(w, true[g]) * true[g] for g, w in said.items() if g in true)
                lengths = math.hypot(*said.values()) * math.hypot(*true.values())
                penalty = math.exp(-((len(prediction) - len(reference)) ** 2) / (2 * 6**2))
                total += penalty * dot / lengths if lengths else 0.0
        scores.append(10 * total / 4 / len(several))
    return scores


def _bleu_by_formula(references, predictions):
    matched, guessed = np.zeros(4), np.zeros(4)
    length = closest = 0
    for several, said in zip(references, predictions, strict=True):
        length += len(said)
        closest += sorted((abs(len(r) - len(said)), len(r)) for r in several)[0][1]
        for n in range(1, 5):
            for gram, count in _ngrams(said, n).items():
                matched[n - 1] += min(count, max(_ngrams(r, n)[gram] for r in several))
                guessed[n - 1] += count
    penalty = 1 if length > closest else math.exp(1 - closest / length)
    return penalty * math.exp(np.log(matched / guessed).mean())


def _rouge_by_formula(several, said):
    @functools.cache
    def common(a, b):
        if not a or not b:
            return 0
        return 1 + common(a[1:], b[1:]) if a[0] == b[0] else max(common(a[1:], b), common(a, b[1:]))

    precision = max(common(tuple(said), tuple(r)) / len(said) for r in several)
    recall = max(common(tuple(said), tuple(r)) / len(r) for r in several)
    if not precision:
        return 0.0
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


def _tokens(references, predictions):
    return [[caption_tokens(r) for r in several] for several in references], [caption_tokens(p) for p in predictions]


SETS = [(REFERENCES, PREDICTIONS), *(_random_set(seed) for seed in range(3))]


@pytest.mark.parametrize(("references", "predictions"), SETS)
def test_cider_by_its_formula(references, predictions):
    rows = CIDER.rows(references, predictions)
    assert rows.shape == (len(references), 1) and rows.dtype == np.float64
    np.testing.assert_allclose(rows[:, 0], _cider_by_formula(*_tokens(references, predictions)), rtol=1e-9)
    assert CIDER.score(rows) == pytest.approx(np.mean(rows))


@pytest.mark.parametrize(("references", "predictions"), SETS)
def test_bleu_by_its_formula(references, predictions):
    rows = BLEU4.rows(references, predictions)
    assert rows.shape == (len(references), 9)
    assert BLEU4.score(rows) == pytest.approx(_bleu_by_formula(*_tokens(references, predictions)), rel=1e-6)


@pytest.mark.parametrize("predictions", [PREDICTIONS, WRONG, RIGHT, ["a"] * 5, [""] * 5])
def test_bleu_is_that_of_coco_caption(predictions):
    """Also where its formula is 0 / 0, or the logarithm of 0."""
    truth, said = _tokens(REFERENCES, predictions)
    spaced = [{i: [" ".join(t) for t in tokens] for i, tokens in enumerate(s)} for s in (truth, [[t] for t in said])]
    expected = Bleu(4).compute_score(*spaced, verbose=0)[0][3]
    assert BLEU4.score(BLEU4.rows(REFERENCES, predictions)) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_bleu_is_that_of_sacrebleu():
    """sacrebleu 2.6.0 on these tokens with tokenize="none", smooth_method="none"."""
    assert BLEU4.score(BLEU4.rows(REFERENCES, PREDICTIONS)) == pytest.approx(0.48991361466, abs=1e-7)


def test_bleu_takes_the_closest_reference_and_of_two_the_shorter():
    rows = BLEU4.rows([["a b c", "a b c d e", "a"]], ["a b c d"])
    np.testing.assert_array_equal(rows, [[4, 3, 2, 1, 4, 3, 2, 1, 3]])
    # "the" seven times: one reference has two of them (Papineni et al. 2002, example 2).
    several = ["The cat is on the mat.", "There is a cat on the mat."]
    np.testing.assert_array_equal(BLEU4.rows([several], ["the the the the the the the"])[0, [0, 4]], [2, 7])


@pytest.mark.parametrize(("references", "predictions"), SETS)
def test_rouge_by_brute_force(references, predictions):
    expected = [_rouge_by_formula(s, p) for s, p in zip(*_tokens(references, predictions), strict=True)]
    rows = ROUGE_L.rows(references, predictions)
    np.testing.assert_allclose(rows, np.array(expected)[:, None], rtol=1e-12)
    assert ROUGE_L.score(rows) == pytest.approx(np.mean(expected))


def test_the_best_and_the_worst():
    alone = [[caption] for caption in RIGHT]
    for measure, best in ((CIDER, 10.0), (BLEU4, 1.0), (ROUGE_L, 1.0)):
        assert measure.higher_is_better
        assert measure.score(measure.rows(alone, RIGHT)) == pytest.approx(best, rel=1e-6)
        assert measure.score(measure.rows(REFERENCES, WRONG)) == pytest.approx(0, abs=1e-9)
        assert measure.score(measure.rows(REFERENCES, [None] * 5)) == 0
        assert measure.score(measure.rows(REFERENCES, PREDICTIONS[1:] + PREDICTIONS[:1])) < 0.7 * measure.score(
            measure.rows(REFERENCES, PREDICTIONS)
        )


def test_a_missing_caption_scores_as_an_empty_one_and_lowers_the_rest():
    missing = [*PREDICTIONS[:4], None]
    for measure in (CIDER, BLEU4, ROUGE_L):
        rows = measure.rows(REFERENCES, missing)
        np.testing.assert_array_equal(rows, measure.rows(REFERENCES, [*PREDICTIONS[:4], " . "]))
        assert measure.score(rows) < measure.score(rows[:4])
    assert CIDER.rows(REFERENCES, missing)[4, 0] == ROUGE_L.rows(REFERENCES, missing)[4, 0] == 0


def test_resampled_rows_are_those_of_the_resampled_examples():
    drawn = np.random.default_rng(0).integers(5, size=8)
    references, predictions = [REFERENCES[i] for i in drawn], [PREDICTIONS[i] for i in drawn]
    for measure in (BLEU4, ROUGE_L):
        rows = measure.rows(REFERENCES, PREDICTIONS)[drawn]
        np.testing.assert_array_equal(rows, measure.rows(references, predictions))


# Stanford's PTBTokenizer of CoreNLP 3.4.1 gives these, as coco-caption runs it and takes its punctuation away.
@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A man's dog doesn't like T-shirts, 3.5 of them!", "a man 's dog does n't like t-shirts 3.5 of them"),
        ('"Well," he said -- it\'s 10:30 (or later)...', "well he said it 's 10:30 -lrb- or later -rrb-"),
        ("It's a dog’s life — isn’t it…", "it 's a dog 's life is n't it"),
        ("We can't; they're at O'Brien's", "we ca n't they 're at o'brien 's"),
        ("The dogs' bowls & the $5 sign", "the dogs bowls & the $ 5 sign"),
        ("red,blue and 1,000 more.", "red blue and 1,000 more"),
        ("A U.S. flag on St. Mary's St. at 5 p.m. today.", "a u.s. flag on st. mary 's st. at 5 p.m. today"),
        ("I cannot see what they're gonna do", "i can not see what they 're gon na do"),
        ("a black/white cat and/or a dog #1 @ 50% off", "a black/white cat and/or a dog # 1 @ 50 % off"),
        ("He said 'stop' to the driver's dog.", "he said stop to the driver 's dog"),
        ("two [small] {cats}", "two -lsb- small -rsb- -lcb- cats -rcb-"),
        ("a stop-sign at 5:30pm on 3rd ave.", "a stop-sign at 5:30 pm on 3rd ave."),
        ("A $5.50 sandwich; 2/3 eaten", "a $ 5.50 sandwich 2/3 eaten"),
        ("Café naïve jalapeño", "café naïve jalapeño"),
        ("?!", ""),
    ],
)
def test_tokens(text, tokens):
    assert caption_tokens(text) == tokens.split()


def test_an_example_without_references_is_refused():
    with pytest.raises(UserError, match="Example 1 has no list"):
        CIDER.rows([["a dog"], []], ["a dog", "a cat"])
    with pytest.raises(UserError, match="Example 0 has no list"):
        ROUGE_L.rows(["a dog"], ["a dog"])
