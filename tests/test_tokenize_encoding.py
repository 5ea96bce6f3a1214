"""Examples to records, without TensorFlow or Beam: what is encoded, what is rejected, and why."""

import threading

import numpy as np
import pytest
import tiny_world

from anygpt_jax.cache import Ledger
from anygpt_jax.tasks import encoding
from anygpt_jax.tasks.encoding import Encoder, Example
from anygpt_jax.tasks.shards import vocabulary_of
from anygpt_jax.templates import Formatter


@pytest.fixture
def encoder():
    tokenizers = {
        "image": tiny_world.ImageCodec(),
        "speech": tiny_world.SoundCodec("speech"),
        "music": tiny_world.SoundCodec("music"),
    }
    text = tiny_world.text_tokenizer()
    return Encoder(tokenizers, Formatter(vocabulary_of(text, tokenizers), text), batch_size=4, max_tokens=64)


def pair(key, modality, content, text=b"a red fox"):
    return Example(key, (modality, "text"), (content, text), ("human", "assistant"), (False, True))


def run(encoder, examples):
    ledger = Ledger()
    records = list(encoder.records(examples, "image_to_text", ledger))
    assert ledger.inputs == len(examples) == len(records) + ledger.filtered.total() + len(ledger.rejects)
    return records, dict(ledger.rejects)


def test_a_record_holds_the_codes_of_its_media(encoder):
    (record,), rejects = run(encoder, [pair("k", "image", tiny_world.png("blue", 1))])
    assert not rejects
    vocabulary = encoder._formatter.vocabulary
    block = vocabulary.block("image")
    start = int(np.flatnonzero(record.tokens == block.begin)[0])
    assert record.tokens[start + 5] == block.end
    assert list(vocabulary.decode_codes("image", record.tokens[start + 1 : start + 5])) == [2, 2, 2, 2]
    assert (record.key, record.source) == ("k", "image_to_text")


def test_a_bad_input_costs_only_itself(encoder):
    good = tiny_world.png("red", 0)
    sound = tiny_world.flac(1.0, 0.3, 0)
    examples = [
        pair("truncated png", "image", good[: len(good) // 2]),
        pair("no bytes", "image", b""),
        pair("not a sound", "speech", b"RIFFnonsense"),
        pair("truncated flac", "speech", sound[: len(sound) // 3]),
        pair("empty text", "image", good, b"  "),
        pair("not utf-8", "image", good, b"\xff\xfe\xfa"),
        pair("unknown", "smell", b"?"),
        pair("too many codes", "speech", tiny_world.flac(5.0, 0.3, 0)),
        pair("too many tokens", "image", good, b"zzzz " * 100),
        pair("poison", "speech", tiny_world.flac(31.0, 0.3, 0)),
        pair("", "image", good),
        *(pair(f"good {i}", "image", tiny_world.png("green", i)) for i in range(3)),
        *(pair(f"loud {i}", "speech", tiny_world.flac(1.0, 0.5, i)) for i in range(6)),
    ]
    records, rejects = run(encoder, examples)
    assert [r.key for r in records] == [e.key for e in examples if e.key.startswith(("good", "loud"))]
    assert set(rejects) == {e.key for e in examples} - {r.key for r in records}
    assert "not a whole image" in rejects["truncated png"]
    assert "not a whole image" in rejects["no bytes"]
    assert "not a whole sound" in rejects["not a sound"]
    assert rejects["empty text"] == "a text is empty"
    assert rejects["not utf-8"].startswith("UnicodeDecodeError")
    assert rejects["unknown"] == "unknown modality 'smell'"
    assert "50 codes" in rejects["too many codes"]
    assert "max_tokens=64" in rejects["too many tokens"]
    assert "out of memory" in rejects["poison"]
    assert "must not be empty" in rejects[""]


def test_the_same_media_is_encoded_once(encoder):
    tiny_world.ImageCodec.encoded = 0
    png = tiny_world.png("red", 7)
    for task in ("image_to_text", "text_to_image"):
        list(encoder.records([pair(f"{task} {i}", "image", png) for i in range(20)], task, Ledger()))
    assert tiny_world.ImageCodec.encoded == 1


def test_order_and_batches_do_not_change_a_record(encoder):
    examples = [pair(f"k{i}", "speech", tiny_world.flac(0.5 + 0.1 * (i * 7 % 10), 0.1 * (i % 9), i)) for i in range(50)]
    together, _ = run(encoder, examples)
    assert [r.key for r in together] == [e.key for e in examples]
    encoder._codes.clear()
    backwards, _ = run(encoder, examples[::-1])
    for a, b in zip(together, backwards[::-1], strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        assert a.spans == b.spans


def test_the_next_media_are_decoded_while_these_are_encoded(encoder, monkeypatch):
    """`encode` waits here until a picture of the next chunk has been decoded: without a thread it waits in vain."""
    codec, chunk = encoder._tokenizers["image"], encoding.CHUNK * 4
    decoded, reached = [], threading.Event()
    load, encode = codec.load, codec.encode

    def counted(data):
        decoded.append(data)
        if len(decoded) > chunk:
            reached.set()
        return load(data)

    def waiting(media):
        assert reached.wait(30)
        return encode(media)

    monkeypatch.setattr(codec, "load", counted)
    monkeypatch.setattr(codec, "encode", waiting)
    examples = [pair(str(i), "image", tiny_world.png("green", i)) for i in range(chunk + 1)]
    records, rejects = run(encoder, examples)
    assert not rejects and [r.key for r in records] == [e.key for e in examples]
    assert len(decoded) == len(set(decoded)) == len(examples)
