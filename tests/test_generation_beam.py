"""Beam search against a plain account of the algorithm, and against all answers there are."""

import dataclasses
import itertools

import generation_world as world
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anygpt_jax.errors import UserError
from anygpt_jax.generation import automaton, beam
from anygpt_jax.generation.engine import Engine
from anygpt_jax.generation.request import Settings
from anygpt_jax.generation.sampling import Sampling
from anygpt_jax.modalities.base import Grammar
from anygpt_jax.vocabulary import BlockSpec, Vocabulary

VOCAB = world.vocabulary()
EOS = VOCAB.marker("<eos>")
DECODER = world.decoder(VOCAB, scale=4.0)
SETTINGS = Settings(max_text_tokens=5, prefill_chunk=8, batch_size=12)
LENGTH = 64


def engine(decoder=DECODER, vocab=VOCAB, grammars=world.GRAMMARS, settings=SETTINGS) -> Engine:
    return Engine(decoder, vocab, grammars, settings, world.Words())


def prompts(count: int, vocab=VOCAB) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(3, vocab.size, rng.integers(1, 20)).astype(np.int32) for _ in range(count)]


def best(*args, **options):
    found = beam.search(*args, **options)
    for answers in found:
        scores = [score for _, score in answers]
        assert scores == sorted(scores, reverse=True) and len({a.ids.tobytes() for a, _ in answers}) == len(answers)
    return [answers[0][0] for answers in found]


class Plain:
    """Log probabilities of the next token among the allowed ones, without a cache, one sequence at a time."""

    def __init__(self, e: Engine, plan, budget: int | None = None):
        self.machine = e.plans.add(plan)
        self.tables, self.eos = e.plans.tables, e.vocabulary.marker("<eos>")
        self.budget = budget or self.machine.longest
        self.forward = jax.jit(e.decoder.__call__)

    def next(self, prompt: list[int], written: list[int]) -> np.ndarray:
        node, run = jnp.array([self.machine.start]), jnp.array([0])
        for token in written:
            node, run = automaton.advance(self.tables, node, run, jnp.array([token]))
        ids = [*prompt, *written]
        tokens = jnp.array([[*ids, *[0] * (LENGTH - len(ids))]])
        segments = (jnp.arange(LENGTH) < len(ids)).astype(jnp.int32)[None]
        logits = self.forward(tokens, jnp.arange(LENGTH)[None], segments)[0, len(ids) - 1]
        mask = automaton.allowed(self.tables, node, run, jnp.array([self.budget - len(written)]), len(logits))[0]
        return np.asarray(jax.nn.log_softmax(jnp.where(mask, logits, -jnp.inf)), np.float64)

    def search(self, prompt: list[int], beams: int, penalty: float) -> list[int]:
        running, kept = [(0.0, [])], []
        while running:
            grown = []
            for score, written in running:
                chances = self.next(prompt, written)
                grown += [(score + chances[t], [*written, int(t)]) for t in np.flatnonzero(np.isfinite(chances))]
            grown.sort(key=lambda one: -one[0])
            grown = grown[: 2 * beams]
            n = len(grown[0][1])
            kept += [(s / n**penalty, w) for s, w in grown[:beams] if w[-1] == self.eos]
            kept = sorted(kept, key=lambda one: -one[0])[:beams]
            running = [(s, w) for s, w in grown if w[-1] != self.eos][:beams]
            if len(kept) == beams and running and running[0][0] / n**penalty <= kept[-1][0]:
                break
        return kept[0][1]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("plan", ["text", ("text", "speech")])
def test_it_finds_what_a_plain_search_finds(plan, penalty):
    e, given = engine(), prompts(5)
    found = best(e, given, plan, beams=3, length_penalty=penalty)
    plain = Plain(e, plan)
    assert penalty > 1 or len({len(answer.ids) for answer in found}) > 1
    for prompt, answer in zip(given, found, strict=True):
        assert answer.ids.tolist() == plain.search(prompt.tolist(), 3, penalty)


def test_one_beam_is_greedy():
    cold = {m: Sampling(0.0) for m in ("text", *world.SIZES)}
    e = engine(settings=dataclasses.replace(SETTINGS, sampling=cold))
    given = prompts(7)
    for plan in ("music", ("text", "image", "text")):
        greedy, found = e.generate(given, plan, [0] * 7), best(e, given, plan, beams=1)
        for a, b in zip(greedy, found, strict=True):
            np.testing.assert_array_equal(a.ids, b.ids)


@pytest.mark.slow
def test_beams_enough_for_all_find_the_likeliest_answer():
    vocab = Vocabulary.build(text_size=6, text_fingerprint="w", blocks=[BlockSpec("image", 3)])
    grammars = {"image": Grammar(cycle=((0, 3),), min_length=1, max_length=3)}
    e = engine(world.decoder(vocab, seed=4, scale=6.0), vocab, grammars)
    plan, given = ("image",), prompts(4, vocab)
    found = best(e, given, plan, beams=40, length_penalty=0.0)
    plain = Plain(e, plan)
    image, eos = vocab.block("image"), vocab.marker("<eos>")
    for prompt, answer in zip(given, found, strict=True):
        opened = [*prompt.tolist(), image.begin]
        score = {}
        for n in (1, 2, 3):
            for codes in itertools.product(range(image.start, image.start + 3), repeat=n):
                written, total = [], 0.0
                for token in (*codes, image.end, eos):
                    total += plain.next(opened, written)[token]
                    written.append(token)
                score[tuple(written)] = total
        assert answer.ids[1:].tolist() == list(max(score, key=score.get))


def test_impossible_requests():
    with pytest.raises(UserError, match="at least 1"):
        beam.search(engine(), prompts(1), "text", beams=0)
    with pytest.raises(UserError, match="max_new_tokens is 3"):
        beam.search(engine(), prompts(1), "image", max_new_tokens=3)
    assert beam.search(engine(), [], "text") == []
