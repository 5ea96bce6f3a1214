"""The pitch of a voice against tones whose pitch is known, and whose voice a prompted output has."""

import numpy as np
import pytest

from anygpt_jax.modalities.base import Audio
from anygpt_jax.modalities.codecs import measure
from anygpt_jax.modalities.codecs.data import Sound

RATE = 16_000


def buzz(hz: float) -> np.ndarray:
    """Half a second of a harmonic tone whose fundamental is weaker than its overtones, as a vowel's may be."""
    t = np.arange(RATE // 2) / RATE
    return sum(a * np.sin(2 * np.pi * hz * k * t + k) for k, a in enumerate([0.3, 1.0, 0.6, 0.4], 1)) * 0.1


@pytest.mark.parametrize("hz", [85.0, 130.0, 210.0, 330.0])
def test_median_f0_is_that_of_a_tone(hz):
    assert measure.median_f0(buzz(hz)) == pytest.approx(hz, rel=0.02)


def test_median_f0_passes_over_silence_and_finds_none_in_noise():
    assert measure.median_f0(np.concatenate([np.zeros(RATE), buzz(150.0)])) == pytest.approx(150, rel=0.02)
    assert np.isnan(measure.median_f0(np.random.default_rng(0).normal(size=RATE)))
    assert np.isnan(measure.median_f0(np.zeros(10)))


class Parrot:
    """Says the sound that its codes number: in the voice of the prompt, or as it was."""

    def __init__(self, obedient):
        self.obedient, self.sounds = obedient, []

    def encode(self, media):
        self.sounds = list(media)
        return [np.array([i]) for i in range(len(media))]

    def decode(self, codes, prompt):
        return [prompt if self.obedient else self.sounds[int(code[0])] for code in codes]


@pytest.mark.parametrize("obedient", [True, False])
def test_voice_choice_tells_who_speaks(obedient):
    said = [("low", 120.0), ("low", 126.0), ("low", 123.0), ("high", 240.0), ("high", 252.0), ("high", 246.0)]
    sounds = [Sound(str(i), buzz(hz), "", {"voice": name}) for i, (name, hz) in enumerate(said)]
    found = measure.voice_choice(Parrot(obedient), sounds, count=2)
    assert found["n"] == 4
    assert found["nearer_to_it_than_to_the_source"] == float(obedient)
    octave = 0.0 if obedient else 12.0
    assert found["semitones_from_the_prompts_voice"] == pytest.approx(octave, abs=0.6)
    assert measure.voice_choice(Parrot(obedient), sounds[:3]) == {}


def test_prompts_are_audio_at_the_working_rate():
    asked = []

    class Listener(Parrot):
        def decode(self, codes, prompt):
            asked.append(prompt)
            return super().decode(codes, prompt)

    sounds = [Sound("0", buzz(120.0), "", {"voice": "low"}), Sound("1", buzz(240.0), "", {"voice": "high"})]
    measure.voice_choice(Listener(True), sounds)
    assert all(isinstance(p, Audio) and p.sample_rate == RATE for p in asked)
    np.testing.assert_array_equal([measure.median_f0(p.samples) > 180 for p in asked], [True, False])  # high, low
