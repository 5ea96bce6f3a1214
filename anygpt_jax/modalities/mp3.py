"""MP3 files that do not say how long they are: their frames are counted.

Encoders write the number of frames into a first frame of its own (the Xing header). Without it libsndfile guesses the
length from the first bit rate, and reads no further: of a file of variable rate it loses the rest. Here the frames are
counted by their headers (ISO/IEC 11172-3, 2.4.1.3, and 13818-3), and a Xing header is put in front.
"""

from __future__ import annotations

import dataclasses

# kbit/s of layer III by index, in MPEG-1 and in MPEG-2 and 2.5; index 0 is a free rate and 15 is forbidden.
KBITS = {
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = (44_100, 48_000, 32_000)  # Hz of MPEG-1; half of it in MPEG-2, a quarter in 2.5
LAYER_3 = 1
ROOM = 9  # index of a bit rate whose frames have room for a Xing header


@dataclasses.dataclass(frozen=True)
class Frame:
    """The header of one frame of layer III."""

    first: bool  # MPEG-1
    rate: int  # Hz
    length: int  # bytes, header included
    side: int  # bytes of side information


def frame_at(data: bytes, at: int) -> Frame | None:
    """The frame that begins here, or None if none does or its bit rate is free."""
    header = data[at : at + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3  # version: 3 is MPEG-1, 2 MPEG-2, 0 MPEG-2.5
    kbits, rate = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer != LAYER_3 or kbits in (0, 15) or rate == 3:
        return None
    first, mono = version == 3, header[3] >> 6 == 3
    hertz = RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    length = (144 if first else 72) * KBITS[first][kbits - 1] * 1000 // hertz + (header[2] >> 1 & 1)
    return Frame(first, hertz, length, (17 if mono else 32) if first else (9 if mono else 17))


def _start_of(data: bytes) -> int:
    """Where the sound begins: after an ID3v2 tag, whose length is written in 7 bits a byte."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))


def with_length(data: bytes) -> bytes:
    """The file with a Xing header, if it is an MP3 file without one; every other file as it is."""
    start = _start_of(data)
    first = frame_at(data, start)
    if first is None:
        return data
    where = start + 4 + first.side
    if data[where : where + 4] in (b"Xing", b"Info") or data[start + 36 : start + 40] == b"VBRI":
        return data
    count, at = 0, start
    while 0 <= at < len(data):
        frame = frame_at(data, at)
        if frame is None or frame.rate != first.rate:
            at = data.find(b"\xff", at + 1)
            continue
        count += at + frame.length <= len(data)
        at += frame.length
    if count < 2:  # two bytes that look like a header are no MP3 file
        return data
    return _xing_frame(data[start : start + 4], count) + data[start:]


def _xing_frame(header: bytes, count: int) -> bytes:
    """A silent frame of the same kind that says how many follow."""
    header = bytes([header[0], header[1] | 1, ROOM << 4 | header[2] & 0x0C, header[3]])  # no checksum, no padding
    frame = frame_at(header, 0)
    assert frame is not None
    says = b"Xing" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")
    return (header + bytes(frame.side) + says).ljust(frame.length, b"\0")
