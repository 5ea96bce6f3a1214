"""Scenes, voices and tunes: what is rendered is what the attributes say."""

import itertools
import time
from fractions import Fraction

import numpy as np
import pytest

from anygpt_jax.embedded import abc_notation, assets, grammar, scenes, tunes, voices
from anygpt_jax.embedded.splits import pair_split
from anygpt_jax.errors import UserError


def test_attributes_can_be_read_back_from_the_pixels():
    rng = np.random.default_rng(0)
    for _ in range(40):
        attributes = scenes.sample(rng)
        image = scenes.render(attributes).astype(int)
        assert image.shape == (72, 72, 3)
        pixels, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
        ground = pixels[counts.argmax()]
        assert tuple(ground) == scenes.COLOURS[attributes["colour"]]
        rows, columns = np.nonzero((image != ground).any(-1))
        row, column = scenes.offset(attributes["size"], attributes["place"])
        side = scenes.SIZES[attributes["size"]]
        # The drawing fills its square one way at least, so that the box tells size and place.
        assert row <= rows.min() <= rows.max() < row + side
        assert column <= columns.min() <= columns.max() < column + side
        assert max(np.ptp(rows), np.ptp(columns)) >= side - 6
        errors = {
            o: np.abs(scenes.render({**attributes, "object": o}).astype(int) - image).sum() for o in scenes.OBJECTS
        }
        assert [o for o, e in errors.items() if e == 0] == [attributes["object"]]


def test_places_are_on_the_patch_grid():
    for size in scenes.SIZES:
        offsets = {scenes.offset(size, place) for place in scenes.PLACES}
        assert len(offsets) == 9
        assert all(r % 12 == 0 and c % 12 == 0 for r, c in offsets)


def test_artists_draw_differently():
    scene = {"object": "fox", "colour": "blue", "size": "large", "place": "center"}
    ours, theirs = (scenes.render(scene, artist).astype(float) for artist in scenes.ARTISTS)
    assert np.abs(ours - theirs).mean() > 5
    assert (ours[0, 0] == theirs[0, 0]).all()


def test_pairs_of_splits_are_disjoint_and_cover_everything():
    found = {split: set(scenes.pairs(split)) for split in ("train", "validation", "test")}
    assert sum(map(len, found.values())) == len(scenes.OBJECTS) * len(scenes.COLOURS)
    assert len(set.union(*found.values())) == sum(map(len, found.values()))
    assert 0.10 < len(found["test"]) / len(scenes.OBJECTS) / 8 < 0.20
    assert found["validation"]
    # Each object and each colour is seen in training.
    assert {o for o, _ in found["train"]} == set(scenes.OBJECTS)
    assert {c for _, c in found["train"]} == set(scenes.COLOURS)
    rng = np.random.default_rng(0)
    assert all(pair_split(s["object"], s["colour"]) == "test" for s in (scenes.sample(rng, "test") for _ in range(50)))


def test_a_held_out_pair_is_not_drawn_for_training():
    held_out, colour = scenes.pairs("test")[0]
    with pytest.raises(ValueError, match="no pair"):
        scenes.sample(np.random.default_rng(0), "train", object=held_out, colour=colour)


@pytest.mark.parametrize("voice", [n for role in ("tts", "asr", "held_out") for n in voices.names(role)])
def test_a_voice_is_deterministic_level_and_trimmed(voice):
    sound = voices.synthesize("a small fox on blue", voice)
    assert (sound.sample_rate, sound.samples.dtype) == (16_000, np.float32)
    assert 0.8 < sound.seconds < 2.5
    assert np.sqrt(np.mean(sound.samples**2)) == pytest.approx(voices.LEVEL, rel=0.05)
    margin = int(voices.MARGIN * 16_000)
    assert not np.concatenate([sound.samples[:margin], sound.samples[-margin:]]).any()
    # Not even the clock or an utterance between may change it.
    second = int(time.time())
    while int(time.time()) == second:
        time.sleep(0.02)
    voices.synthesize("good morning", voice)
    np.testing.assert_array_equal(sound.samples, voices.synthesize("a small fox on blue", voice).samples)


def test_flac_keeps_the_sound(tmp_path):
    import soundfile

    sound = voices.synthesize("good morning how are you", "ben")
    path = tmp_path / "a.flac"
    path.write_bytes(voices.encode_flac(sound))
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000
    np.testing.assert_allclose(samples, sound.samples, atol=2 / 32768)


def test_roles_of_voices_do_not_mix():
    roles = [set(voices.names(role)) for role in ("tts", "asr", "held_out")]
    assert sum(map(len, roles)) == len(voices.VOICES)
    assert len(roles[2]) == 1
    assert all(voices.VOICES[n].engine == "hibari" for n in roles[0])
    with pytest.raises(UserError, match="Unknown voice 'zoe'"):
        voices.synthesize("hello", "zoe")


@pytest.mark.slow
@pytest.mark.parametrize("voice", ["ada", "ben", "cleo", "dora", "espeak-eva", "espeak-flo"])
def test_an_independent_recognizer_understands(voice, tmp_path):
    from anygpt_jax.embedded import automaton, sentences

    jiwer, pocketsphinx = pytest.importorskip("jiwer"), pytest.importorskip("pocketsphinx")
    path = tmp_path / "world.fsg"
    path.write_text(automaton.to_fsg(sentences.recognizer()))
    decoder = pocketsphinx.Decoder(fsg=str(path), samprate=16000, lm=None, loglevel="FATAL")
    said = [s.text for s in sentences.sample("test", 6, np.random.default_rng(3))]
    heard = []
    for text in said:
        padded = np.pad(voices.synthesize(text, voice).samples, 4000)
        decoder.start_utt()
        decoder.process_raw((np.clip(padded * 3, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        heard.append(decoder.hyp().hypstr if decoder.hyp() else "")
    assert jiwer.wer(said, heard) <= 0.12


def quarters(text: str) -> list[tuple[float, float, int]]:
    return [(float(n.onset) * 4, float(n.duration) * 4, n.pitch) for n in abc_notation.parse_notes(text)]


def test_abc_pitches_follow_the_key_and_accidentals_last_a_bar():
    notes = quarters("X:1\nT:t\nM:4/4\nL:1/4\nK:D\nF C ^G G | G =F F, c' |")
    # In D, F and C are sharp; ^G lasts to the bar line; = holds for its octave only.
    assert [p for _, _, p in notes] == [66, 61, 68, 68, 67, 65, 54, 85]
    assert [o for o, _, _ in notes] == list(range(8))


@pytest.mark.parametrize(
    ("key", "altered", "name"),
    [
        ("Bb", {"B": -1, "E": -1}, "b flat major"), ("Em", {"F": 1}, "e minor"), ("A Minor", {}, "a minor"),
        ("Ador", {"F": 1}, None), ("Gmix", {}, None), ("E", {"F": 1, "C": 1, "G": 1, "D": 1}, "e major"),
        ("F#m", {"F": 1, "C": 1, "G": 1}, "f sharp minor"), ("Amin", {}, "a minor"),
    ],
)  # fmt: skip
def test_abc_keys(key, altered, name):
    assert abc_notation.Key.parse(key).signature == altered
    assert abc_notation.Key.parse(key).name == name


@pytest.mark.parametrize(
    ("music", "lengths"),
    [
        ("A2 A/ A3/2 A//", [1, 0.25, 0.75, 0.125]),  # L: is an eighth
        ("A>B c<d", [0.75, 0.25, 0.25, 0.75]),
        ("(3ABc d2", [1 / 3] * 3 + [1]),
        ("A2-A z B", [1.5, 0.5]),
        ('{g}A "Am"B !trill!c vd ~e', [0.5] * 5),
        ("[Ac]2 d", [1, 0.5]),
        ("|: A B :|[1 c d :|[2 e |]", [0.5] * 5),
    ],
)
def test_abc_rhythm(music, lengths):
    notes = quarters(f"X:1\nM:4/4\nL:1/8\nR:reel\nK:C\n{music}\n")
    assert [d for _, d, _ in notes] == pytest.approx(lengths)
    assert all(b[0] >= a[0] + a[1] - 1e-9 for a, b in itertools.pairwise(notes))


@pytest.mark.parametrize("spelled", [str.lower, str.upper, str.capitalize])
@pytest.mark.parametrize("degree", range(7))
def test_abc_modes_are_rotations_of_the_major_scale_in_either_case(degree, spelled):
    mode = ("ionian", "dorian", "phrygian", "lydian", "mixolydian", "aeolian", "locrian")[degree]
    major = [0, 2, 4, 5, 7, 9, 11]
    steps = {(s - major[degree]) % 12 for s in major}
    short = [mode, mode[:3], *{"ionian": ["", "major"], "aeolian": ["m", "minor"]}.get(mode, [])]
    for tonic, pitch in abc_notation.STEPS.items():
        for name in short:  # capitalisation is ignored for the modes, of which three letters count; minor is m
            altered = abc_notation.Key.parse(tonic + spelled(name)).signature
            scale = {(p + altered.get(step, 0)) % 12 for step, p in abc_notation.STEPS.items()}
            assert scale == {(pitch + s) % 12 for s in steps}, (tonic, name)
            assert len(altered) <= 7


def test_abc_a_later_unit_counts_and_a_later_meter_changes_none():
    notes = quarters("X:1\nM:2/4\nK:C\nA [L:1/4] A\nL:1/2 % half\nA\nM:4/4\nA [M:6/8] A\n")
    assert [d for _, d, _ in notes] == [0.25, 1, 2, 2, 2]


@pytest.mark.parametrize(
    "text",
    ["M:4/4\nL:1/0\nK:C\nA", "M:2/0\nK:C\nA", "M:0/4\nK:C\nA", "L:x\nK:C\nA", "L:0\nK:C\nA", "L:-1/8\nK:C\nA"]
    + [f"M:4/4\nK:C\n{music}" for music in ("A [L:x] B", "A [L:1/0] B", "A [L:] B", "A\nL:0/8\nB", "(0AB", "(3:0ABc")]
    + ["M:4/4\nK:C\nA [K:H] B", "L:1e5\nK:C\nA", f"M:{'9' * 5000}/4\nK:C\nA"],
)
def test_abc_fields_without_sense_are_an_error_of_the_reader(text):
    with pytest.raises(abc_notation.AbcError):
        abc_notation.parse_notes("X:1\n" + text)


def test_abc_without_key_or_notes_is_an_error():
    for text in ("X:1\nM:4/4\nABC", "X:1\nM:4/4\nK:C\n|z4|"):
        with pytest.raises(abc_notation.AbcError):
            abc_notation.parse_notes(text)


def test_the_collection_is_read():
    everything = tunes.load_tunes()
    assert len(everything) > 700
    reel = next(t for t in everything if t.name == "AcaciaReel")
    assert (reel.key, reel.dance, reel.bar) == ("g major", "reel", Fraction(1, 2))
    # The opening "((3DEF)|G2GA BcdB" by hand.
    assert [n.pitch for n in reel.notes[:10]] == [62, 64, 66, 67, 67, 69, 71, 72, 74, 71]
    assert all(50 <= n.pitch <= 95 for t in everything for n in t.notes)


def test_tunes_of_splits_share_no_opening():
    openings = {s: {t.opening for t in tunes.load_tunes() if t.split == s} for s in ("train", "validation", "test")}
    assert not openings["train"] & (openings["test"] | openings["validation"])
    assert all(tunes.tunes(s, d) for s in openings for d in tunes.RUNNING_NOTES_A_BAR)


def test_a_tune_in_another_key_is_the_same_melody():
    for tune in tunes.tunes("train", "reel")[:40]:
        mode = tune.key.split()[-1]
        for key in (k for k in grammar.KEYS if k.endswith(mode)):
            moved = tunes.transpose(tune, key)
            steps = {b.pitch - a.pitch for a, b in zip(tune.notes, moved.notes, strict=True)}
            assert len(steps) == 1 and abs(steps.pop()) <= 6 and moved.opening == tune.opening
            assert [n.onset for n in moved.notes] == [n.onset for n in tune.notes]
            # The scale of a key, written out: the share of notes on it is that of the original.
            assert on_scale(moved) == pytest.approx(on_scale(tune))


SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 11)
}  # fmt: skip
NAMES = ("c", "c sharp", "d", "e flat", "e", "f", "f sharp", "g", "a flat", "a", "b flat", "b")


def on_scale(tune):
    tonic, mode = tune.key.rsplit(" ", 1)
    scale = {(NAMES.index(tonic) + step) % 12 for step in SCALES[mode]}
    return sum(n.pitch % 12 in scale for n in tune.notes) / len(tune.notes)


def test_a_transposed_copy_stays_in_its_split():
    import dataclasses

    tune = tunes.load_tunes()[0]
    higher = tuple(dataclasses.replace(n, pitch=n.pitch + 2) for n in tune.notes)
    assert dataclasses.replace(tune, notes=higher).opening == tune.opening


def test_a_clip_sounds_the_notes_it_lists():
    tune = tunes.tunes("train", "reel")[0]
    sound, notes = tunes.render(tune, "flute", "slow")
    assert (sound.samples.shape, sound.sample_rate) == ((64_000,), 16_000)
    long = [n for n in tunes.clip_notes(tune, "slow") if n[1] > 0.3]
    assert len(long) >= 4
    assert {(o, p) for o, _, p in long} <= set(notes)
    for onset, duration, pitch in long:
        middle = int((onset + duration / 2) * 16_000)
        piece = sound.samples[middle - 2048 : middle + 2048] * np.hanning(4096)
        spectrum = np.abs(np.fft.rfft(piece, 1 << 16))
        hz = np.argmax(spectrum * (np.arange(len(spectrum)) > 400)) * 16_000 / (1 << 16)
        heard = 69 + 12 * np.log2(hz / 440)
        assert min(abs(heard - pitch), abs(heard - pitch - 12)) < 0.5


def test_tempo_scales_the_onsets():
    tune = tunes.tunes("train", "jig")[0]
    slow, fast = (tunes.clip_notes(tune, tempo) for tempo in ("slow", "fast"))
    ratio = tunes.NOTES_PER_SECOND["fast"] / tunes.NOTES_PER_SECOND["slow"]
    assert len(fast) > 1.8 * len(slow)
    assert slow[3][0] == pytest.approx(fast[3][0] * ratio, abs=1e-3)


def test_a_clip_does_not_depend_on_what_was_played_before():
    a, b = tunes.tunes("train", "reel")[:2]
    first = tunes.render(a, "violin", "fast")[0].samples
    tunes.render(b, "accordion", "slow")
    np.testing.assert_array_equal(first, tunes.render(a, "violin", "fast")[0].samples)


def test_instruments_sound_different():
    tune = tunes.tunes("train", "reel")[0]
    sounds = [tunes.render(tune, name, "medium")[0].samples for name in tunes.PROGRAMS]
    for i, a in enumerate(sounds):
        assert all(np.abs(a - b).mean() > 0.01 for b in sounds[i + 1 :])
    assert set(tunes.PROGRAMS) == set(scenes.INSTRUMENTS)


@pytest.mark.parametrize("module", sorted(assets.PIP_NAMES))
def test_a_missing_package_is_named_with_its_remedy(module, monkeypatch):
    monkeypatch.setattr(assets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"pip install --no-deps {assets.PIP_NAMES[module]}"):
        assets.require(module)
