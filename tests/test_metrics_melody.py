"""What is heard untrained: note rates and scales of made melodies of known notes, and of originals."""

import numpy as np
import pytest

from anygpt_jax.embedded import grammar, tunes
from anygpt_jax.modalities.base import Audio
from anygpt_jax.tasks.metrics import melody, pitch

RATE = 16_000
NAMES = ("c", "c sharp", "d", "e flat", "e", "f", "f sharp", "g", "a flat", "a", "b flat", "b")


def _melody(rate, pitches, lengths=(1,), seconds=4.0):
    """Plucked tones of four partials: `rate` a second, the lengths in units of that."""
    time = np.arange(int(seconds * RATE)) / RATE
    samples, onset, i = np.zeros(len(time)), 0.0, 0
    while onset < seconds:
        length = lengths[i % len(lengths)] / rate
        sounding = (time >= onset) & (time < onset + 0.9 * length)
        local = time[sounding] - onset
        hz = 440 * 2 ** ((pitches[i % len(pitches)] - 69) / 12)
        tone = sum(0.6**k * np.sin(2 * np.pi * hz * (k + 1) * local) for k in range(4))
        samples[sounding] += tone * np.exp(-3 * local) * np.minimum(local / 0.005, 1)
        onset, i = onset + length, i + 1
    return (samples / np.sqrt(np.mean(samples**2)) * 0.1).astype(np.float32)


def _yin_by_definition(frame, longest):
    """Steps 2 to 5 of the paper, lag by lag."""
    window = len(frame) - longest
    difference = [sum((frame[t] - frame[t + lag]) ** 2 for t in range(window)) for lag in range(longest + 1)]
    curve = [1.0]
    for lag in range(1, longest + 1):
        curve.append(difference[lag] * lag / sum(difference[1 : lag + 1]))
    for lag in range(2, longest):
        if curve[lag] < pitch.THRESHOLD:
            while lag + 1 < longest and curve[lag + 1] < curve[lag]:
                lag += 1
            a, b, c = curve[lag - 1 : lag + 2]
            return RATE / (lag + (a - c) / (2 * (a - 2 * b + c)))
    return np.nan


def test_yin_is_its_definition():
    rng = np.random.default_rng(0)
    longest = int(RATE / pitch.LOWEST_HZ)
    sound = _melody(5, (55, 62, 74, 81)) + rng.normal(0, 0.01, 4 * RATE)
    frames = np.stack([sound[start : start + 400] for start in range(800, 60_000, 7400)])
    expected = [_yin_by_definition(frame, longest) for frame in frames]
    assert np.isfinite(expected).sum() >= 5
    np.testing.assert_allclose(pitch.yin(frames, RATE), expected, rtol=1e-6)


@pytest.mark.parametrize("rate", [2.4, 2.7, 3.1, 3.6, 4.0, 4.7, 5.3, 6.0, 6.6])
@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1, 1, 2, 1, 1), (2, 1, 1, 1, 1, 1, 3, 1, 1, 1)])
def test_any_note_rate_is_measured_not_chosen_from_three(rate, lengths):
    # 23 notes, so that the melody itself has no other period.
    pitches = np.random.default_rng(0).integers(60, 80, 23)
    assert melody.note_rate(_melody(rate, pitches, lengths)) == pytest.approx(rate, rel=0.03)


def test_no_rate_in_silence_or_in_too_short_a_clip():
    assert np.isnan(melody.note_rate(np.zeros(4 * RATE, np.float32)))
    assert np.isnan(melody.note_rate(np.zeros(100, np.float32)))
    assert np.isfinite(melody.note_rate(_melody(5, (60, 64), seconds=1.5)))


@pytest.mark.parametrize("detuned", [0, 0.3, -0.4])
def test_pitch_classes_of_known_notes(detuned):
    pitches = np.array([60, 64, 67, 71, 65])
    heard = melody.pitch_classes(_melody(4, pitches + detuned))
    assert set(np.flatnonzero(heard)) == set(pitches % 12)
    np.testing.assert_allclose(heard / heard.sum(), np.bincount(pitches % 12, minlength=12) / 5, atol=0.06)


def test_scales_have_the_letters_of_their_key_signatures():
    spelled = {
        "c major": "c d e f g a b", "g major": "g a b c d e f+", "d major": "d e f+ g a b c+",
        "a major": "a b c+ d e f+ g+", "e major": "e f+ g+ a b c+ d+", "f major": "f g a b- c d e",
        "b flat major": "b- c d e- f g a", "e flat major": "e- f g a- b- c d", "a minor": "a b c d e f g g+",
        "e minor": "e f+ g a b c d d+", "b minor": "b c+ d e f+ g a a+", "d minor": "d e f g a b- c c+",
        "g minor": "g a b- c d e- f f+",
    }  # fmt: skip
    assert set(spelled) == set(grammar.KEYS)
    names = dict(zip(["c", "d", "e", "f", "g", "a", "b"], (0, 2, 4, 5, 7, 9, 11), strict=True))
    for key, notes in spelled.items():
        classes = [(names[n[0]] + {"+": 1, "-": -1}.get(n[1:], 0)) % 12 for n in notes.split()]
        assert melody.scale(key) == classes


def test_scores_by_hand():
    tunes_ = [
        {"tempo": "medium", "key": "c major"}, {"tempo": "fast", "key": "d major"}, {"instrument": "piano"}
    ]  # fmt: skip
    clip = Audio(_melody(tunes.NOTES_PER_SECOND["medium"], (60, 62, 64, 65, 67)), RATE)
    scores = melody.melody_scores(tunes_, [clip] * 3)
    heard = melody.pitch_classes(clip.samples)
    assert scores["tempo_within_10"] == 0.5
    # The f is not on the scale of d major, nor is the c.
    assert scores["on_scale"] == pytest.approx(1 - (heard[0] + heard[5]) / heard.sum() / 2)
    assert melody.melody_scores(tunes_[2:], [clip]) == {}
    silent = [None, Audio(np.zeros(RATE, np.float32), RATE)]
    assert melody.melody_scores(tunes_[:2], silent) == {"tempo_within_10": 0.0, "on_scale": 0.0}
    noise = Audio(np.random.default_rng(0).normal(0, 0.1, 4 * RATE).astype(np.float32), RATE)
    assert melody.melody_scores(tunes_[:1], [noise])["on_scale"] == 0.0


def test_originals_of_every_instrument():
    rng = np.random.default_rng(0)
    targets, clips = [], []
    for instrument in tunes.PROGRAMS:
        for i in range(9):
            tempo, dance = list(tunes.NOTES_PER_SECOND)[i % 3], list(tunes.RUNNING_NOTES_A_BAR)[i // 3]
            choice = tunes.tunes("test", dance)
            tune = choice[int(rng.integers(len(choice)))]
            tune = tunes.transpose(tune, rng.choice([k for k in grammar.KEYS if k.split()[-1] == tune.key.split()[-1]]))
            clips.append(tunes.render(tune, instrument, tempo)[0])
            targets.append({"instrument": instrument, "tempo": tempo, "key": tune.key})
    scores = melody.melody_scores(targets, clips)
    assert scores["tempo_within_10"] > 0.8
    assert scores["on_scale"] > 0.95
    for instrument in tunes.PROGRAMS:
        of = [i for i, t in enumerate(targets) if t["instrument"] == instrument]
        assert melody.melody_scores([targets[i] for i in of], [clips[i] for i in of])["on_scale"] > 0.9
    in_every_key = [melody.melody_scores([t | {"key": k} for t in targets], clips)["on_scale"] for k in grammar.KEYS]
    assert np.mean(in_every_key) < 0.75
    # The next tempo's clips.
    assert melody.melody_scores(targets[1:] + targets[:1], clips)["tempo_within_10"] < 0.2
