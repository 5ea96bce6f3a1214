"""The engine on a randomly initialised model: always decodable, deterministic, and equal to a plain loop."""

import dataclasses

import generation_world as world
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.generation import slots
from anygpt_jax.generation.answer import split_answer
from anygpt_jax.generation.automaton import ANY, Free
from anygpt_jax.generation.engine import Engine
from anygpt_jax.generation.request import Request, Settings
from anygpt_jax.generation.sampling import Sampling
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.sharding import make_mesh, param_shardings

VOCAB = world.vocabulary()
EOS = VOCAB.marker("<eos>")
DECODER = world.decoder(VOCAB)
FORWARD = jax.jit(DECODER.__call__)
HOT = Settings(max_text_tokens=6, prefill_chunk=8, batch_size=64)
COLD = Settings({m: Sampling(0.0) for m in ("text", *world.SIZES)}, max_text_tokens=6, prefill_chunk=8)


def generator(settings: Settings = HOT) -> Engine:
    return Engine(DECODER, VOCAB, world.GRAMMARS, settings, world.Words())


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
def test_ten_thousand_answers_of_an_untrained_model_are_decodable(plan):
    g = generator()
    answers = g.generate(prompts(1280), plan, range(1280))  # of each of eight plans
    assert len(answers) == 1280
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
    for answer in generator().generate(prompts(256), ANY, range(256), max_new_tokens=cap):
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
    for prompt, answer in zip(given, answers, strict=True):
        written: list[int] = []
        while not written or written[-1] != EOS:
            logits = logits_after([*prompt.tolist(), *written])
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
        few = generator(dataclasses.replace(HOT, batch_size=size, stride=3))
        for a, b in zip(together, few.generate(given, plan, seeds), strict=True):
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
    before = slots.compiled()
    for plan in ("text", "music", ("text", "speech"), ANY):
        g.generate(prompts(8), plan, range(8))
    generator(COLD).generate(prompts(8), "image", range(8))
    assert slots.compiled() == before


def test_answers_come_as_they_are_written_and_a_slot_is_taken_by_the_next():
    g = generator(dataclasses.replace(HOT, batch_size=2, stride=4))
    given, plans = prompts(6), ["image", "text", "music", "speech", ("text", "image"), ANY]
    expected = [generator().generate([p], plan, [i])[0] for i, (p, plan) in enumerate(zip(given, plans, strict=True))]
    numbers = [g.submit(Request(p, plan, i)) for i, (p, plan) in enumerate(zip(given, plans, strict=True))]
    written: dict[int, list[int]] = {number: [] for number in numbers}
    answers = {}
    while len(answers) < 6:
        assert g.running <= 2 and g.running + g.waiting == 6 - len(answers)
        for part in g.step():
            assert len(part.ids) <= 4
            written[part.job] += part.ids.tolist()
            if part.answer is not None:
                answers[part.job] = part.answer
    for number, answer in zip(numbers, expected, strict=True):
        np.testing.assert_array_equal(answers[number].ids, answer.ids)
        assert answer.ids.tolist()[-len(written[number]) :] == written[number]


def test_what_prompts_share_is_read_once_and_changes_nothing(monkeypatch):
    read = []
    prefill = slots.prefill
    monkeypatch.setattr(slots, "prefill", lambda *a, **k: read.append(1) or prefill(*a, **k))
    rng = np.random.default_rng(4)
    start = rng.integers(3, VOCAB.size, 45)
    given = [np.append(start, rng.integers(3, VOCAB.size, n)).astype(np.int32) for n in (3, 9, 20)]
    fresh = [generator().generate([p], "music", [7])[0].ids for p in given]
    alone = len(read)
    assert alone == sum(
        -(-len(p) // 8) for p in given
    )  # the begin marker is fed to the first step of decoding, not the last id
    for size in (1, 2):  # from the slot itself; from another slot
        del read[:]
        g = generator(dataclasses.replace(HOT, batch_size=size))
        for _ in range(2):
            for prompt, ids in zip(given, fresh, strict=True):
                np.testing.assert_array_equal(g.generate([prompt], "music", [7])[0].ids, ids)
        assert len(read) < alone
    # In use and free at once: the second is let in while the first is being written.
    g = generator(dataclasses.replace(HOT, batch_size=2, stride=2))
    first = g.submit(Request(given[0], "music", 7))
    while g.step() == []:
        pass
    del read[:]
    second = g.submit(Request(given[2], "music", 7))
    answers = {}
    while len(answers) < 2:
        answers |= {w.job: w.answer.ids for w in g.step() if w.answer is not None}
    assert len(read) == -(-len(given[2]) // 8) - 45 // 8
    np.testing.assert_array_equal(answers[first], fresh[0])
    np.testing.assert_array_equal(answers[second], fresh[2])


def test_a_dialogue_that_goes_on_is_as_if_it_were_read_anew():
    g = generator(dataclasses.replace(HOT, batch_size=1))
    dialogue = prompts(1, seed=9)[0]
    for turn in range(4):
        again, anew = (e.generate([dialogue], ANY, [turn])[0].ids for e in (g, generator()))
        np.testing.assert_array_equal(again, anew)
        dialogue = np.concatenate([dialogue, again, prompts(1, seed=turn)[0]]).astype(np.int32)


def test_cancelling_frees_the_slot_and_disturbs_nobody():
    g = generator(dataclasses.replace(HOT, batch_size=2, stride=2))
    given = prompts(4, seed=2)
    numbers = [g.submit(Request(p, "music", i)) for i, p in enumerate(given)]
    g.step()
    g.cancel(numbers[0])  # being written
    g.cancel(numbers[2])  # waiting
    answers = {}
    while len(answers) < 2:
        answers |= {w.job: w.answer.ids for w in g.step() if w.answer is not None}
    assert (g.running, g.waiting) == (0, 0)
    g.cancel(numbers[1])  # answered already
    for i in (1, 3):
        np.testing.assert_array_equal(answers[numbers[i]], generator().generate([given[i]], "music", [i])[0].ids)


@pytest.mark.parametrize(
    ("plan", "must"),
    [
        (Free(("image", "music")), ()),
        (Free(("text", "speech"), ("speech",)), ("speech",)),
        (Free(("text", "image", "music"), ("text", "music", "image")), ("text", "music", "image")),
    ],
)
def test_what_the_model_may_and_must_write(plan, must):
    found = set()
    for answer in generator().generate(prompts(128), plan, range(128)):
        check(answer, ANY)
        modalities = [s.modality for s in answer.segments]
        found |= set(modalities)
        assert set(must) <= set(modalities) <= set(plan.may)
        if "text" in must:
            assert modalities[0] == "text"
    assert found == set(plan.may)


def test_a_context_bounds_prompt_and_answer():
    g = generator(dataclasses.replace(HOT, context=256, batch_size=4))
    rng = np.random.default_rng(0)
    long = rng.integers(3, VOCAB.size, 246).astype(np.int32)
    answer = g.generate([long], ANY, [0])[0]
    check(answer, ANY)
    assert len(answer.ids) <= 10
    with pytest.raises(UserError, match="together they may have 256"):
        g.generate([np.append(long, long).astype(np.int32)], ANY, [0])


def greedy(**changes) -> Settings:
    return Settings({m: Sampling(0.0, **changes) for m in ("text", *world.SIZES)}, max_text_tokens=6, prefill_chunk=8)


def logits_after(ids: list[int]) -> np.ndarray:
    n = len(ids)
    tokens = jnp.array([[*ids, *[0] * (96 - n)]])
    segments = (jnp.arange(96) < n).astype(jnp.int32)[None]
    return np.array(FORWARD(tokens, jnp.arange(96)[None], segments))[0, n - 1]


def test_guidance_and_penalty_equal_a_loop_without_cache():
    given, without = prompts(3, longest=20, seed=3), prompts(3, longest=20, seed=4)
    g = generator(dataclasses.replace(greedy(guidance=3.0, repetition_penalty=1.5), batch_size=4))
    requests = [Request(p, ("text", "speech"), 0, without=w) for p, w in zip(given, without, strict=True)]
    for prompt, base, answer in zip(given, without, g.answer(requests), strict=True):
        written: list[int] = []
        while not written or written[-1] != EOS:
            with_it, lacking = (logits_after([*ids.tolist(), *written]) for ids in (prompt, base))
            logits = lacking + 3 * (with_it - lacking)
            seen = sorted({*prompt.tolist(), *written})
            logits[seen] = np.where(logits[seen] > 0, logits[seen] / 1.5, logits[seen] * 1.5)
            choices = sorted(allowed_next(("text", "speech"), written))
            written.append(choices[int(np.argmax(logits[choices]))])
        assert answer.ids.tolist() == written
    with pytest.raises(UserError, match="prompt without the request"):
        g.generate(given, "text", range(3))
    with pytest.raises(UserError, match="two slots"):
        generator(dataclasses.replace(greedy(guidance=3.0), batch_size=1)).answer(requests)


@pytest.mark.parametrize(("cache", "weights"), [(None, "float"), ("int8", "int8")])
def test_cut_over_devices_it_writes_the_same(cache, weights):
    config = dataclasses.replace(DECODER.config, n_kv_heads=2)
    model = Decoder(config, rngs=nnx.Rngs(3))
    model.embedding[...] = model.embedding[...] * 20
    settings, given = dataclasses.replace(COLD, cache=cache, weights=weights, batch_size=4), prompts(8)
    alone = Engine(model, VOCAB, world.GRAMMARS, settings, world.Words()).generate(given, ANY, range(8))
    mesh = make_mesh({"tensor": 2})
    graph, state = nnx.split(model)
    cut = nnx.merge(graph, jax.device_put(nnx.to_pure_dict(state), param_shardings(state, mesh)))
    assert len(cut.blocks.q[...].devices()) == 2
    together = Engine(cut, VOCAB, world.GRAMMARS, settings, world.Words(), mesh)
    for a, b in zip(alone, together.generate(given, ANY, range(8)), strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
    assert len(together._state.cache.keys.sharding.device_set) == 2


def test_the_score_is_the_log_probability_among_what_is_allowed():
    plan = ("text", "speech")
    for (answer, score), prompt in zip(
        generator().answer_scored([Request(p, plan, i) for i, p in enumerate(prompts(4))]), prompts(4), strict=True
    ):
        total, written = 0.0, []
        for token in answer.ids.tolist():
            logits = logits_after([*prompt.tolist(), *written]).astype(np.float64)
            choices = sorted(allowed_next(plan, written))
            total += logits[token] - np.log(np.exp(logits[choices]).sum())
            written.append(token)
        assert score == pytest.approx(total, rel=1e-4)


def test_no_prompts_and_bad_arguments():
    g = generator()
    assert g.generate([], "text", []) == []
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
