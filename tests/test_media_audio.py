"""Sound files as the world has them: kinds, depths, channels, rates, lengths, and every way to be broken."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile

from anygpt_jax.errors import UserError
from anygpt_jax.modalities import audio, mp3
from anygpt_jax.modalities.base import Audio

RATE = 16_000


def tone(hertz=440.0, seconds=1.0, rate=RATE, level=0.3):
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def write(samples, rate=RATE, kind="WAV", subtype=None):
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind, subtype=subtype)
    return out.getvalue()


def noise_db(sound, wanted):
    """Level of the difference under the level of what is wanted, in dB."""
    return 10 * np.log10(np.mean((sound - wanted) ** 2) / np.mean(wanted**2) + 1e-30)


# Kind, subtype, and how far under the tone the codec's noise must be (dB): 6 dB a bit where there are bits, of which
# libsndfile's writer loses one, because it cuts floats off where it could round them.
KINDS = [
    ("WAV", "PCM_U8", -32), ("WAV", "PCM_16", -80), ("WAV", "PCM_24", -130), ("WAV", "PCM_32", -140),
    ("WAV", "FLOAT", -140), ("WAV", "DOUBLE", -140), ("WAV", "ALAW", -35), ("WAV", "ULAW", -35),
    ("WAV", "MS_ADPCM", -20), ("WAV", "IMA_ADPCM", -20), ("WAV", "GSM610", -4), ("WAVEX", "PCM_16", -80),
    ("RF64", "PCM_16", -80), ("NIST", "PCM_16", -80), ("W64", "PCM_16", -80), ("AU", "PCM_16", -80), ("CAF", "PCM_16", -80),
    ("AIFF", "PCM_16", -80), ("AIFF", "PCM_24", -130), ("AIFF", "FLOAT", -140), ("FLAC", "PCM_16", -80),
    ("FLAC", "PCM_24", -130), ("MP3", "MPEG_LAYER_III", -20), ("OGG", "VORBIS", -20), ("OGG", "OPUS", -20),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "subtype", "noise"), KINDS)
def test_every_kind_is_read_whole_and_at_its_level(kind, subtype, noise):
    wanted = tone()
    sound = audio.load_audio(write(wanted, kind=kind, subtype=subtype))
    assert sound.sample_rate == RATE and sound.samples.dtype == np.float32
    # ADPCM and GSM write whole blocks, and pad the last one.
    assert len(wanted) <= len(sound.samples) <= len(wanted) + (1024 if subtype.endswith("ADPCM") else 320)
    # Codecs with a transform have soft edges; what lies between must be in step with the tone.
    inner = slice(2000, 14_000)
    assert noise_db(sound.samples[: len(wanted)][inner], wanted[inner]) < noise


def test_integers_are_fractions_of_full_scale():
    numbers = np.array([-32_768, -32_767, -1, 0, 1, 255, 32_767], np.int16)
    for kind in ("WAV", "FLAC", "AIFF"):
        sound = audio.load_audio(write(numbers, kind=kind, subtype="PCM_16"))
        np.testing.assert_array_equal(sound.samples, numbers / np.float32(32_768))


@pytest.mark.parametrize(("kind", "subtype"), [(k, s) for k, s, _ in KINDS if k != "CAF"])
@pytest.mark.parametrize("share", [0.95, 0.5, 0.1])
def test_a_file_that_is_cut_short_is_refused(kind, subtype, share):
    data = write(tone() + tone(313.0), kind=kind, subtype=subtype)
    with pytest.raises(UserError, match=r"cut short|not a sound file"):
        audio.load_audio(data[: int(share * len(data))])


def test_a_hole_in_a_compressed_file_is_refused():
    for kind, subtype in (("OGG", "VORBIS"), ("MP3", None), ("FLAC", None)):
        data = bytearray(write(tone(seconds=20.0), kind=kind, subtype=subtype))
        middle = len(data) // 2
        data[middle : middle + 60] = bytes(60)
        with pytest.raises(UserError, match=r"cut short|not a sound file"):
            audio.load_audio(bytes(data))


def mp3_without_length(data):
    """The MP3 file without its first frame, which says how many there are: as it comes from a stream."""
    assert data.find(b"Xing") in range(50) or data.find(b"Info") in range(50)
    return data[mp3.frame_at(data, 0).length :]


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT", "AVERAGE"])
@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (48_000, 1), (16_000, 1), (22_050, 2), (8_000, 1)])
def test_mp3_that_does_not_say_its_length(mode, rate, channels):
    """Loud in the middle, so that the rate varies; libsndfile's own guess is 250,688 of 661,500 samples or worse."""
    rng = np.random.default_rng(0)
    loudness = np.repeat([0.001, 0.3, 0.001], 2 * rate)
    out = io.BytesIO()
    samples = rng.normal(size=(len(loudness), channels)) * loudness[:, None]
    soundfile.write(out, samples, rate, format="MP3", bitrate_mode=mode, compression_level=0.3)
    whole = audio.load_audio(out.getvalue(), rate).samples
    assert len(whole) == len(loudness)
    stream = mp3_without_length(out.getvalue())
    for data in (stream, b"ID3\3\0\0\0\0\0\x14" + bytes(20) + stream, stream + b"TAG" + bytes(125)):
        sound = audio.load_audio(data, rate).samples
        # It does not know how much of its first and last frame is padding: an encoder's delay at most.
        assert 0 <= len(sound) - len(whole) < 3 * 1152
        loud = whole[3 * rate :][:2000]
        late = int(np.argmax(np.correlate(sound[3 * rate :][: 3 * 1152 + 2000], loud, "valid")))
        assert 0 <= late < 3 * 1152
        np.testing.assert_allclose(sound[late + 5000 :][: 4 * rate], whole[5000:][: 4 * rate], atol=1e-5)


# --- Channels and rates -----------------------------------------------------------------------------------------------

# ITU-R BS.775: L and R by 0.7071, C by 1, surround by 0.5, over their sum; the effects channel is left out.
FRONT, CENTRE, SURROUND = 0.7071 / 3.4142, 1 / 3.4142, 0.5 / 3.4142
MIXES = [
    ("WAVEX", "PCM_24", [FRONT, FRONT, CENTRE, 0, SURROUND, SURROUND]),
    ("FLAC", "PCM_24", [FRONT, FRONT, CENTRE, 0, SURROUND, SURROUND]),
    ("OGG", "VORBIS", [FRONT, CENTRE, FRONT, SURROUND, SURROUND, 0]),
    ("WAV", "PCM_24", [0.5, 0.5]),
    ("OGG", "VORBIS", [0.5, 0.5]),
    ("WAVEX", "PCM_24", [0.7071 / 2.4142, 0.7071 / 2.4142, 1 / 2.4142]),
    ("WAVEX", "PCM_24", [0.7071 / 2.4142, 0.7071 / 2.4142, 0.5 / 2.4142, 0.5 / 2.4142]),
    ("WAV", "PCM_24", [1 / 12] * 12),
]


@pytest.mark.parametrize(("kind", "subtype", "weights"), MIXES)
def test_channels_are_mixed_by_the_standard_weights(kind, subtype, weights):
    pitches = [60 + 20 * c for c in range(len(weights))]  # Hz: all of them low enough for an effects channel
    channels = np.stack([tone(p, 1.0, 48_000) for p in pitches], 1)
    mono = audio.load_audio(write(channels, 48_000, kind, subtype), 48_000).samples
    levels = np.abs(np.fft.rfft(mono))[pitches] / (len(mono) / 2)
    lossy = subtype == "VORBIS"
    np.testing.assert_allclose(levels, 0.3 * np.array(weights), atol=6e-3 if lossy else 1e-5)


def test_the_sixth_channel_of_opus_is_the_low_one():
    """The order that our weights assume is the decoder's: Opus cuts its effects channel off above a few 100 Hz."""
    channels = np.stack([tone(2000.0 + 100 * c, 1.0, 48_000) for c in range(6)], 1)
    decoded, _ = soundfile.read(io.BytesIO(write(channels, 48_000, "OGG", "OPUS")))
    levels = np.abs(decoded).max(0)
    assert levels[5] < 0.05 < 0.2 < levels[:5].min()
    assert audio.OGG_ORDERS[6][5] == "F"


def test_full_scale_in_all_channels_stays_full_scale():
    for count in range(1, 9):
        np.testing.assert_allclose(audio.mix_down(np.ones((5, count), np.float32)), 1.0, atol=1e-6)
        np.testing.assert_allclose(audio.mix_down(np.ones((5, count), np.float32), "OGG"), 1.0, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("wanted", [16_000, 24_000])
def test_any_rate_becomes_the_wanted_one(rate, wanted):
    sound = audio.load_audio(write(tone(440.0, 1.0, rate), rate, "WAV", "FLOAT"), wanted)
    assert sound.sample_rate == wanted and len(sound.samples) == wanted
    inner = slice(wanted // 8, -wanted // 8)
    assert noise_db(sound.samples[inner], tone(440.0, 1.0, wanted)[inner]) < -90


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "PCM_16"), ("FLAC", None), ("MP3", None), ("OGG", "OPUS")])
def test_blocks_are_decoded_as_the_whole_is(kind, subtype, monkeypatch):
    rng = np.random.default_rng(0)
    data = write(rng.normal(size=(100_000, 2)) * 0.1, 48_000, kind, subtype)
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    at_once = audio.resample(Audio(whole.mean(1), 48_000))
    monkeypatch.setattr(audio, "BLOCK", 10_007)
    np.testing.assert_array_equal(audio.load_audio(data).samples, at_once.samples)


# --- Lengths ----------------------------------------------------------------------------------------------------------


def unknown_length(flac):
    """The FLAC file as an encoder writes it into a pipe: 0 for the number of samples (36 bits from bit 172)."""
    return flac[:21] + bytes([flac[21] & 0xF0, 0, 0, 0, 0]) + flac[26:]


def test_too_long_by_the_header_is_refused_before_anything_is_decoded():
    flac = write(tone())
    data = bytearray(write(tone(), kind="FLAC"))
    data[22:26] = struct.pack(">I", 10 * 3600 * RATE)  # ten hours of which no frame is there
    with pytest.raises(UserError, match=r"36000\.0 s long and at most 3600\.0 s"):
        audio.load_audio(bytes(data))
    with pytest.raises(UserError, match=r"1\.0 s long and at most 0\.5 s are taken; cut it first"):
        audio.load_audio(flac, longest=0.5)
    assert len(audio.load_audio(flac, longest=1.0).samples) == RATE


def test_too_long_without_a_header_stops_the_decoder():
    data = unknown_length(write(np.zeros(600 * RATE, np.int16), kind="FLAC"))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"more than 2\.0 s long"):
        audio.load_audio(data, longest=2.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6, "ten minutes are 38 MB"
    assert len(audio.load_audio(unknown_length(write(tone(), kind="FLAC"))).samples) == RATE


def wav_with(**fields):
    """A good WAV file of one second with other numbers in its header."""
    data = bytearray(write(tone()))
    for name, value in fields.items():
        start, kind = {"channels": (22, "<H"), "rate": (24, "<I"), "bits": (34, "<H"), "size": (40, "<I")}[name]
        struct.pack_into(kind, data, start, value)
    return bytes(data)


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000, 32_000 + 44])
def test_lengths_that_no_one_filled_in_are_forgiven(size):
    np.testing.assert_allclose(audio.load_audio(wav_with(size=size)).samples, tone(), atol=1e-4)


def test_lengths_that_promise_more_are_not():
    with pytest.raises(UserError, match="1000 bytes are missing"):
        audio.load_audio(wav_with(size=33_000))


@pytest.mark.parametrize("fields", [
    {"rate": 0}, {"rate": 1}, {"rate": 2**31 - 1}, {"rate": 2**32 - 1}, {"channels": 0}, {"bits": 0},
    {"channels": 60_000}, {"size": 0},
])  # fmt: skip
def test_absurd_headers_are_refused(fields):
    with pytest.raises(UserError, match=r"no sound has|not a sound file|no samples"):
        audio.load_audio(wav_with(**fields))


# --- What the samples hold --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "message"), [
    (np.nan, "not finite"), (np.inf, "not finite"), (-np.inf, "not finite"), (1e30, "1e[+]30 where full scale is 1"),
    (-9830.0, "9830 where"),
])  # fmt: skip
def test_numbers_that_are_no_sound_are_refused(value, message):
    samples = np.tile(tone(), 20)
    samples[-7] = value
    with pytest.raises(UserError, match=message):
        audio.load_audio(write(samples, subtype="FLOAT"))


def test_a_little_over_full_scale_is_kept():
    sound = audio.load_audio(write(tone(level=2.0), subtype="FLOAT"))
    np.testing.assert_allclose(sound.samples, tone(level=2.0), atol=1e-6)
    assert np.abs(audio.load_audio(audio.save_wav(sound)).samples).max() == pytest.approx(1.0, abs=1e-4)


def test_silence_is_sound_and_can_be_told():
    silent = audio.load_audio(write(np.zeros(RATE)))
    assert len(silent.samples) == RATE and audio.is_silent(silent)
    dither = Audio(np.random.default_rng(0).integers(-1, 2, RATE).astype(np.float32) / 32_768, RATE)
    assert audio.is_silent(dither)
    assert not audio.is_silent(Audio(tone(level=2e-4), RATE))
    assert not audio.is_silent(Audio(tone(level=2e-4), RATE), floor_db=-75)
    assert audio.is_silent(Audio(tone(level=2e-4), RATE), floor_db=-70)


def test_a_file_without_samples_is_refused():
    for data in (write(tone()[:0]), write(tone()[:0], kind="AIFF")):
        with pytest.raises(UserError, match="no samples"):
            audio.load_audio(data)


# --- What is no sound file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "kind"), [
    (b"\0\0\0\x20ftypM4A \0\0\0\0", "M4A"), (b"\0\0\0\x1cftypisom", "MP4"), (b"\x1aE\xdf\xa3\x9fB\x86\x81", "WebM"),
    (b"\xff\xf1P\x80", "AAC"), (b"\xff\xf9P\x80", "AAC"), (b"0&\xb2u\x8ef\xcf\x11", "WMA"), (b"#!AMR\n", "AMR"),
    (b"RIFF\0\0\0\0AVI LIST", "AVI"),
])  # fmt: skip
def test_other_containers_are_named_with_the_remedy(start, kind):
    with pytest.raises(UserError, match=rf"{kind}.*ffmpeg -i"):
        audio.load_audio(start + bytes(100))


@pytest.mark.parametrize("data", [b"", b"\0", b"hello", b"<html>" * 50, b"RIFF", b"OggS", b"fLaC", b"ID3", b"FORM"])
def test_rubbish_is_refused(data):
    with pytest.raises(UserError, match=r"empty|not a sound file|cut short"):
        audio.load_audio(data)


def test_damage_anywhere_is_a_user_error_or_a_sound():
    """Random damage: bytes changed, cut out, doubled, cut off, most of it in the header."""
    rng = np.random.default_rng(0)
    kinds = [("WAV", "PCM_16"), ("WAV", "MS_ADPCM"), ("AIFF", "PCM_16"), ("FLAC", None), ("OGG", "VORBIS"),
             ("OGG", "OPUS"), ("MP3", None), ("W64", "PCM_16"), ("RF64", "PCM_16"), ("AU", "ULAW"), ("CAF", "ALAC_16")]  # fmt: skip
    short = rng.normal(size=2000) * 0.1
    files = [write(short, kind=kind, subtype=subtype) for kind, subtype in kinds]
    outcomes = []
    for i in range(60 * len(files)):
        data = damaged(files[i % len(files)], rng)
        try:
            sound = audio.load_audio(data, longest=60.0)
        except UserError:
            outcomes.append(False)
            continue
        outcomes.append(True)
        assert sound.samples.ndim == 1 and 0 < len(sound.samples) <= 60 * RATE + 1
        assert np.isfinite(sound.samples).all()
    assert 0.1 < np.mean(outcomes) < 0.9, "the damage is too slight, or too great, to show anything"


def damaged(data, rng):
    data = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(min(len(data), 200) if rng.random() < 0.6 else len(data)))
        match rng.integers(4):
            case 0:
                data[at : at + 1] = bytes([rng.integers(256)])
            case 1:
                data[at : at + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", rng.bytes(4)])
            case 2:
                del data[at : at + int(rng.integers(1, 50))]
            case _:
                data[at:at] = data[at : at + int(rng.integers(1, 50))]
        if not data:
            break
    return bytes(data)
