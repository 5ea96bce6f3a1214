"""The judge of music and YIN: on originals, on shuffled truth, on noise and on tones of known pitch."""

import warnings

import numpy as np
import pytest

from anygpt_jax.embedded import tunes
from anygpt_jax.errors import UserError
from anygpt_jax.modalities.base import Audio
from anygpt_jax.tasks.metrics import main_score, music, music_attributes, pitch
from anygpt_jax.tasks.metrics.sound import is_audible

RATE = 16_000


def _clips(split, per_instrument):
    rng = np.random.default_rng(0)
    clips, attributes = [], []
    for instrument in tunes.PROGRAMS:
        for i in range(per_instrument):
            tempo = list(tunes.NOTES_PER_SECOND)[i % 3]
            dance = list(tunes.RUNNING_NOTES_A_BAR)[int(rng.integers(3))]
            choice = tunes.tunes(split, dance)
            tune = choice[int(rng.integers(len(choice)))]
            audio, notes = tunes.render(tune, instrument, tempo)
            clips.append(audio)
            attributes.append(
                {"instrument": instrument, "tempo": tempo, "dance": dance, "key": tune.key, "notes": notes}
            )
    return clips, attributes


@pytest.fixture(scope="module")
def held_out():
    return _clips("test", 6)


@pytest.fixture(scope="module")
def judge():
    return music.MusicJudge.fit(*_clips("train", 24))


@pytest.fixture
def scored(judge):
    music.use_judge(lambda: judge)
    yield music_attributes
    music._in_use.clear()


def test_originals_of_unseen_tunes(scored, held_out):
    clips, attributes = held_out
    scores = scored(attributes, clips)
    assert scores["instrument"] >= 0.95
    assert scores["tempo"] >= 0.95
    assert scores["key"] > 0.5
    assert set(scores) == {"instrument", "tempo", "dance", "key", "tempo_within_10", "on_scale"}
    assert main_score(scores) == ("instrument", scores["instrument"], True)
    assert set(scored([{"instrument": "piano"}], clips[:1])) == {"instrument"}


def test_shuffled_truth_is_at_chance(scored, held_out):
    clips, attributes = held_out
    scores = scored(attributes[6:] + attributes[:6], clips)  # the next instrument, the same tempi
    assert scores["instrument"] <= 0.05
    assert scores["tempo"] >= 0.95


def test_noise_and_silence_score_nothing_systematic(scored, held_out):
    _, attributes = held_out
    rng = np.random.default_rng(0)
    noise = [Audio(rng.normal(0, 0.1, 64_000).astype(np.float32), RATE) for _ in attributes]
    assert scored(attributes, noise)["instrument"] <= 1 / 8 + 0.05
    silence = [Audio(np.zeros(64_000, np.float32), RATE)] * len(attributes)
    assert scored(attributes, silence)["instrument"] == 0.0
    assert scored(attributes[:1], [None])["instrument"] == 0.0


def test_loudness_and_sample_rate_do_not_matter(judge, held_out):
    clip, expected = held_out[0][8], judge.read(held_out[0][8:9])
    assert judge.read([Audio(clip.samples * 0.2, RATE)]) == expected
    finer = Audio(np.interp(np.arange(0, 64_000, 2 / 3), np.arange(64_000), clip.samples).astype(np.float32), 24_000)
    assert judge.read([finer])[0]["instrument"] == expected[0]["instrument"]


def test_judge_survives_saving(judge, held_out, tmp_path):
    judge.save(tmp_path / "judge.json")
    assert music.MusicJudge.load(tmp_path / "judge.json").read(held_out[0][:8]) == judge.read(held_out[0][:8])


def test_without_a_judge_the_error_names_the_remedy():
    music._in_use.clear()
    with pytest.raises(UserError, match="anygpt evaluate"):
        music_attributes([{"instrument": "piano"}], [Audio(np.ones(8000, np.float32), RATE)])


@pytest.mark.parametrize("midi", [55, 62.3, 69, 81, 93])
def test_yin_finds_the_pitch_of_a_tone_with_overtones(midi):
    hz = 440 * 2 ** ((midi - 69) / 12)
    time = np.arange(RATE) / RATE
    tone = sum(0.5**k * np.sin(2 * np.pi * hz * (k + 1) * time) for k in range(4))
    found = pitch.note_pitches(tone, RATE, np.array([0.1, 0.5]))
    np.testing.assert_allclose(found, midi, atol=0.2)  # semitones


def test_yin_hears_no_pitch_in_noise_silence_or_past_the_end():
    noise = np.random.default_rng(0).normal(0, 0.1, RATE)
    assert np.isnan(pitch.note_pitches(noise, RATE, np.array([0.1, 0.4]))).all()
    assert np.isnan(pitch.note_pitches(np.zeros(RATE), RATE, np.array([0.1, 0.99, 7.0]))).all()


def test_pitch_share_judges_only_notes_that_yin_hears_in_the_original(held_out):
    clips, attributes = held_out
    notes = [a["notes"] for a in attributes]
    own = np.array([pitch.pitch_share(n, c.samples, c.samples, RATE) for n, c in zip(notes, clips, strict=True)])
    assert (own[:, 0] == own[:, 1]).all()
    assert own[:, 1].sum() > 0.75 * sum(map(len, notes))
    other = np.array(
        [pitch.pitch_share(n, c.samples, d.samples, RATE) for n, c, d in zip(notes, clips, clips[1:], strict=False)]
    )
    assert other[:, 0].sum() < 0.35 * other[:, 1].sum()


def test_an_empty_clip_is_not_audible_and_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not is_audible(Audio(np.zeros(0, np.float32), RATE))
    assert is_audible(Audio(np.full(9, 2e-3, np.float32), RATE))
