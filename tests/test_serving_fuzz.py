"""Malformed requests by the thousand: none of them is the server's fault, and none of them stays."""

import collections
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import serving_fuzz as fuzz
import serving_world as world
from hypothesis import given, settings
from hypothesis import strategies as st

from anygpt_jax.serving import schema
from anygpt_jax.serving.refusal import Refusal

MEDIA = {"image": world.png(16, 16), "sound": world.wav(0.5)}


def storm(count: int, seed: int) -> collections.Counter:
    """How often each status was the answer."""
    with world.serving() as server, ThreadPoolExecutor(4) as pool:
        requests = fuzz.requests(count, seed, MEDIA)
        seen = collections.Counter(pool.map(lambda r: fuzz.status(server.host, server.port, r), requests))
        assert server.idle() and server.api.bodies.held == 0
        assert server.chat("are you well").status == 200
    return seen


def test_no_malformed_request_is_a_fault_of_the_server():
    seen = storm(200, seed=1)
    assert not {status for status in seen if status >= 500}, seen
    assert {400, 415, 200} <= set(seen), seen


@pytest.mark.slow
def test_no_malformed_request_of_ten_thousand_is_a_fault_of_the_server():
    seen = storm(10_000, seed=2)
    assert not {status for status in seen if status >= 500}, seen
    assert sum(seen.values()) == 10_000 and seen[400] > 3000, seen


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from([*schema.ChatRequest.model_fields, "unknown"])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(fields, json_values, max_size=6) | json_values)
def test_any_json_is_a_request_or_a_refusal(content):

    refusal = None
    try:
        assert schema.parse(json.dumps(content).encode()).messages
    except Refusal as e:
        refusal = e
    assert refusal is None or (refusal.status == 400 and refusal.message[-1] == "." and "\n" not in refusal.message)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_refusal(body):
    with pytest.raises(Refusal):
        schema.parse(body)
