"""Hostile files: each costs its sender one sentence, little time, little memory, and nothing is fetched or written."""

import base64
import io
import socket
import struct
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import serving_world as world
import soundfile
from PIL import Image

from anygpt_jax.errors import UserError
from anygpt_jax.serving import uploads
from anygpt_jax.serving.limits import Limits
from anygpt_jax.serving.refusal import Refusal

LIMITS = Limits(pixels=1_000_000, media_seconds=10.0)
TOKENIZERS = world.pipeline().tokenizers


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, rows: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def wav_of(values: np.ndarray, subtype: str = "FLOAT") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, values, 16_000, format="WAV", subtype=subtype)
    return out.getvalue()


def zip_slip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("../../../../tmp/anygpt-slipped", "x")
    return out.getvalue()


def flac_of_silence(seconds: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.zeros(seconds * 16_000, np.int16), 16_000, format="FLAC")
    return out.getvalue()


NAN = np.full(16_000, np.nan, np.float32)
PICTURES = {
    "empty": b"",
    "a gigapixel header": png_of(65_535, 65_535, zlib.compress(b"")),
    "a bomb": png_of(30_000, 30_000, zlib.compress(bytes(3_000_000), 9)),
    "more pixels than allowed": png_of(1001, 1000, zlib.compress(bytes(1000 * (3 * 1001 + 1)), 9)),
    "cut short": world.png(64, 64)[:60],
    "a header alone": b"\x89PNG\r\n\x1a\n",
    "a sound": world.wav(),
    "SVG with a script": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "SVG that reads a file": b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "a zip that slips": zip_slip(),
    "HTML": b"<html><script>alert(1)</script></html>",
    "a TIFF that points past itself": b"II*\x00\xff\xff\xff\x7f",
    "noise": np.random.default_rng(0).bytes(5000),
}
SOUNDS = {
    "empty": b"",
    "NaN": wav_of(NAN),
    "infinity": wav_of(np.full(16_000, np.inf, np.float32)),
    "far beyond full scale": wav_of(np.full(16_000, 3e4, np.float32)),
    "too long": world.wav(6.5),
    "hours in a few kilobytes": flac_of_silence(3600),
    "a promise of 2 GB": world.wav(0.1)[:40] + struct.pack("<I", 2_000_000_000) + world.wav(0.1)[44:],
    "too short": world.wav(0.01),
    "no samples": wav_of(np.zeros(0, np.float32)),
    "a rate of zero": world.wav(0.2)[:24] + bytes(4) + world.wav(0.2)[28:],
    "a rate that no sound has": world.wav(0.2)[:24] + struct.pack("<I", 4_000_000_000) + world.wav(0.2)[28:],
    "65535 channels": world.wav(0.2)[:22] + b"\xff\xff" + world.wav(0.2)[24:],
    "a picture": world.png(),
    "a zip that slips": zip_slip(),
    "MP4": b"\0\0\0\x18ftypisom" + bytes(100),
    "noise": np.random.default_rng(0).bytes(5000),
}  # fmt: skip


@pytest.mark.parametrize(("modality", "name"), [*(("image", n) for n in PICTURES), *(("speech", n) for n in SOUNDS)])
def test_a_hostile_file_costs_a_sentence(modality, name):
    data = (PICTURES if modality == "image" else SOUNDS)[name]
    tokenizer = TOKENIZERS[modality]
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises((Refusal, UserError)) as refused:  # the latter becomes the former where a turn is read
        tokenizer.encode([uploads.load(tokenizer, data, LIMITS, "x")])
    seconds, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert getattr(refused.value, "status", 400) == 400
    sentence = str(refused.value)
    assert sentence[-1] in ".gc" and "\n" not in sentence and "Traceback" not in sentence and len(sentence) < 400
    assert seconds < 1.5 and peak < 60e6


def test_a_polyglot_is_what_its_pixels_say():
    """A picture with a script after its end is the picture; what comes out is made anew and carries nothing of it."""
    data = world.png(8, 8, 90) + b"<script>alert(1)</script>" + zip_slip()
    picture = uploads.load(TOKENIZERS["image"], data, LIMITS, "x")
    assert picture.shape == (8, 8, 3) and (picture == 90).all()
    noted = io.BytesIO()
    Image.new("RGB", (4, 4)).save(noted, "JPEG", comment=b"<script>")
    assert b"script" not in TOKENIZERS["image"].save(uploads.load(TOKENIZERS["image"], noted.getvalue(), LIMITS, "x"))


def test_the_largest_picture_that_is_allowed_is_taken():
    data = png_of(1000, 1000, zlib.compress(bytes(1000 * 3001), 9))
    assert uploads.load(TOKENIZERS["image"], data, LIMITS, "x").shape == (1000, 1000, 3)


@pytest.mark.parametrize(
    "url",
    ["http://{address}/x.png", "https://{address}/x.png", "file:///etc/passwd", "ftp://{address}/", "//{address}/x.png",
     "gopher://{address}/", "data:text/html,<script>", "data:image/png,abc", "javascript:alert(1)", "/etc/passwd", "",
     "data:image/png;base64", "HTTP://{address}/", "http:\\\\{address}", "dict://{address}"],
)  # fmt: skip
def test_no_url_is_ever_fetched(url):
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.settimeout(0.05)
        with pytest.raises(Refusal) as refused:
            uploads.from_data_url(url.format(address=f"127.0.0.1:{bait.getsockname()[1]}"), "x")
        assert refused.value.status == 400
        with pytest.raises(TimeoutError):
            bait.accept()


def test_data_urls_are_strict_base64():
    data = world.png()
    text = base64.b64encode(data).decode()
    for url in (
        f"data:image/png;base64,{text}",
        f"data:;base64,{text}",
        f"DATA:image/svg+xml;charset=x;BASE64,{text.rstrip('=')}",
    ):
        assert uploads.from_data_url(url, "x") == data
    for bad in (text + "!", text[:9] + "\n" + text[9:], text[:8] + "=" + text[8:], "é", text + "====="):
        with pytest.raises(Refusal, match="not base64"):
            uploads.from_data_url(f"data:image/png;base64,{bad}", "x")


def test_hostile_files_in_requests_are_400_and_others_are_answered_meanwhile():
    with world.serving(limits=LIMITS) as server:
        for data in PICTURES.values():
            url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            reply = server.chat([{"type": "image_url", "image_url": {"url": url}}])
            assert reply.status == 400 and reply.error
        for data in SOUNDS.values():
            part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}
            reply = server.chat([part])
            assert reply.status == 400 and reply.error
        assert server.chat("are you well").status == 200


def test_a_voice_may_not_be_silent():
    with pytest.raises(Refusal, match="silent"):
        uploads.recording(world.wav(1.0, value=0.0), LIMITS, "x")
