"""The engine in its thread: events that add up to the answer, cancelling, deadlines, a full queue, errors, the end."""

import asyncio
import dataclasses
import threading
import time

import generation_world as world
import numpy as np
import pytest

from anygpt_jax.errors import UserError
from anygpt_jax.generation import slots
from anygpt_jax.generation.answer import Segment
from anygpt_jax.generation.automaton import ANY
from anygpt_jax.generation.engine import Engine
from anygpt_jax.generation.events import Codes, Text, Unfolding
from anygpt_jax.generation.request import Request, Settings
from anygpt_jax.generation.service import Busy, Done, Failed, Service
from anygpt_jax.modalities.text import TextTokenizer

VOCAB = world.vocabulary()
SETTINGS = Settings(max_text_tokens=40, prefill_chunk=8, batch_size=4, stride=3)


def engine(settings=SETTINGS) -> Engine:
    return Engine(world.decoder(VOCAB), VOCAB, world.GRAMMARS, settings, world.Words())


@pytest.fixture
def service():
    service = Service(engine(), queue=64)
    yield service
    service.close(0)


def request(i: int, plan=ANY) -> Request:
    return Request(np.random.default_rng(i).integers(3, VOCAB.size, 5 + i % 20).astype(np.int32), plan, i)


def segments_of(events) -> list[tuple[str, object]]:
    """What a listener puts together."""
    found, open_ = [], None
    for event in events:
        modality = "text" if isinstance(event, Text) else event.modality
        if open_ is None:
            found.append((modality, "" if modality == "text" else np.zeros(0, np.int32)))
        assert open_ in (None, modality)
        content = found[-1][1]
        more = event.piece if isinstance(event, Text) else event.codes
        found[-1] = (modality, content + more if modality == "text" else np.append(content, more))
        open_ = None if event.last else modality
    assert open_ is None
    return found


def same(segments, answer) -> None:
    assert [m for m, _ in segments] == [s.modality for s in answer.segments]
    for (_, content), segment in zip(segments, answer.segments, strict=True):
        np.testing.assert_array_equal(content, segment.content)


def test_events_add_up_to_the_answers_of_the_engine_alone(service):
    plans = [ANY, ("image",), ("text", "speech"), "music", ("text",)] * 6
    requests = [request(i, plan) for i, plan in enumerate(plans)]
    tickets = [service.submit(r) for r in requests]
    expected = engine().answer(requests)
    for ticket, answer in zip(tickets, expected, strict=True):
        *events, done = ticket
        assert isinstance(done, Done) and done.reason == "stop"
        np.testing.assert_array_equal(done.answer.ids, answer.ids)
        same(segments_of(events), answer)
    assert service.load == dataclasses.replace(service.load, running=0, waiting=0, slots=4)
    opened = sum(a.ids[0] in [b.begin for b in VOCAB.blocks] and p != ANY for a, p in zip(expected, plans, strict=True))
    assert service.load.generated == sum(len(a.ids) for a in expected) - opened


def test_an_event_loop_listens_while_a_thread_does(service):
    async def listen(ticket):
        return [event async for event in ticket]

    async def several():
        return await asyncio.gather(*(listen(service.submit(request(i))) for i in range(8)))

    heard = asyncio.run(several())
    by_thread = [list(service.submit(request(i))) for i in range(8)]
    for one, other in zip(heard, by_thread, strict=True):
        np.testing.assert_array_equal(one[-1].answer.ids, other[-1].answer.ids)


def test_cancel_deadline_and_a_full_queue():
    slow = Service(engine(dataclasses.replace(SETTINGS, max_text_tokens=10**6, batch_size=1, stride=1)), queue=2)
    try:
        blocking = dataclasses.replace(request(0), sampling={"text": world_forever()}, plan=("text",))
        first = slow.submit(blocking)
        assert isinstance(next(iter(first)), Text)
        late = slow.submit(request(1), deadline=0.3)
        waiting = slow.submit(request(2))
        with pytest.raises(Busy) as busy:
            slow.submit(request(3))
        assert busy.value.retry_after >= 1
        assert list(late) == [Failed("deadline")]
        waiting.cancel()
        waiting.cancel()
        assert list(waiting) == [Failed("cancelled")]
        first.cancel()
        *_, last = first
        assert last == Failed("cancelled")
        *_, last = slow.submit(request(4))  # the slot is free
        assert isinstance(last, Done)
    finally:
        slow.close(0)


def world_forever():
    """A sampling that goes round and round: greedy, and rather what was written already."""
    from anygpt_jax.generation.sampling import Sampling

    return Sampling(0.0, repetition_penalty=0.01)


def test_impossible_requests_are_refused_at_once(service):
    with pytest.raises(UserError, match="Unknown modality"):
        service.submit(request(0, "smell"))


def test_an_error_costs_those_it_met(service, monkeypatch, caplog):
    decode = slots.decode

    def broken(*args, **kwargs):
        monkeypatch.setattr(slots, "decode", decode)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(slots, "decode", broken)
    assert list(service.submit(request(0))) == [Failed("error: out of memory")]
    assert "the engine failed" in caplog.text
    *_, last = service.submit(request(0))
    assert isinstance(last, Done)


def test_closing_finishes_what_runs_and_takes_nothing_more():
    service = Service(engine())
    tickets = [service.submit(request(i)) for i in range(12)]
    closer = threading.Thread(target=service.close)
    closer.start()
    time.sleep(0.05)
    with pytest.raises(Busy):
        service.submit(request(0))
    assert all(isinstance(list(ticket)[-1], Done) for ticket in tickets)
    closer.join(10)
    assert not closer.is_alive()


def test_warm_compiles_what_requests_need():
    settings = dataclasses.replace(SETTINGS, context=512)
    service = Service(engine(settings))
    try:
        service.warm()
        before = slots.compiled()
        for length in (1, 100, 300, 430):
            prompt = np.random.default_rng(0).integers(3, VOCAB.size, length).astype(np.int32)
            assert isinstance(list(service.submit(Request(prompt, ANY, 0)))[-1], Done)
        assert slots.compiled() == before
    finally:
        service.close()


def test_characters_of_several_bytes_come_whole():
    text = TextTokenizer.load()
    vocab = type(VOCAB).build(text_size=text.size, text_fingerprint=text.fingerprint, blocks=[])
    ids = text.encode("a fox, ein Füchslein, 狐 and 🦊🦊 .")
    unfolding, eos = Unfolding(vocab, text, None), vocab.marker("<eos>")
    events = [event for token in [*ids, eos] for event in unfolding.add(np.array([token], np.int32))]
    assert all("\ufffd" not in event.piece for event in events)
    assert len(events) > 8
    assert "".join(event.piece for event in events) == text.decode(ids)
    assert [event.last for event in events] == [False] * (len(events) - 1) + [True]


def test_codes_may_come_in_any_portions():
    image = VOCAB.block("image")
    ids = [3, 4, image.begin, *(image.start + c for c in (0, 3, 4, 5, 6, 7, 8)), image.end, 5, VOCAB.marker("<eos>")]
    for portion in range(1, len(ids) + 1):
        unfolding = Unfolding(VOCAB, world.Words(), None)
        events = []
        for start in range(0, len(ids), portion):
            events += unfolding.add(np.array(ids[start : start + portion], np.int32))
        assert [m for m, _ in segments_of(events)] == ["text", "image", "text"]
        assert all(isinstance(e, Text | Codes) for e in events)
        assert segments_of(events)[1][1].tolist() == [0, 3, 4, 5, 6, 7, 8]
    assert Segment("text", "3 4") == segments_of(events)[0]
