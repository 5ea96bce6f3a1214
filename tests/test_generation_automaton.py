"""The automaton against every answer there is: what it allows after a prefix is what some answer continues with."""

import collections
import itertools

import generation_world as world
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anygpt_jax.errors import UserError
from anygpt_jax.generation import automaton
from anygpt_jax.generation.automaton import ANY, DONE, Free, Marks, compile_plan
from anygpt_jax.modalities.base import Grammar
from anygpt_jax.vocabulary import BlockSpec, Vocabulary

TEXT_SIZE = 5  # pad, bos, eos and two pieces


@st.composite
def grammars(draw, size: int, longest: int) -> Grammar:
    def a_range() -> tuple[int, int]:
        low = draw(st.integers(0, size - 1))
        return low, draw(st.integers(low + 1, size))

    prefix = tuple(a_range() for _ in range(draw(st.integers(0, 2))))
    cycle = tuple(a_range() for _ in range(draw(st.integers(1, 3))))
    ends = range(len(prefix), longest + 1, len(cycle))
    end = draw(st.sampled_from(list(ends)))
    return Grammar(cycle, draw(st.integers(0, end)), draw(st.integers(end, longest)), prefix)


def tiny_vocabulary(sizes: dict[str, int]) -> Vocabulary:
    return Vocabulary.build(
        text_size=TEXT_SIZE, text_fingerprint="t", blocks=[BlockSpec(m, n) for m, n in sizes.items()]
    )


def check_language(vocab: Vocabulary, machine: automaton.Automaton, answers, budget: int, closers=()) -> int:
    """At every prefix of every answer the allowed ids are exactly the continuations. Returns how many prefixes."""
    following = collections.defaultdict(set)
    for answer in answers:
        if machine.opening is not None:
            assert answer[0] == machine.opening
            answer = answer[1:]
        if len(answer) <= budget:
            for i, token in enumerate(answer):
                following[answer[:i]].add(token)
    level = [((), machine.start, 0)]
    seen = 0
    while level:
        prefixes, nodes, counts = zip(*level, strict=True)
        mask = _allowed(machine, nodes, counts, budget - len(prefixes[0]), vocab.size + 3)
        for prefix, row in zip(prefixes, mask, strict=True):
            assert set(np.flatnonzero(row)) == following[prefix], prefix
        seen += len(level)
        moves = [(b, t) for b, prefix in enumerate(prefixes) for t in sorted(following[prefix])]
        moved = _advance(machine, [nodes[b] for b, _ in moves], [counts[b] for b, _ in moves], [t for _, t in moves])
        level = []
        for (b, token), (node, count) in zip(moves, moved, strict=True):
            assert (node == DONE) == (token in (closers or [vocab.marker("<eos>")]))
            if node != DONE:
                level.append(((*prefixes[b], token), node, count))
    return seen


def _padded(values) -> jnp.ndarray:
    """One of few lengths, so that operations are compiled seldom."""
    length = 4 ** max(2, -(-(len(values) - 1).bit_length() // 2))
    return jnp.array([*values, *[0] * (length - len(values))], jnp.int32)


def _allowed(machine, nodes, counts, left: int, vocab_size: int) -> np.ndarray:
    node = _padded(nodes)
    mask = automaton.allowed(machine.tables, node, _padded(counts), jnp.full(node.shape, left), vocab_size)
    return np.asarray(mask)[: len(nodes)]


def _advance(machine, nodes, counts, tokens) -> list[tuple[int, int]]:
    moved = automaton.advance(machine.tables, _padded(nodes), _padded(counts), _padded(tokens))
    return list(zip(*(np.asarray(m)[: len(nodes)].tolist() for m in moved), strict=True))


PLANS = [("image",), ("text",), ("text", "image"), ("image", "text"), ("image", "image"), ("text", "image", "text")]


@settings(max_examples=40, deadline=None)
@given(grammar=grammars(size=2, longest=4), plan=st.sampled_from(PLANS), cut=st.integers(0, 6))
def test_a_plan_allows_exactly_its_answers(grammar, plan, cut):
    vocab = tiny_vocabulary({"image": 2})
    machine = compile_plan(vocab, {"image": grammar}, plan, max_text_tokens=2)
    answers = list(world.planned_answers(vocab, {"image": grammar}, plan, longest_text=2))
    lengths = [len(a) - (machine.opening is not None) for a in answers]
    assert (machine.shortest, machine.longest) == (min(lengths), max(lengths))
    check_language(vocab, machine, answers, budget=max(machine.shortest, machine.longest - cut))


@settings(max_examples=12, deadline=None)
@given(image=grammars(size=2, longest=2), sound=grammars(size=2, longest=3), budget=st.integers(2, 6))
def test_free_conversation_allows_exactly_what_fits(image, sound, budget):
    vocab = tiny_vocabulary({"image": 2, "sound": 2})
    both = {"image": image, "sound": sound}
    machine = compile_plan(vocab, both, ANY, max_text_tokens=2)
    check_language(vocab, machine, world.free_answers(vocab, both, 2, budget), budget)


def test_two_media_in_a_row_and_every_kind_of_grammar():
    vocab = tiny_vocabulary({"image": 2, "sound": 3})
    both = {
        "image": Grammar(cycle=((0, 2),), min_length=2, max_length=2, prefix=((1, 2),)),
        "sound": Grammar(cycle=((0, 1), (1, 3)), min_length=1, max_length=5),
    }
    machine = compile_plan(vocab, both, ("image", "sound", "text", "sound"), max_text_tokens=1)
    answers = list(world.planned_answers(vocab, both, ("image", "sound", "text", "sound"), 1))
    assert check_language(vocab, machine, answers, machine.longest) > 400


def test_long_cycles_are_arithmetic_not_tables():
    grammar = Grammar(tuple((2048 * q, 2048 * q + 2048) for q in range(4)), min_length=1000, max_length=6003)
    vocab = Vocabulary.build(text_size=32_000, text_fingerprint="t", blocks=[BlockSpec("music", 8192)])
    machine = compile_plan(vocab, {"music": grammar}, "music", 10)
    assert sum(t.size for t in machine.tables) < 1000
    assert (machine.shortest, machine.longest) == (1002, 6002)
    counts = jnp.array([0, 1, 999, 1000, 1001, 5999, 6000])
    mask = np.asarray(
        automaton.allowed(machine.tables, jnp.full(7, machine.start), counts, jnp.full(7, 10_000), vocab.size)
    )
    block = vocab.block("music")
    for row, count in zip(mask, counts.tolist(), strict=True):
        low, high = grammar.allowed(count)
        codes = set(range(block.start + low, block.start + high)) if count < 6000 else set()
        ends = {block.end} if grammar.may_end(count) else set()
        assert set(np.flatnonzero(row)) == codes | ends


def test_every_plan_has_the_shapes_of_every_other():
    vocab = world.vocabulary()
    shapes = {
        tuple(t.shape for t in compile_plan(vocab, world.GRAMMARS, plan, 9).tables)
        for plan in ("text", "image", ("text", "music"), ("image", "speech"), ANY)
    }
    assert len(shapes) == 1


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ((), "at least one modality"),
        ("smell", "Unknown modality 'smell'"),
        (("text", "text"), "text after text"),
        (("text", "sound"), "no tokenizer for modality 'sound'"),
    ],
)
def test_impossible_plans_are_refused(plan, message):
    vocab = tiny_vocabulary({"image": 2, "sound": 2})
    grammar = Grammar(cycle=((0, 2),), min_length=1, max_length=2)
    with pytest.raises(UserError, match=message):
        compile_plan(vocab, {"image": grammar}, plan, 4)


def test_a_grammar_beyond_its_block_and_empty_text_are_refused():
    vocab = tiny_vocabulary({"image": 2})
    wide = Grammar(cycle=((0, 3),), min_length=1, max_length=2)
    with pytest.raises(UserError, match="beyond its block of 2"):
        compile_plan(vocab, {"image": wide}, "image", 4)
    with pytest.raises(UserError, match="at least 1"):
        compile_plan(vocab, {}, "text", 0)


@pytest.mark.parametrize(
    "plan", [("text",), ("text", "speech"), ("speech",), ANY, Free(("text", "speech"), ("speech",))]
)
def test_an_answer_may_tell_what_it_heard_and_end_with_any_closer(plan):
    vocab = Vocabulary.build(
        text_size=5, text_fingerprint="t", blocks=[BlockSpec("speech", 2)],
        markers=("[Human]", "[MMGPT]", "<eoh>", "<eos>", "<-Res->", "<-Ins->"),
    )  # fmt: skip
    heard, reply = vocab.marker("<-Ins->"), vocab.marker("<-Res->")
    closers = (vocab.marker("<eos>"), vocab.eos)
    grammar = Grammar(((0, 2),), 1, 1)
    block, budget = vocab.block("speech"), 9
    texts = [t for n in (1, 2) for t in itertools.product((3, 4), repeat=n)]
    chains = [
        (*a, heard, *b, reply, *c) for a in [(), *texts] for b in texts for c in texts if len(a + b + c) + 2 < budget
    ]
    first = [*texts, *chains]
    speech = [(block.begin, code, block.end) for code in range(block.start, block.stop)]

    def after(so_far, spoken):  # free: what may follow a first text or medium
        if len(so_far) > budget:
            return
        if spoken or plan == ANY:
            yield so_far
        for medium in speech:
            for text in [(), *texts]:
                yield from after((*so_far, *medium, *text), True)

    bodies = {
        ("text",): lambda: first,
        ("speech",): lambda: speech,
        ("text", "speech"): lambda: (a + b for a in first for b in speech),
    }
    if isinstance(plan, tuple):
        found = bodies[plan]()
    else:
        started = [(t, False) for t in first] + [((*m, *t), True) for m in speech for t in [(), *texts]]
        found = (body for begun, spoken in started for body in after(begun, spoken))
    answers = {(*body, closer) for body in found for closer in closers if len(body) < budget}
    machine = compile_plan(vocab, {"speech": grammar}, plan, 2, Marks(closers, (heard, reply)))
    assert check_language(vocab, machine, answers, budget if machine.opening is None else budget - 1, closers) >= 5
