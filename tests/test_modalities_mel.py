"""Spectrograms against scipy and closed forms; masks and batches of the mel codec."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import nnx

from anygpt_jax.modalities.codecs import batching, mel
from anygpt_jax.modalities.codecs.acoustic import AcousticSettings, AcousticStage, loss_fn
from anygpt_jax.modalities.codecs.melcodec import CodecSettings, MelCodec, frame_mask, shift
from anygpt_jax.modalities.codecs.train_mel import warp_frequency

SETTINGS = mel.MelSettings(16_000, 640, 160, 80)


def test_stft_is_scipys():
    x = np.random.default_rng(0).normal(size=4800).astype(np.float32)
    padded = np.pad(x, 240)  # (n_fft - hop) / 2 on both sides
    window = scipy.signal.get_window("hann", 640)
    _, _, theirs = scipy.signal.stft(
        padded, window=window, nperseg=640, noverlap=480, boundary=None, padded=False, scaling="spectrum"
    )
    ours = np.asarray(mel.stft(x[None], 640, 160))[0]
    np.testing.assert_allclose(ours, theirs.T * window.sum(), atol=2e-3)


def test_istft_inverts_stft():
    x = np.random.default_rng(1).normal(size=(2, 3200)).astype(np.float32)
    np.testing.assert_allclose(mel.istft(mel.stft(x, 640, 160), 640, 160), x, atol=1e-5)


def test_filterbank_against_hand_made_triangles():
    # Closed form with two bands: three corners beside 0 Hz, a third of the mel range apart.
    bank = mel.filterbank(mel.MelSettings(16_000, 320, 80, 2))
    top = 2595 * np.log10(1 + 8000 / 700)
    low, high = (700 * (10 ** (top * i / 3 / 2595) - 1) for i in (1, 2))
    hz = np.arange(161) * 50.0
    first = np.interp(hz, [0, low, high], [0, 1, 0])
    second = np.interp(hz, [low, high, 8000], [0, 1, 0])
    np.testing.assert_allclose(bank, np.stack([first, second], 1), atol=1e-6)


def test_neighbouring_triangles_add_up_to_one():
    bank = mel.filterbank(mel.MelSettings(16_000, 2048, 512, 40))
    corners = mel.mel_to_hz(np.linspace(0, mel.hz_to_mel(8000), 42))
    hz = np.linspace(0, 8000, 1025)
    inside = (hz >= corners[1]) & (hz <= corners[-2])
    np.testing.assert_allclose(bank.sum(1)[inside], 1.0, atol=1e-5)


def test_every_band_hears_something():
    assert (mel.filterbank(mel.MelSettings(16_000, 640, 160, 128)).sum(0) > 0).all()


@pytest.mark.parametrize("hz", [200.0, 1000.0, 4000.0])
def test_a_tone_peaks_in_its_band(hz):
    t = np.arange(8000) / 16_000
    log_mel = np.asarray(mel.log_mel(np.sin(2 * np.pi * hz * t)[None].astype(np.float32), SETTINGS))[0, 25]
    corners = mel.mel_to_hz(np.linspace(0, mel.hz_to_mel(8000), 82))
    assert corners[log_mel.argmax()] <= hz <= corners[log_mel.argmax() + 2]


def test_griffin_lim_keeps_the_pitch_and_comes_closer_to_the_mel_with_every_pass():
    t = np.arange(16_000) / 16_000
    x = (0.2 * np.sin(2 * np.pi * 440 * t) + 0.1 * np.sin(2 * np.pi * 880 * t)).astype(np.float32)[None]
    log_mel = np.asarray(mel.log_mel(x, SETTINGS))
    loud = log_mel > np.log(0.1)

    def error(iterations):
        y = mel.invert(log_mel, dataclasses.replace(SETTINGS, iterations=iterations))
        assert y.shape == x.shape
        return y, np.abs(np.asarray(mel.log_mel(y, SETTINGS)) - log_mel)[loud].mean()

    y, last = error(32)
    spectrum = np.abs(np.fft.rfft(np.asarray(y)[0, 2000:14000]))
    assert abs(spectrum.argmax() * 16_000 / 12_000 - 440) < 12
    assert last < 0.7 * error(4)[1] < 0.7 * error(0)[1]


def test_invert_of_silence_is_silent():
    y = mel.invert(jnp.full((1, 20, 80), jnp.log(1e-3)), SETTINGS)
    assert float(jnp.abs(y).max()) < 1e-4


def test_settings_refuse_an_odd_overlap():
    with pytest.raises(ValueError, match="even multiple"):
        mel.MelSettings(16_000, 480, 160, 80)


def tiny_codec():
    settings = CodecSettings(n_mels=8, stack=2, width=16, latent=4, codebooks=3, codebook_size=8, voice=3, phones=5)
    codec = MelCodec(settings, rngs=nnx.Rngs(0))
    codec.codebooks[...] = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 4)), jnp.float32)
    return codec


def test_shift_moves_in_time():
    x = jnp.arange(4.0)[None, :, None]
    np.testing.assert_array_equal(shift(x, 1)[0, :, 0], [0, 0, 1, 2])
    np.testing.assert_array_equal(shift(x, -2)[0, :, 0], [2, 3, 0, 0])


def test_what_lies_beyond_the_mask_changes_nothing():
    codec = tiny_codec()
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, 20, 8)).astype(np.float32)
    noisy = x.copy()
    noisy[:, 12:] = 100.0
    mask = frame_mask(np.array([6]), 10)
    short = codec.encode(x[:, :12], mask[:, :6])
    np.testing.assert_array_equal(codec.encode(noisy, mask)[:, :6], short)
    np.testing.assert_allclose(codec.voice(noisy, mask), codec.voice(x[:, :12], mask[:, :6]), atol=1e-6)
    decoded = codec.decode(jnp.pad(short, ((0, 0), (0, 4), (0, 0))), mask)
    np.testing.assert_allclose(decoded[:, :12], codec.decode(short, mask[:, :6]), atol=1e-5)


def test_the_acoustic_stage_keeps_the_semantic_codes_and_completes_the_levels():
    codec = tiny_codec()
    stage = AcousticStage(AcousticSettings(16, (1, 2)), codec.settings, rngs=nnx.Rngs(0))
    semantic = jnp.asarray(np.random.default_rng(0).integers(8, size=(2, 5)))
    mask = frame_mask(np.array([5, 5]), 5)
    codes = stage.complete(semantic, codec.codebooks[...], mask, jnp.zeros((2, 3)))
    assert codes.shape == (2, 5, 3)
    np.testing.assert_array_equal(codes[..., 0], semantic)
    # Level by level, and of each the code with the least expected squared error, by brute force.
    vectors = np.asarray(codec.codebooks[...])
    for level in range(2):
        partial = sum(vectors[q][np.asarray(codes[..., q])] for q in range(level + 1))
        logits = stage(jnp.asarray(partial), jnp.full(2, level), mask, jnp.zeros((2, 3)))
        errors = np.square(vectors[level + 1][:, None] - vectors[level + 1][None]).sum(-1)
        expected = np.asarray(nnx.softmax(logits)) @ errors
        np.testing.assert_array_equal(codes[..., level + 1], expected.argmin(-1))


def test_the_acoustic_loss_is_that_of_the_choices_it_completes_with():
    codec = tiny_codec()
    stage = AcousticStage(AcousticSettings(16, (1, 2)), codec.settings, rngs=nnx.Rngs(0))
    target = jnp.asarray(np.random.default_rng(2).normal(size=(2, 20, 8)), jnp.float32)
    mask = frame_mask(np.array([10, 7]), 10)
    voice = codec.voice(target, mask)
    semantic = codec.encode(target, mask)[..., 0]
    codes = stage.complete(semantic, codec.codebooks[...], mask, voice)
    heard = np.asarray(codec.decode(codes, mask, voice))  # the tiny codec's standardization is the identity
    sounding = np.arange(20) < np.array([[20], [14]])
    loss, metrics = loss_fn(stage, codec, target, mask, 0.0)
    assert float(loss) == pytest.approx(np.abs(heard - target)[sounding].mean(), rel=1e-5)
    # The truth of a level is judged by what the chosen levels below leave over.
    latents, vectors = np.asarray(codec.latents(target, mask)), np.asarray(codec.codebooks[...])
    left, right = latents - vectors[0][np.asarray(semantic)], []
    for q in (1, 2):
        truth = np.square(left[:, :, None] - vectors[q]).sum(-1).argmin(-1)
        right.append((truth == np.asarray(codes[..., q]))[sounding[:, ::2]].mean())
        left = left - vectors[q][np.asarray(codes[..., q])]
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(right), abs=1e-6)


def test_bucketed_keeps_order_and_uses_a_bucket_of_the_items_own_length():
    seen = []

    def run(batch, lengths, indices):
        seen.append(batch.shape)
        return batch.sum(1, keepdims=True) + 0 * lengths[:, None]

    items = [np.full(n, i, np.float32) for i, n in enumerate([5, 2, 9, 1, 3] * 5)]
    results = batching.bucketed(run, items, [len(i) for i in items], (4, 10), 1)
    assert [float(r[0]) for r in results] == [float(i.sum()) for i in items]
    assert set(seen) == {(batching.BATCH, 4), (batching.BATCH, 10)}
    with pytest.raises(ValueError, match="does not fit"):
        batching.bucketed(run, items, [11] * len(items), (4, 10), 1)


def test_warped_frequencies_move_a_tone():
    bands = 80
    corners = mel.mel_to_hz(np.linspace(0, mel.hz_to_mel(8000), bands + 2))
    frame = np.zeros((2, 1, bands), np.float32)
    frame[:, :, 30] = 1.0
    warped = np.asarray(warp_frequency(jnp.asarray(frame), jnp.array([1.0, 1.25]), 16_000))
    np.testing.assert_allclose(warped[0], frame[0], atol=1e-4)
    moved = warped[1, 0].argmax()
    assert corners[moved] < corners[31] * 1.25 < corners[moved + 2]
