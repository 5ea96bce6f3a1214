"""Sound in and out: any file libsndfile reads becomes mono float32 at one rate, and sound becomes 16-bit WAV."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from anygpt_jax.errors import UserError
from anygpt_jax.modalities import mp3
from anygpt_jax.modalities.base import Audio

SAMPLE_RATE = 16_000
LONGEST = 3600.0  # s: an hour at 16 kHz is 230 MB, which a worker can still hold
RATES = (1_000, 768_000)  # Hz: a header that says anything else is damaged
LOUDEST = 16.0  # of full scale: codecs overshoot ±1 a little, 16-bit numbers kept as floats by a factor of 32,768
BLOCK = 1 << 18  # values (frames · channels) that are decoded together
UNKNOWN = 1 << 62  # frames: libsndfile's answer (2^63 - 1) where the file does not say

KINDS = "WAV, FLAC, MP3, OGG, Opus or AIFF"
CONVERT = "convert it first: ffmpeg -i IN -vn OUT.flac"

# Weights of ITU-R BS.775-3, annex 4, table 2, for one channel out of 3/2: front √½, centre 1, surround ½. It leaves
# the low-frequency effects channel (F) out. They are divided by their sum, so that full scale stays full scale: of
# L and R this makes the mean. Side and back pairs of 7.1 both count as surround.
WEIGHTS = {"L": 0.5**0.5, "R": 0.5**0.5, "C": 1.0, "S": 0.5, "F": 0.0}
# The order of loudspeakers: of WAV's channel mask and FLAC (RFC 9639, table 3), which the other containers follow …
ORDERS = {2: "LR", 3: "LRC", 4: "LRSS", 5: "LRCSS", 6: "LRCFSS", 7: "LRCFSSS", 8: "LRCFSSSS"}
# … and of Vorbis (Vorbis I, 4.3.9) and Opus (RFC 7845, 5.1.1.2).
OGG_ORDERS = {2: "LR", 3: "LCR", 4: "LRSS", 5: "LCRSS", 6: "LCRSSF", 7: "LCRSSSF", 8: "LCRSSSSF"}

# What people have that libsndfile does not read: position and bytes of the mark, and the name.
FOREIGN = (
    (4, b"ftyp", "an MP4 file (M4A, AAC, ALAC)"),
    (0, b"\x1aE\xdf\xa3", "a WebM or Matroska file"),
    (0, b"\xff\xf1", "an AAC stream"),
    (0, b"\xff\xf9", "an AAC stream"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "a WMA file"),
    (0, b"#!AMR", "an AMR file"),
    (0, b"wvpk", "a WavPack file"),
    (0, b"MAC ", "a Monkey's Audio file"),
    (8, b"AVI ", "an AVI file"),
)


def resample(audio: Audio, sample_rate: int = SAMPLE_RATE) -> Audio:
    """The same sound at another rate (SoX's high-quality resampler)."""
    if audio.sample_rate == sample_rate:
        return audio
    samples = soxr.resample(audio.samples, audio.sample_rate, sample_rate, quality="HQ")
    return Audio(samples.astype(np.float32), sample_rate)


def load_audio(data: bytes, sample_rate: int = SAMPLE_RATE, longest: float = LONGEST) -> Audio:
    """Bytes of a sound file → mono sound of at most `longest` seconds; several channels are mixed down.

    It is decoded block by block, so that hours of sound in a small file are refused before they fill the memory.
    Silence is sound (see `is_silent`). Raises UserError if the file is empty, cut short, too long, of a kind that
    libsndfile does not read, or holds numbers that are not finite or far beyond full scale.
    """
    if not data:
        raise UserError(f"The sound file is empty; give a {KINDS} file.")
    for at, mark, kind in FOREIGN:
        if data[at : at + len(mark)] == mark:
            raise UserError(f"This is {kind}, not a sound file that can be read; {CONVERT}")
    if missing := _missing(data):
        raise UserError(f"The sound file is cut short ({missing}); copy it again from its source.")
    try:
        with _Straight(io.BytesIO(mp3.with_length(data))) as file:
            return _decode(file, sample_rate, longest)
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OverflowError) as e:
        cause = str(getattr(e, "error_string", e)).strip().rstrip(".")  # without the address of the buffer
        raise UserError(f"This is not a sound file that can be read ({cause}); give a {KINDS} file.") from e


class _Straight(soundfile.SoundFile):
    """A file that is read from its start to its end.

    soundfile seeks after every read where it can: MP3 and Opus lose the history that their decoders work from, and
    FLAC without a number of samples cannot seek at its end.
    """

    def seekable(self) -> bool:
        return False


def _decode(file: soundfile.SoundFile, sample_rate: int, longest: float) -> Audio:
    rate, promised = file.samplerate, file.frames
    if not RATES[0] <= rate <= RATES[1]:
        raise UserError(f"The sound file says it has {rate:,} samples a second, which no sound has; export it again.")
    # A sample more, because the caller may round to whole samples of its own rate.
    limit = int((longest + 1 / sample_rate) * rate)
    if limit < promised < UNKNOWN:
        raise UserError(_too_long(f"{promised / rate:.1f}", longest))
    resampler = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, quality="HQ")
    pieces, frames = [], 0
    for block in _blocks(file):
        frames += len(block)
        if frames > limit:
            raise UserError(_too_long(f"more than {longest:.1f}", longest))
        loudest = np.abs(block).max()
        if not np.isfinite(loudest):  # the maximum of anything and NaN is NaN
            raise UserError("The sound file holds values that are not finite numbers; export it again as 16-bit WAV.")
        if loudest > LOUDEST:
            raise UserError(
                f"The sound file has samples of {loudest:.4g} where full scale is 1; divide them, or export it again "
                "as 16-bit WAV."
            )
        mono = mix_down(block, file.format)
        pieces.append(mono if resampler is None else resampler.resample_chunk(mono))
    if not frames:
        raise UserError("The sound file holds no samples; give at least one.")
    if frames < promised < UNKNOWN:
        raise UserError(
            f"The sound file is cut short ({promised - frames} samples are missing); copy it again from its source."
        )
    if resampler is not None:
        pieces.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    return Audio(np.concatenate(pieces), sample_rate)


def _blocks(file: soundfile.SoundFile) -> Iterator[Float[np.ndarray, "T C"]]:
    """The whole file in pieces of about `BLOCK` values."""
    size = max(1, BLOCK // file.channels)
    while len(block := file.read(size, dtype="float32", always_2d=True)):
        yield block


def _too_long(seconds: str, longest: float) -> str:
    return f"The sound is {seconds} s long and at most {longest:.1f} s are taken; cut it first."


def mix_down(samples: Float[np.ndarray, "T C"], container: str = "WAV") -> Float[np.ndarray, T]:
    """One channel of several: stereo by the mean, 3.0 to 7.1 by ITU-R BS.775 (`WEIGHTS`), any other count by the mean.

    `container` is libsndfile's name of the file format, which tells the order of the loudspeakers.
    """
    order = (OGG_ORDERS if container == "OGG" else ORDERS).get(samples.shape[1], "")
    if len(order) <= 2:
        return samples.mean(1)
    weights = np.array([WEIGHTS[speaker] for speaker in order], np.float32)
    return samples @ (weights / weights.sum())


def is_silent(audio: Audio, floor_db: float = -80.0) -> bool:
    """Whether no sample rises above `floor_db` of full scale; at -80 dB the noise of 16-bit dither counts as silence."""
    return not len(audio.samples) or float(np.abs(audio.samples).max()) <= 10 ** (floor_db / 20)


def _missing(data: bytes) -> str | None:
    """What a file lacks of what its header promises; libsndfile quietly reads what is there."""
    if data[:4] == b"OggS":
        return _missing_of_ogg(data)
    for at, size in _promised_data(data):
        missing = at + size - len(data)
        # Writers that stream leave a length about 2^31 or 2^32 for one that they did not know, and some count their
        # header in.
        if missing > 64 and not 0x7FFF_F000 <= size <= 0x7FFF_FFFF and not 0xFFFF_F000 <= size <= 0xFFFF_FFFF:
            return f"{missing} bytes are missing"
    return None


def _promised_data(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the samples start and how many bytes of them the header promises (RIFF, RF64, AIFF, AU, SPHERE, Wave64)."""
    if data[:4] == b".snd":
        yield int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big")
        return
    if sphere := re.match(rb"NIST_1A\n +(\d{1,7})\n", data[:16]):
        said = dict(re.findall(rb"(sample_count|channel_count|sample_n_bytes) -i (\d{1,15})\n", data[:1024]))
        if len(said) == 3 and b"shorten" not in data[:1024]:  # which is compressed, and not read anyway
            yield int(sphere[1]), math.prod(map(int, said.values()))
        return
    if data[:4] == b"riff":  # Wave64: marks of 16 bytes, sizes of 8 that count the mark and themselves
        mark_bytes, size_bytes, counted, order, at, align = 16, 8, 24, "little", 40, 8
    elif data[:4] in (b"RIFF", b"RF64", b"RIFX", b"FORM"):
        order = "little" if data[:4] in (b"RIFF", b"RF64") else "big"
        mark_bytes, size_bytes, counted, at, align = 4, 4, 0, 12, 2
    else:
        return
    long_size = None
    while at + mark_bytes + size_bytes <= len(data):
        mark = data[at : at + 4]
        size = int.from_bytes(data[at + mark_bytes : at + mark_bytes + size_bytes], order)  # type: ignore[arg-type]
        start, size = at + mark_bytes + size_bytes, max(0, size - counted)
        if mark == b"ds64":  # RF64 keeps its sizes here (EBU Tech 3306)
            long_size = int.from_bytes(data[start + 8 : start + 16], "little")
        if mark in (b"data", b"SSND"):
            yield start, size if long_size is None else long_size
            return
        at = start + -(-size // align) * align


def _missing_of_ogg(data: bytes) -> str | None:
    """An Ogg file is whole if its last page is, and says that it is the last of its stream (RFC 3533, section 6)."""
    at, last = 0, False
    while data[at : at + 4] == b"OggS":
        last = len(data) > at + 5 and bool(data[at + 5] & 4)
        segments = data[at + 26] if len(data) > at + 26 else 0
        table = data[at + 27 : at + 27 + segments]
        end = at + 27 + segments + sum(table)
        if end > len(data):
            return f"at least {end - len(data)} bytes are missing"
        at = end
    return None if last else "its last page is missing"


def save_wav(audio: Audio) -> bytes:
    """16-bit PCM WAV; samples beyond ±1 are clipped."""
    out = io.BytesIO()
    soundfile.write(out, np.clip(audio.samples, -1.0, 1.0), audio.sample_rate, format="WAV", subtype="PCM_16")
    return out.getvalue()


def prepare(
    audio: Audio, what: str, shortest: int, longest: int, sample_rate: int = SAMPLE_RATE
) -> Float[np.ndarray, N]:
    """float32[N] at `sample_rate` with `shortest` ≤ N ≤ `longest` samples, or UserError with the remedy."""
    samples = np.asarray(resample(audio, sample_rate).samples, np.float32)
    if samples.ndim != 1:
        raise UserError(f"{what.capitalize()} must be mono, float32[T]; this has shape {list(samples.shape)}.")
    if len(samples) < shortest:
        raise UserError(
            f"This {what} is {len(samples) / sample_rate:.3f} s long; "
            f"give at least {shortest / sample_rate:.2f} s of sound."
        )
    if len(samples) > longest:
        raise UserError(
            f"This {what} is {len(samples) / sample_rate:.1f} s long and the tokenizer takes at most "
            f"{longest / sample_rate:.1f} s; cut it first."
        )
    return samples
