"""Speech in pieces is the speech of the whole: where the pieces meet, and what they cost. Batches, and file formats."""

import io
import threading

import numpy as np
import pytest
import serving_world as world
import soundfile

from anygpt_jax.modalities import base
from anygpt_jax.modalities.base import Audio
from anygpt_jax.serving import sound
from anygpt_jax.serving.decoding import MediaDecoder


def in_pieces(tokenizer, codes: np.ndarray, step: int) -> list[tuple[np.ndarray, int]]:
    """(samples, codes that were decoded for them), as codes come `step` at a time."""
    pieces, found = sound.Pieces(tokenizer), []
    for n in range(step, len(codes) + step, step):
        last = n >= len(codes)
        count = len(codes) if last else pieces.due(n)
        if count:
            found.append((pieces.new(tokenizer.decode([codes[:count]])[0], count, last), count))
    return found


@pytest.mark.parametrize("count", [1, 10, 37, 38, 39, 80, 150])
@pytest.mark.parametrize("step", [1, 5, 16])
def test_every_sample_is_sent_once_and_in_order(count, step):
    tokenizer = world.Sounds("speech")
    codes = (np.arange(count) % 32).astype(np.int32)
    pieces = in_pieces(tokenizer, codes, step)
    assert np.array_equal(np.concatenate([p for p, _ in pieces]), tokenizer.decode([codes])[0].samples)
    assert sum(n for _, n in pieces) <= 3 * count
    if count >= 38 + step:
        assert 1.0 <= len(pieces[0][0]) / 16_000 < 1.0 + step / 25 and pieces[0][1] < 38 + step


@pytest.mark.slow
def test_seams_of_shipped_speech_are_far_below_hearing():
    tokenizer = base.get("speech")
    rng = np.random.default_rng(1)
    for _ in range(2):
        # Codes that stay for a few steps, as those of speech do.
        codes = np.repeat(rng.integers(0, tokenizer.codebook_size, 60), rng.integers(1, 5, 60))[:110].astype(np.int32)
        whole = tokenizer.decode([codes])[0].samples
        pieces = in_pieces(tokenizer, codes, 16)
        joined, seams = np.concatenate([p for p, _ in pieces]), np.cumsum([len(p) for p, _ in pieces])[:-1]
        assert len(seams) >= 2 and joined.shape == whole.shape
        error = joined - whole
        assert np.sqrt(np.mean(error**2)) < 1e-2 * np.sqrt(np.mean(whole**2))  # -40 dB
        for seam in seams:  # no click: the step across the seam is the whole's
            around = slice(seam - 1, seam + 1)
            assert np.abs(np.diff(joined[around]) - np.diff(whole[around])).max() < 1e-2 * np.abs(whole).max()


@pytest.mark.parametrize(("kind", "tolerance"), [("wav", 1e-4), ("flac", 1e-4), ("mp3", 0.05), ("opus", 0.05)])
def test_formats_hold_the_sound(kind, tolerance):
    t = np.arange(16_000) / 16_000
    tone = Audio((0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32), 16_000)
    samples, rate = soundfile.read(io.BytesIO(sound.encode(tone, kind)))
    middle = np.abs(np.fft.rfft(samples[rate // 4 : 3 * rate // 4]))
    assert np.argmax(middle) * 2 == pytest.approx(440, abs=2)
    assert np.sqrt(np.mean(samples[rate // 4 : 3 * rate // 4] ** 2)) == pytest.approx(0.3 / np.sqrt(2), rel=tolerance)


def test_pcm16_is_little_endian_and_clipped():
    assert sound.pcm16(np.array([0, 1, -1, 2, -2, 0.5], np.float32)).hex() == "0000ff7f0180ff7f01800040"


def test_what_waits_is_decoded_together_and_by_voice():
    tokenizers = world.pipeline().tokenizers
    decoder = MediaDecoder(tokenizers, threads=1)
    voice = Audio(np.ones(8000, np.float32), 16_000)
    try:
        held = tokenizers["image"].decode
        gate = threading.Event()
        tokenizers["image"].decode = lambda codes: gate.wait(10) and held(codes)
        first = decoder.submit("image", np.zeros(4, np.int32))
        codes = [np.full(5, i, np.int32) for i in range(12)]
        futures = [decoder.submit("speech", c, voice if i % 3 == 0 else None) for i, c in enumerate(codes)]
        given_up = decoder.submit("speech", np.zeros(5, np.int32))
        assert given_up.cancel()
        gate.set()
        assert first.result(10).shape == (16, 16, 3)
        found = [future.result(10).samples for future in futures]
        assert sorted(tokenizers["speech"].batches) == [4, 8]
        for i, (c, samples) in enumerate(zip(codes, found, strict=True)):
            expected = tokenizers["speech"].decode([c], prompt=voice if i % 3 == 0 else None)[0].samples
            assert np.array_equal(samples, expected)
        with pytest.raises(ValueError, match="reshape"):
            decoder.submit("image", np.zeros((0, 0), np.int32)).result(10)
    finally:
        decoder.close()
    assert decoder.submit("image", np.zeros(4, np.int32)).cancelled()
