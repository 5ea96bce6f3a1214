"""Answers that are chosen by how well the request is found again in them."""

import dataclasses

import generation_world as world
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anygpt_jax.formats.own import Own
from anygpt_jax.generation import beam, round_trip
from anygpt_jax.generation.answer import Answer, Segment
from anygpt_jax.generation.engine import Engine
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.generation.request import Request, Settings
from anygpt_jax.generation.sampling import Sampling
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.tasks.instructions import pair_segments
from anygpt_jax.vocabulary import BlockSpec, Vocabulary

TEXT = TextTokenizer.load()
VOCAB = Vocabulary.build(text_size=TEXT.size, text_fingerprint=TEXT.fingerprint, blocks=[BlockSpec("image", 12)])
DECODER = world.decoder(VOCAB, scale=8.0)
FORMATTER = Own(VOCAB, TEXT)
CODES = [np.array([1, 3, 4, 5, 6, 7, 8]), np.array([0, 11, 10, 9, 8, 7, 6]), np.array([2, 3, 3, 3, 3, 3, 3])]
SETTINGS = Settings({"text": Sampling(0.0)}, max_text_tokens=4, batch_size=12, beams=4, round_trip=1.0)


def pipeline(settings=SETTINGS) -> Pipeline:
    engine = Engine(DECODER, VOCAB, {"image": world.GRAMMARS["image"]}, settings, TEXT)
    return Pipeline(DECODER, engine, FORMATTER, {"image": world.ImageCodec()}, 0)


def prompts() -> list[np.ndarray]:
    return [FORMATTER.prompt(pair_segments("image", "text", codes, key=str(i))) for i, codes in enumerate(CODES)]


def told(text: str) -> Answer:
    return Answer((Segment("text", text),), np.zeros(0, np.int32), 0)


def test_the_medium_of_a_prompt():
    for prompt, codes in zip(prompts(), CODES, strict=True):
        block, found = round_trip.medium_of(prompt, VOCAB)
        assert block.modality == "image"
        np.testing.assert_array_equal(found, codes)
    assert round_trip.medium_of(FORMATTER.prompt(pair_segments("text", "image", "a fox")), VOCAB) is None
    both = np.concatenate(prompts()[:2])
    assert round_trip.medium_of(both, VOCAB) is None
    assert round_trip.medium_of(prompts()[0][: -len(CODES[0])], VOCAB) is None  # it does not end


def test_scores_are_the_probabilities_of_the_codes_one_by_one():
    block = VOCAB.block("image")
    texts = ["a red fox", "two", "a blue scene with an umbrella"]
    scores = round_trip.scores(DECODER, FORMATTER, [(block, codes) for codes in CODES], [told(t) for t in texts])
    forward = jax.jit(DECODER.__call__)
    for i, (text, codes) in enumerate(zip(texts, CODES, strict=True)):
        ids = FORMATTER.prompt(pair_segments("text", "image", text), answer="image").tolist()
        total = 0.0
        for token in [*(block.start + codes), block.end]:
            padded = jnp.array([[*ids, *[0] * (64 - len(ids))]])
            there = (jnp.arange(64) < len(ids)).astype(jnp.int32)[None]
            logits = forward(padded, jnp.arange(64)[None], there)[0, len(ids) - 1]
            total += float(jax.nn.log_softmax(logits)[token])
            ids.append(int(token))
        assert scores[i] == pytest.approx(total, rel=1e-4)


def test_the_beam_that_finds_the_medium_again_is_taken():
    p = pipeline()
    requests = [Request(prompt, ("text",), i) for i, prompt in enumerate(prompts())]
    found = beam.search(p.engine, prompts(), ("text",), beams=4)
    block, changed = VOCAB.block("image"), 0
    for codes, beams, answer, request in zip(CODES, found, p.answers(requests), requests, strict=True):
        back = round_trip.scores(DECODER, FORMATTER, [(block, codes)] * len(beams), [one for one, _ in beams])
        best = max(range(len(beams)), key=lambda k: beams[k][1] + back[k])
        np.testing.assert_array_equal(answer.ids, beams[best][0].ids)
        assert answer.seed == request.seed
        changed += best != 0
    assert changed  # it does not always take the first
    plain = pipeline(dataclasses.replace(SETTINGS, round_trip=0.0)).answers(requests)
    for beams, answer in zip(found, plain, strict=True):
        np.testing.assert_array_equal(answer.ids, beams[0][0].ids)
