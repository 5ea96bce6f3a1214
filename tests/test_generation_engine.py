"""The engine on a randomly initialised model: always decodable, deterministic, and equal to a plain loop."""

import generation_world as world
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anygpt_jax.errors import UserError
from anygpt_jax.generation import engine
from anygpt_jax.generation.answer import split_answer
from anygpt_jax.generation.automaton import ANY
from anygpt_jax.generation.engine import Generator, Settings, generate_many
from anygpt_jax.generation.sampling import Sampling

VOCAB = world.vocabulary()
EOS = VOCAB.marker("<eos>")
DECODER = world.decoder(VOCAB)
HOT = Settings(max_text_tokens=6, prefill_chunk=8)
COLD = Settings({m: Sampling(0.0) for m in ("text", *world.SIZES)}, max_text_tokens=6, prefill_chunk=8)


def generator(settings: Settings = HOT) -> Generator:
    return Generator(DECODER, VOCAB, world.GRAMMARS, settings, world.Words())


def prompts(count: int, longest: int = 30, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB.size, rng.integers(1, longest)).astype(np.int32) for _ in range(count)]


def check(answer, plan) -> None:
    """The answer is what the plan says, and every medium decodes."""
    assert answer.ids[-1] == EOS
    assert (answer.ids == EOS).sum() == 1
    for modality, content in answer.segments:
        if modality == "text":
            pieces = world.Words().encode(content)
            assert 1 <= len(pieces) <= 6
            assert pieces.min() > 2  # neither padding nor begin nor end of text
        else:
            assert world.GRAMMARS[modality].problem(content) is None
    if plan != ANY:
        assert tuple(s.modality for s in answer.segments) == ((plan,) if isinstance(plan, str) else plan)


@pytest.mark.parametrize(
    "plan",
    ["image", "speech", "music", "gesture", "text", ("text", "image"), ("music", "text", "speech", "gesture"), ANY],
)
def test_a_thousand_answers_of_an_untrained_model_are_decodable(plan):
    g = generator()
    answers = generate_many(g, prompts(1024), plan, list(range(1024)), 256)
    assert len(answers) == 1024
    for answer in answers:
        check(answer, plan)
    assert len({a.ids.tobytes() for a in answers}) > 100  # it does sample
    if plan == ANY:
        spoken = {s.modality for a in answers for s in a.segments}
        assert spoken == {"text", *world.SIZES}
    if plan == "speech":
        assert {len(a.first("speech")) for a in answers} >= {2, 3, 4}
    if plan == "music":
        assert {len(a.first("music")) for a in answers} <= {6, 9, 12}


@pytest.mark.parametrize("cap", [2, 5, 9, 12, 17])
def test_free_conversation_is_whole_wherever_it_is_cut(cap):
    for answer in generate_many(generator(), prompts(256), ANY, list(range(256)), 256, max_new_tokens=cap):
        check(answer, ANY)
        assert len(answer.ids) <= cap


def test_a_cap_shortens_and_an_impossible_one_is_refused():
    g = generator()
    for answer in g.generate(prompts(64), ("speech", "music"), range(64), max_new_tokens=16):
        check(answer, ("speech", "music"))
        assert len(answer.ids) <= 17  # the first begin marker belongs to the prompt
    with pytest.raises(UserError, match="at least 12 tokens"):
        g.generate(prompts(1), ("speech", "music"), [0], max_new_tokens=11)


def allowed_next(plan: tuple[str, ...], written: list[int]) -> set[int]:
    """A plain account of one step of a plan, from Grammar's own methods."""
    text = set(range(VOCAB.text_size)) - {VOCAB.pad, VOCAB.bos, VOCAB.eos}
    stage, since = 0, []
    for token in written:
        blocks = [b for b in VOCAB.blocks if token in (b.begin, b.end)]
        if blocks and token == blocks[0].begin and since and plan[stage] == "text":
            stage, since = stage + 1, [token]
        elif blocks and token == blocks[0].end:
            stage, since = stage + 1, []
        else:
            since.append(token)
    if stage == len(plan):
        return {EOS}
    leave = EOS if stage + 1 == len(plan) else None
    if plan[stage] == "text":
        if leave is None:
            leave = VOCAB.block(plan[stage + 1]).begin
        return (text if len(since) < 6 else set()) | ({leave} if since else set())
    block, grammar = VOCAB.block(plan[stage]), world.GRAMMARS[plan[stage]]
    if not since:
        return {block.begin}
    n = len(since) - 1
    low, high = grammar.allowed(n)
    go_on = any(grammar.may_end(m) for m in range(n + 1, grammar.max_length + 1))
    codes = set(range(block.start + low, block.start + high)) if go_on else set()
    return codes | ({block.end} if grammar.may_end(n) else set())


@pytest.mark.parametrize("plan", [("image",), ("text", "speech"), ("music", "text"), ("gesture", "image")])
def test_greedy_equals_a_loop_without_cache(plan):
    given = prompts(5, longest=20, seed=3)
    answers = generator(COLD).generate(given, plan, [0] * 5)
    forward = jax.jit(DECODER.__call__)
    for prompt, answer in zip(given, answers, strict=True):
        written: list[int] = []
        while not written or written[-1] != EOS:
            ids = np.zeros((1, 96), np.int32)
            whole = [*prompt.tolist(), *written]
            ids[0, : len(whole)] = whole
            segments = (np.arange(96) < len(whole)).astype(np.int32)[None]
            logits = np.asarray(forward(jnp.array(ids), jnp.arange(96)[None], jnp.array(segments)))[0, len(whole) - 1]
            choices = sorted(allowed_next(plan, written))
            written.append(choices[int(np.argmax(logits[choices]))])
        assert answer.ids.tolist() == written


@pytest.mark.slow
def test_a_seed_decides_whatever_the_batch():
    g = generator()
    given, plan = prompts(24, seed=5), ("text", "music")
    seeds = list(range(100, 124))
    together = g.generate(given, plan, seeds)
    order = np.random.default_rng(0).permutation(24)
    shuffled = g.generate([given[i] for i in order], plan, [seeds[i] for i in order])
    for i, answer in zip(order, shuffled, strict=True):
        assert answer.seed == seeds[i]
        np.testing.assert_array_equal(answer.ids, together[i].ids)
    for size in (1, 5, 16):
        for a, b in zip(together, generate_many(g, given, plan, seeds, size), strict=True):
            np.testing.assert_array_equal(a.ids, b.ids)
    others = g.generate(given, plan, [s + 1000 for s in seeds])
    assert sum(not np.array_equal(a.ids, b.ids) for a, b in zip(together, others, strict=True)) > 20


def test_each_modality_samples_by_its_own_settings():
    settings = Settings(
        {"text": Sampling(0.0), "image": Sampling(1.0), "speech": Sampling(1.0, top_k=1)},
        max_text_tokens=6,
        prefill_chunk=8,
    )
    same = [prompts(1, seed=8)[0]] * 32
    answers = generator(settings).generate(same, ("text", "image"), range(32))
    assert len({a.first("text") for a in answers}) == 1
    assert len({a.first("image").tobytes() for a in answers}) > 8
    cold = generator(COLD).generate(same[:1], ("text", "image"), [0])[0]
    assert cold.first("text") == answers[0].first("text")
    spoken = generator(settings).generate(same, "speech", range(32))
    assert len({a.ids.tobytes() for a in spoken}) == 1  # top_k 1 is greedy


def test_a_begin_marker_in_the_prompt_changes_nothing():
    g = generator()
    bare = prompts(4)
    opened = [np.append(p, VOCAB.block("image").begin).astype(np.int32) for p in bare]
    for a, b in zip(g.generate(bare, "image", range(4)), g.generate(opened, "image", range(4)), strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        assert a.ids[0] == VOCAB.block("image").begin


def test_plans_share_one_compiled_loop():
    g = generator()
    g.generate(prompts(8), "image", range(8))
    before = engine._decode._cache_size(), engine._prefill._cache_size()
    for plan in ("text", "music", ("text", "speech"), ANY):
        g.generate(prompts(8), plan, range(8))
    generator(COLD).generate(prompts(8), "image", range(8))
    assert (engine._decode._cache_size(), engine._prefill._cache_size()) == before


def test_it_stops_when_all_answers_are_complete_and_reports_progress():
    calls: list[tuple[int, int]] = []
    g = generator(Settings(max_text_tokens=5000, prefill_chunk=8))
    answers = g.generate(prompts(4), "text", range(4), progress=lambda done, of: calls.append((done, of)))
    longest = max(len(a.ids) for a in answers)
    assert {of for _, of in calls} == {5001}
    assert [done for done, _ in calls] == list(range(16, 16 * len(calls) + 1, 16))
    assert longest <= calls[-1][0] < longest + 16
    unwatched = g.generate(prompts(4), "text", range(4))
    assert [a.ids.tolist() for a in unwatched] == [a.ids.tolist() for a in answers]


def test_no_prompts_and_bad_arguments():
    g = generator()
    assert g.generate([], "text", []) == []
    assert generate_many(g, [], "text", [], 4) == []
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        g.generate(prompts(2), "text", [0])
    with pytest.raises(ValueError, match="at least one id"):
        g.generate([np.zeros(0, np.int32)], "text", [0])
    with pytest.raises(UserError, match="seed"):
        g.generate(prompts(1), "text", [-1])


def test_split_answer_refuses_what_is_not_an_answer():
    image = VOCAB.block("image")
    assert split_answer(np.array([5, 6, EOS]), VOCAB, world.Words()) == (("text", "5 6"),)
    with pytest.raises(ValueError, match="<eos>"):
        split_answer(np.array([5, 6]), VOCAB, world.Words())
    with pytest.raises(ValueError, match="not text"):
        split_answer(np.array([5, image.start, EOS]), VOCAB, world.Words())
    with pytest.raises(ValueError, match="does not end"):
        split_answer(np.array([image.begin, image.start, EOS]), VOCAB, world.Words())
