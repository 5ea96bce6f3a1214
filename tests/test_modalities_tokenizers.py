"""The shipped image, speech and music tokenizers: what every modality promises, and what they still convey."""

import hashlib
import io
import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from anygpt_jax.errors import UserError
from anygpt_jax.modalities import base
from anygpt_jax.modalities.base import Audio
from anygpt_jax.modalities.codecs import cards, weights
from anygpt_jax.modalities.text import TextTokenizer

NAMES = ("image", "speech", "music")


def media(name, count, seed=0):
    """Media of different lengths that are neither silent nor all alike."""
    rng = np.random.default_rng(seed)
    if name == "image":
        return [rng.integers(256, size=(72, 72, 3), dtype=np.uint8) for _ in range(count)]
    sounds = []
    for _ in range(count):
        t = np.arange(rng.integers(8_000, 60_000)) / 16_000
        glide = np.sin(2 * np.pi * np.cumsum(rng.uniform(100, 900) * (1 + 0.3 * np.sin(6 * t))) / 16_000)
        sounds.append(Audio((0.2 * glide + 0.01 * rng.normal(size=len(t))).astype(np.float32), 16_000))
    return sounds


def random_codes(grammar, rng):
    """A random sentence of the grammar, of a random allowed length."""
    lengths = [n for n in range(grammar.min_length, grammar.max_length + 1) if grammar.may_end(n)]
    length = int(rng.choice(lengths))
    return np.array([rng.integers(*grammar.allowed(i)) for i in range(length)], np.int32)


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_protocol(name):
    tokenizer = base.get(name)
    assert isinstance(tokenizer, base.ModalityTokenizer)
    assert tokenizer.name == name and tokenizer.rate > 0 and len(tokenizer.fingerprint) == 64
    ranges = (*tokenizer.grammar.prefix, *tokenizer.grammar.cycle)
    assert min(r[0] for r in ranges) == 0 and max(r[1] for r in ranges) == tokenizer.codebook_size


@pytest.mark.parametrize("name", NAMES)
def test_whatever_the_grammar_allows_decodes_and_reads_back(name):
    tokenizer = base.get(name)
    rng = np.random.default_rng(0)
    codes = [random_codes(tokenizer.grammar, rng) for _ in range(5)]
    decoded = tokenizer.decode(codes)
    for row, one in zip(codes, decoded, strict=True):
        assert tokenizer.grammar.problem(row) is None
        if name == "image":
            assert one.shape == (72, 72, 3) and one.dtype == np.uint8
        else:
            assert one.samples.dtype == np.float32 and np.isfinite(one.samples).all()
            assert one.seconds == pytest.approx(len(row) / tokenizer.rate)
    again = tokenizer.load(tokenizer.save(decoded[0]))
    if name == "image":
        np.testing.assert_array_equal(again, decoded[0])
    else:
        np.testing.assert_allclose(again.samples, np.clip(decoded[0].samples, -1, 1), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_grammar_forbids_does_not_decode(name):
    tokenizer = base.get(name)
    good = random_codes(tokenizer.grammar, np.random.default_rng(1))
    for bad in (good[:-1][:1], np.full_like(good, tokenizer.codebook_size), -1 - good):
        with pytest.raises(ValueError, match="cannot be decoded"):
            tokenizer.decode([bad])


@pytest.mark.parametrize("name", NAMES)
def test_codes_do_not_depend_on_the_batch(name):
    tokenizer = base.get(name)
    items = media(name, 11)
    together = tokenizer.encode(items)
    backwards = tokenizer.encode(items[::-1])[::-1]
    for i, (item, codes, other) in enumerate(zip(items, together, backwards, strict=True)):
        assert codes.dtype == np.int32 and tokenizer.grammar.problem(codes) is None
        np.testing.assert_array_equal(codes, other)
        if i in (0, 5, 10):
            np.testing.assert_array_equal(codes, tokenizer.encode([item])[0])
    one, two, many = (tokenizer.decode(together[:n])[0] for n in (1, 2, len(together)))
    if name == "image":
        np.testing.assert_array_equal(one, many)
    else:
        np.testing.assert_allclose(two.samples, many.samples, atol=1e-6)
        # Alone it goes through another program, and Griffin-Lim's turns make more of what is rounded otherwise.
        difference = np.std(one.samples - many.samples) / np.std(many.samples)
        assert difference < 1e-2  # 40 dB


@pytest.mark.parametrize("name", NAMES)
def test_no_media_is_no_codes(name):
    assert base.get(name).encode([]) == [] and base.get(name).decode([]) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_card_describes_the_weights_and_the_recipe(name):
    from anygpt_jax.cli import load_config

    card = json.loads((weights.SHIPPED / f"{name}.json").read_text())
    tensors, settings = weights.read(weights.SHIPPED / f"{name}.safetensors")
    if name == "speech":  # whose second stage decides no code
        tensors = {key: x for key, x in tensors.items() if not key.startswith("acoustic.")}
        settings = {key: x for key, x in settings.items() if key != "acoustic"}
    assert card["fingerprint"] == weights.fingerprint(tensors, settings) == base.get(name).fingerprint
    config = load_config(f"configs/tokenizer_{name}.py")
    recipe = json.loads(json.dumps(cards.recipe(config)))
    assert recipe == card["recipe"], "the shipped weights come from another recipe"
    assert card["quality"]["test"]["n"] >= 90


def test_another_measurement_leaves_what_made_the_weights(tmp_path, monkeypatch):
    from anygpt_jax.cli import load_config

    path = tmp_path / "image.json"
    path.write_bytes((weights.SHIPPED / "image.json").read_bytes())
    config = load_config("configs/tokenizer_image.py")
    config.output, config.steps, config.codec.latent = str(tmp_path), 1, 7
    monkeypatch.setattr(cards, "quality", lambda config: {"test": {"n": 1}})
    monkeypatch.setattr(cards.data, "find", lambda folder: tmp_path / "another_world" / "1.0.0")
    cards.evaluate(config)
    before, after = (json.loads((folder / "image.json").read_text()) for folder in (weights.SHIPPED, tmp_path))
    assert after == {**before, "quality": {"test": {"n": 1}}}
    digest = hashlib.sha256(json.dumps(after["recipe"], sort_keys=True).encode()).hexdigest()
    assert after["recipe_fingerprint"] == digest and after["recipe"]["steps"] > 1
    path.unlink()
    with pytest.raises(UserError, match="train the tokenizer first"):
        cards.evaluate(config)


def test_shipped_quality_passes_the_gates():
    quality = {name: json.loads((weights.SHIPPED / f"{name}.json").read_text())["quality"]["test"] for name in NAMES}
    assert quality["image"]["attributes"] >= 0.95 and quality["image"]["psnr_db"] >= 25
    assert quality["speech"]["wer"]["semantic"] <= 0.12
    assert quality["music"]["instrument"] >= 0.95 and quality["music"]["pitch"] >= 0.88


def test_the_fingerprint_sees_weights_and_settings():
    tensors = {"a": np.ones(3, np.float32)}
    first = weights.fingerprint(tensors, {"n": 1})
    assert first == weights.fingerprint({"a": np.ones(3, np.float32)}, {"n": 1})
    assert first != weights.fingerprint({"a": np.array([1, 1, 2], np.float32)}, {"n": 1})
    assert first != weights.fingerprint({"b": tensors["a"]}, {"n": 1})
    assert first != weights.fingerprint(tensors, {"n": 2})


def test_missing_or_foreign_weights_are_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="No tokenizer weights"):
        weights.read(tmp_path / "image.safetensors")
    (tmp_path / "image.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="not a file of tokenizer weights"):
        weights.read(tmp_path / "image.safetensors")


# --- What is conveyed -------------------------------------------------------------------------------------------------


def test_held_out_scenes_keep_their_attributes():
    from anygpt_jax.embedded import scenes
    from anygpt_jax.tasks.metrics.image import image_attributes

    rng = np.random.default_rng(3)
    attributes = [scenes.sample(rng, "test") for _ in range(16)]
    tokenizer = base.get("image")
    decoded = tokenizer.decode(tokenizer.encode([scenes.render(a) for a in attributes]))
    assert image_attributes(attributes, decoded)["attributes"] >= 0.95


def test_patch_codes_do_not_know_the_ground():
    from anygpt_jax.embedded import scenes

    tokenizer = base.get("image")
    shown = {"object": "robot", "size": "large", "place": "center"}
    codes = np.stack(tokenizer.encode([scenes.render(shown | {"colour": c}) for c in scenes.COLOURS]))
    assert len(np.unique(codes[:, 0])) == len(scenes.COLOURS)
    most_common = np.array([np.bincount(column).argmax() for column in codes[:, 1:].T])
    assert (codes[:, 1:] == most_common).mean() >= 0.95


def test_held_out_speech_is_understood_from_the_semantic_codes_alone():
    from anygpt_jax.embedded import sentences, voices
    from anygpt_jax.tasks.metrics.speech import speech_word_error_rate

    said = sentences.sample("test", 6, np.random.default_rng(5))
    spoken = [voices.synthesize(s.text, voice) for s, voice in zip(said, ("ada", "ben", "cleo") * 2, strict=True)]
    tokenizer = base.get("speech")
    decoded = tokenizer.decode(tokenizer.encode(spoken))
    assert speech_word_error_rate([{"text": s.text} for s in said], decoded)["wer"] <= 0.15


def test_a_prompt_gives_the_voice():
    from anygpt_jax.embedded import voices

    tokenizer = base.get("speech")
    text = "the weather is nice today"
    codes = tokenizer.encode([voices.synthesize(text, "ada")])

    def average_spectrum(sound):
        """The long-term spectrum in 62.5 Hz bins, in nats: what is left of a sound without its words."""
        frames = sound.samples[: len(sound.samples) // 256 * 256].reshape(-1, 256)
        return np.log(np.abs(np.fft.rfft(frames * np.hanning(256))).mean(0) + 1e-3)

    spoken = {name: average_spectrum(voices.synthesize(text, name)) for name in ("ben", "cleo")}
    decoded = {
        name: tokenizer.decode(codes, prompt=voices.synthesize("good morning how are you", name))[0] for name in spoken
    }
    for name, other in (("ben", "cleo"), ("cleo", "ben")):
        own, foreign = (np.abs(average_spectrum(decoded[name]) - spoken[n]).mean() for n in (name, other))
        assert own < foreign, f"the voice of {name} came out nearer to {other}"
    acoustic = tokenizer.decode(codes, acoustic=True)[0]
    assert len(acoustic.samples) == len(decoded["ben"].samples)


def test_music_keeps_its_pitch():
    from anygpt_jax.embedded import tunes
    from anygpt_jax.tasks.metrics.pitch import pitch_share

    tune = tunes.tunes("test", "reel")[0]
    tokenizer = base.get("music")
    right = judged = 0
    for instrument in ("flute", "piano", "violin"):
        clip, notes = tunes.render(tune, instrument, "slow")
        assert clip.seconds * tokenizer.rate == 100
        decoded = tokenizer.decode(tokenizer.encode([clip]))[0]
        kept, of = pitch_share(notes, clip.samples, decoded.samples, 16_000)
        right, judged = right + kept, judged + of
    assert judged >= 15 and right / judged >= 0.85


# --- Bad and unusual input --------------------------------------------------------------------------------------------


def png(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_images_of_other_modes_and_sizes():
    tokenizer = base.get("image")
    grey = tokenizer.load(png(Image.new("L", (100, 40), 90)))
    assert grey.shape == (40, 100, 3) and (grey == 90).all()
    clear = tokenizer.load(png(Image.new("RGBA", (10, 10), (255, 0, 0, 0))))
    assert (clear == 255).all()
    assert [len(c) for c in tokenizer.encode([grey, clear, np.zeros((1, 1, 3), np.uint8)])] == [37, 37, 37]


def test_damaged_images_are_user_errors():
    tokenizer = base.get("image")
    whole = png(Image.fromarray(media("image", 1)[0]))
    for data, message in ((b"", "empty"), (whole[: len(whole) // 2], "cut short"), (b"hello", "not an image")):
        with pytest.raises(UserError, match=message):
            tokenizer.load(data)
    with pytest.raises(UserError, match="uint8"):
        tokenizer.encode([np.zeros((5, 5))])


def wav(samples, rate=16_000, kind="WAV"):
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind)
    return out.getvalue()


@pytest.mark.parametrize("name", ["speech", "music"])
def test_damaged_sounds_are_user_errors(name):
    tokenizer = base.get(name)
    whole = wav(np.random.default_rng(0).normal(size=32_000) * 0.1)
    flac = wav(np.random.default_rng(0).normal(size=32_000) * 0.1, kind="FLAC")
    cases = (
        (b"", "empty"), (whole[: len(whole) // 2], "cut short"), (flac[: len(flac) // 2], "cut short|not a sound"),
        (b"hello", "not a sound"), (wav(np.zeros(16)), "give at least"), (wav(np.zeros(200_000)), "cut it first"),
    )  # fmt: skip
    for data, message in cases:
        with pytest.raises(UserError, match=message):
            tokenizer.load(data)
    assert (
        tokenizer.grammar.problem(tokenizer.encode([tokenizer.clip(Audio(np.zeros(200_000, np.float32), 16_000))])[0])
        is None
    )


def test_stereo_and_other_rates_become_mono_at_16_khz():
    t = np.arange(44_100) / 44_100
    tone = 0.3 * np.sin(2 * np.pi * 440 * t)
    sound = base.get("music").load(wav(np.stack([tone, np.zeros_like(tone)], 1), 44_100))
    assert sound.sample_rate == 16_000 and abs(len(sound.samples) - 16_000) <= 1
    spectrum = np.abs(np.fft.rfft(sound.samples))
    assert spectrum.argmax() == 440
    assert np.abs(sound.samples[4000:12000]).max() == pytest.approx(0.15, rel=0.02)
    # The rate of `Audio` is honoured by encode too.
    same = base.get("music").encode([Audio(tone.astype(np.float32), 44_100)])[0]
    assert len(same) == 13 * 2


def test_text_has_every_word_of_the_world_as_one_piece():
    from anygpt_jax.embedded import sentences
    from anygpt_jax.tasks.instructions import all_instructions

    text = TextTokenizer.load()
    words = {*sentences.spoken_words(), *sentences.written_words()}
    assert [word for word in sorted(words) if len(text.encode(word)) != 1] == []
    asked = {word for line in all_instructions() for word in line.split()}
    assert {word for word in asked if len(text.encode(word)) != 1} <= {"as"}  # in one instruction of all
    for line in ("a small fox on a blue background", "naïve café 日本 x9 !?"):
        assert text.decode(text.encode(line)) == line
    assert text.decode(text.encode("A Red FOX")) == "a red fox"
