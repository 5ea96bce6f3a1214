"""Selection over a set: duplicates against brute force, the target mix, and that the order of dialogues does not matter."""

import collections
import itertools
import random

import pytest
from synthesis_dialogues import dialogue, of_turns, random_words

from anygpt_jax.errors import UserError
from anygpt_jax.synthesis.filters.selection import (
    BALANCE,
    EXACT,
    NEAR,
    Choice,
    SelectionSettings,
    _bands,
    jaccard,
    select,
    shingles_of,
    words_of,
)


def spoken(text, name, **more):
    return of_turns(("human", text), ("assistant", "here it is"), name=name, **more)


@pytest.fixture(scope="module")
def varied():
    """240 dialogues: sixty texts, each also with a few to many of its words exchanged."""
    rng = random.Random(0)
    found = []
    for i in range(60):
        words = random_words(rng, 80).split()
        for k, changed in enumerate((0, 1, 4, 12)):
            other = list(words)
            for at in rng.sample(range(len(other)), changed):
                other[at] = f"x{rng.random()}"
            found.append(spoken(" ".join(other), f"{(i * 37) % 100:03}-{(k * 7 + i) % 4}"))
    return found


def shingle_sets(dialogues, n=3):
    sets = {}
    for d in dialogues:
        words = words_of(d)
        sets[d.id] = {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}
    return sets


def brute_force(dialogues, likeness):
    """id → smallest id of its connected group, by every pair's exact Jaccard."""
    sets = shingle_sets(dialogues)
    group = {i: i for i in sets}
    changed = True
    pairs = [
        (a, b)
        for a, b in itertools.combinations(sets, 2)
        if len(sets[a] & sets[b]) >= likeness * len(sets[a] | sets[b])
    ]
    while changed:
        changed = False
        for a, b in pairs:
            low = min(group[a], group[b])
            changed |= group[a] != low or group[b] != low
            group[a] = group[b] = low
    return group


def test_jaccard_of_hashed_shingles_is_that_of_the_words(varied):
    sets = shingle_sets(varied)
    hashed = {d.id: shingles_of(words_of(d), 3) for d in varied}
    for a, b in itertools.combinations(list(sets)[:40], 2):
        assert jaccard(hashed[a], hashed[b]) == pytest.approx(len(sets[a] & sets[b]) / len(sets[a] | sets[b]))
    assert shingles_of(["one", "two"], 3).shape == (1,) and shingles_of([], 3).shape == (1,)


@pytest.mark.parametrize("likeness", [0.5, 0.7, 0.8, 0.9])
def test_near_duplicates_are_those_of_brute_force(varied, likeness):
    expected = brute_force(varied, likeness)
    chosen = select(varied, SelectionSettings(likeness=likeness))
    assert {i for i, c in chosen.items() if not c.removed_by} == {i for i, low in expected.items() if i == low}
    for i, choice in chosen.items():
        if choice.removed_by:
            assert choice.removed_by == NEAR and f"words of {expected[i]}:" in choice.reason
    assert 40 < collections.Counter(c.removed_by for c in chosen.values())[NEAR] < 180


def test_the_search_finds_nearly_every_pair_and_no_more_permutations_than_there_are():
    for likeness, permutations in itertools.product((0.3, 0.5, 0.8, 0.95), (64, 128, 256)):
        bands, rows = _bands(SelectionSettings(likeness=likeness, permutations=permutations))
        assert bands * rows <= permutations and 1 - (1 - likeness**rows) ** bands >= 0.99


def test_the_order_does_not_matter(varied):
    settings = SelectionSettings(likeness=0.7, target={"ask_image": 1, "ask_music": 1}, factor=1)
    mixed = [
        spoken(d.turns[0].text, d.id, requirement="ask_image" if i % 3 else "ask_music") for i, d in enumerate(varied)
    ]
    expected = select(mixed, settings)
    for seed in range(3):
        assert select(random.Random(seed).sample(mixed, len(mixed)), settings) == expected
    assert {c.removed_by for c in expected.values()} == {"", NEAR, BALANCE}


def test_of_the_same_words_the_smallest_id_stays():
    several = [spoken("Draw a fox!", "b"), spoken("draw a Fox", "a"), spoken("draw a fox.", "c"), spoken("play", "d")]
    chosen = select(several, SelectionSettings(likeness=1.0))
    assert chosen == {
        "a": Choice(), "d": Choice(),
        "b": Choice(EXACT, "It has the same words as a."), "c": Choice(EXACT, "It has the same words as a."),
    }  # fmt: skip


def test_descriptions_are_among_the_words():
    texts = [f"User: draw it\nAssistant: here [image: a {name}]" for name in ("fox", "whale")]
    chosen = select([dialogue(t, f"d{i}") for i, t in enumerate(texts)], SelectionSettings())
    assert set(chosen.values()) == {Choice()}


def test_a_chain_of_likes_is_one_group():
    words = [f"w{i}" for i in range(60)]
    chain = [spoken(" ".join(words[i : i + 40]), f"{9 - i}") for i in range(0, 10, 2)]
    sets = shingle_sets(chain)
    ends = sets["9"], sets["1"]
    assert len(ends[0] & ends[1]) / len(ends[0] | ends[1]) < 0.8
    chosen = select(chain, SelectionSettings(likeness=0.8))
    assert [i for i, c in chosen.items() if not c.removed_by] == ["1"]


def test_what_a_filter_removed_is_passed_over():
    twins = [spoken("draw a fox", "a", removed_by="language", reason="no"), spoken("draw a fox", "b")]
    assert select(twins, SelectionSettings()) == {"b": Choice()}


def numbered(counts):
    rng = random.Random(1)
    return [
        spoken(random_words(rng, 30), f"{name}-{i}", requirement=name) for name, n in counts.items() for i in range(n)
    ]


def kept(dialogues, **settings):
    chosen = select(dialogues, SelectionSettings(likeness=1.0, **settings))
    return collections.Counter(d.requirement for d in dialogues if not chosen[d.id].removed_by)


def test_over_represented_combinations_are_thinned_to_a_multiple_of_their_share():
    dialogues = numbered({"ask_image": 70, "ask_music": 20, "user_image": 10, "other": 50})
    target = {"ask_image": 0.25, "ask_music": 0.25, "user_image": 0.25, "user_music": 0.25}
    # Of the 100 that the target names 25 are a combination's share.
    assert kept(dialogues, target=target, factor=2.0) == {
        "ask_image": 50,
        "ask_music": 20,
        "user_image": 10,
        "other": 50,
    }
    assert kept(dialogues, target=target, factor=1.0) == {
        "ask_image": 25,
        "ask_music": 20,
        "user_image": 10,
        "other": 50,
    }
    assert kept(dialogues, target={name: 10 * share for name, share in target.items()}, factor=1.0)["ask_image"] == 25
    assert kept(dialogues) == {"ask_image": 70, "ask_music": 20, "user_image": 10, "other": 50}


def test_a_larger_factor_keeps_all_that_a_smaller_one_keeps():
    dialogues = numbered({"ask_image": 40, "ask_music": 10})
    target = {"ask_image": 1, "ask_music": 1}
    stay = [
        {i for i, c in select(dialogues, SelectionSettings(target=target, factor=f)).items() if not c.removed_by}
        for f in (1.0, 1.2, 1.5)
    ]
    assert stay[0] < stay[1] < stay[2]


def test_settings_and_ids_that_cannot_be():
    for wrong in (
        {"likeness": 0.0},
        {"likeness": 1.2},
        {"shingle": 0},
        {"factor": 0.5},
        {"target": {"a": 0.0}},
        {"target": {"a": -1.0}},
    ):
        with pytest.raises(UserError):
            SelectionSettings(**wrong)
    with pytest.raises(UserError, match="Two dialogues have the id 'a'"):
        select([spoken("x", "a"), spoken("y", "a")], SelectionSettings())
