"""Picture files as the world has them: modes, depths, profiles, orientations, animations, and every way to be broken."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.pictures import load_picture, save_png


def write(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def scene(width=37, height=25):
    """A smooth picture with all three colours, which lossy codecs keep well, and no symmetry."""
    y, x = np.mgrid[:height, :width]
    channels = (200 * x / width + 20, 180 * y / height + 30, 120 + 100 * np.sin(x / 9 + y / 5))
    return np.stack(channels, -1).astype(np.uint8)


def apart(one, other):
    """The largest difference of two pictures, in levels."""
    assert one.shape == other.shape and one.dtype == np.uint8
    return np.abs(one.astype(int) - other.astype(int)).max()


@pytest.mark.parametrize(("kind", "options", "levels"), [
    ("PNG", {}, 0), ("BMP", {}, 0), ("TIFF", {}, 0), ("TIFF", {"compression": "tiff_lzw"}, 0), ("PPM", {}, 0),
    ("WEBP", {"lossless": True}, 0), ("WEBP", {"quality": 95}, 16), ("JPEG", {"quality": 95, "subsampling": 0}, 8),
    ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 8), ("JPEG2000", {}, 1),
    pytest.param("AVIF", {"quality": 95, "subsampling": "4:4:4"}, 12, marks=pytest.mark.skipif(not features.check("avif"), reason="no AVIF")),
])  # fmt: skip
def test_every_kind_keeps_the_picture(kind, options, levels):
    assert apart(load_picture(write(Image.fromarray(scene()), kind, **options)), scene()) <= levels


def test_png_round_trip():
    np.testing.assert_array_equal(load_picture(save_png(scene())), scene())


# --- Modes and depths -------------------------------------------------------------------------------------------------


def png(samples, colour, transparency=b""):
    """A PNG file by the specification: samples are uint16[H, W, C] of colour type 0, 2, 4 or 6."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, colour, 0, 0, 0))
    clear = chunk(b"tRNS", transparency) if transparency else b""
    return b"\x89PNG\r\n\x1a\n" + header + clear + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "count"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_scaled(colour, count):
    samples = np.random.default_rng(0).integers(0, 65_536, (12, 20, count)).astype(np.uint16)
    alpha = samples[..., -1:] / 65_535 if count in (2, 4) else 1.0
    colours = samples[..., : 3 if count > 2 else 1] / 65_535
    wanted = np.broadcast_to(255 * (alpha * colours + 1 - alpha), (12, 20, 3))
    assert np.abs(load_picture(png(samples, colour)) - wanted).max() <= 2


def test_sixteen_bit_grey_in_other_files():
    grey = np.linspace(0, 65_535, 20 * 12).reshape(12, 20).astype(np.uint16)
    for kind in ("TIFF", "PPM"):
        picture = load_picture(write(Image.fromarray(grey), kind))
        assert np.abs(picture - grey[..., None] / 257).max() <= 0.51
    clear = load_picture(png(grey[..., None], 0, transparency=struct.pack(">H", grey[3, 4])))
    assert (clear[3, 4] == 255).all() and (clear[3, 5] == round(grey[3, 5] / 257)).all()


def test_transparent_becomes_white():
    half = Image.new("RGBA", (4, 4), (200, 0, 100, 128))
    assert apart(load_picture(write(half)), np.full((4, 4, 3), (227, 127, 177), np.uint8)) <= 1
    for kind in ("PNG", "TIFF"):
        assert (
            apart(load_picture(write(Image.new("LA", (4, 4), (50, 0)), kind)), np.full((4, 4, 3), 255, np.uint8)) == 0
        )
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.putpixel((0, 0), 0)
    picture = load_picture(write(palette, transparency=0))
    assert (picture[0, 0] == 255).all() and (picture[1, 1] == (10, 200, 30)).all()
    assert (load_picture(write(palette, "GIF", transparency=1))[1, 1] == 255).all()
    black = load_picture(write(Image.new("RGB", (4, 4), (0, 0, 0)), transparency=(0, 0, 0)))
    assert (black == 255).all()


def test_one_bit():
    bits = np.array([[0, 1, 0], [1, 1, 0]], bool)
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        np.testing.assert_array_equal(load_picture(write(Image.fromarray(bits), kind))[..., 1], bits * 255)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_numbers_without_a_range_are_refused(mode):
    with pytest.raises(UserError, match="no known range"):
        load_picture(write(Image.new(mode, (4, 4)), "TIFF"))


def test_cmyk_has_its_colours():
    inks = {(0, 0, 0, 0): (255, 255, 255), (255, 0, 0, 0): (0, 255, 255), (0, 255, 255, 0): (255, 0, 0),
            (0, 0, 0, 255): (0, 0, 0), (0, 0, 255, 128): (127, 127, 0)}  # fmt: skip
    for ink, wanted in inks.items():
        for kind, options in (("JPEG", {"quality": 100}), ("TIFF", {})):
            picture = load_picture(write(Image.new("CMYK", (16, 16), ink), kind, **options))
            assert apart(picture, np.full((16, 16, 3), wanted, np.uint8)) <= 4


def test_ycck_has_its_colours():
    """Adobe's transform 2: the planes are the YCbCr (by JFIF's formula) of 255 - CMY, where 255 is no ink."""
    cyan, magenta, yellow = 225.0, 75.0, 165.0  # of 255, which is full ink
    luma = 0.299 * cyan + 0.587 * magenta + 0.114 * yellow
    planes = (luma, 128 + (yellow - luma) / 1.772, 128 + (cyan - luma) / 1.402)
    # Pillow stores 255 - x for its channels x, and marks that as transform 0.
    data = write(Image.new("CMYK", (16, 16), (*(255 - round(p) for p in planes), 0)), "JPEG", quality=100)
    marker = data.index(b"Adobe") + 11
    assert data[marker] == 0
    picture = load_picture(data[:marker] + b"\2" + data[marker + 1 :])
    assert apart(picture, np.full((16, 16, 3), (255 - cyan, 255 - magenta, 255 - yellow), np.uint8)) <= 4


# --- Colour profiles --------------------------------------------------------------------------------------------------

# Columns are the D50-adapted primaries (ICC.1:2010, and Adobe RGB (1998), annex B), in XYZ.
SRGB_D50 = np.array([[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
ADOBE_D50 = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
WHITE_D50 = (0.9642, 1.0, 0.8249)


def profile(space, tags, pcs=b"XYZ "):
    """An ICC profile, version 2, with these tags."""
    text = b"a test"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + bytes(1 + 8 + 3 + 67),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": xyz(WHITE_D50),
        **tags,
    }
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"test", 0x0210_0000, b"mntr", space, pcs)
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + xyz(WHITE_D50)[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def xyz(values):
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65_536) for v in values))


def gamma(power):
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(power * 256)) + bytes(2)


def encode_srgb(linear):
    """IEC 61966-2-1."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def adobe_rgb():
    primaries = {name: xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), ADOBE_D50.T, strict=True)}
    return profile(b"RGB ", primaries | {name: gamma(2.2) for name in (b"rTRC", b"gTRC", b"bTRC")})


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_wide_profile_becomes_srgb(kind, alpha):
    pixels = scene()
    linear = (pixels / 255) ** (round(2.2 * 256) / 256)
    wanted = encode_srgb(linear @ (np.linalg.inv(SRGB_D50) @ ADOBE_D50).T)
    assert np.abs(wanted - pixels).max() > 20, "the profile must make a difference"
    image = Image.fromarray(pixels)
    if alpha:
        image.putalpha(255)
    assert np.abs(load_picture(write(image, kind, icc_profile=adobe_rgb())) - wanted).max() <= 2.5


def test_a_grey_profile():
    ramp = np.arange(256, dtype=np.uint8)[None]
    linear = profile(b"GRAY", {b"kTRC": gamma(1.0)})
    picture = load_picture(write(Image.fromarray(ramp), icc_profile=linear))
    assert np.abs(picture[0] - encode_srgb(ramp[0] / 255)[:, None]).max() <= 2.5


def test_a_profile_of_inks():
    """A table of 2^4 nodes in which full cyan is a middle grey (L* = 50) and any other ink is black."""
    nodes = b"".join(
        bytes(((255, 128, 128), (128, 128, 128), (0, 128, 128))[0 if i == 0 else 1 if i == 8 else 2]) for i in range(16)
    )
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    table += struct.pack(">9i", *(65_536 if i % 4 == 0 else 0 for i in range(9))) + ramp * 4 + nodes + ramp * 3
    inks = profile(b"CMYK", {b"A2B0": table}, b"Lab ")
    for ink, grey in (((0, 0, 0, 0), 255), ((255, 0, 0, 0), 119), ((0, 255, 0, 0), 0)):
        picture = load_picture(write(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100, icc_profile=inks))
        assert np.abs(picture - float(grey)).max() <= 3


@pytest.mark.parametrize("bad", [b"not a profile", adobe_rgb()[:200], profile(b"CMYK", {})])
def test_a_profile_that_makes_no_sense_says_nothing(bad):
    assert apart(load_picture(write(Image.fromarray(scene()), icc_profile=bad)), scene()) == 0


# --- Orientation and animation ----------------------------------------------------------------------------------------

# EXIF 2.3, tag 0x0112: where the stored row 0 and column 0 are in the picture as it is meant to be seen.
TURNS = {
    1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1), 6: lambda p: np.rot90(p, -1), 7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: lambda p: np.rot90(p, 1),
}  # fmt: skip


@pytest.mark.parametrize("turn", TURNS)
def test_the_orientation_is_applied_once(turn):
    notes = Image.Exif()
    notes[0x0112] = turn
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        data = write(Image.fromarray(scene()), kind, exif=notes, **options)
        np.testing.assert_array_equal(load_picture(data), TURNS[turn](scene()))
    jpeg = write(Image.fromarray(scene()), "JPEG", quality=95, subsampling=0, exif=notes)
    assert apart(load_picture(jpeg), TURNS[turn](scene())) <= 8
    profiled = write(Image.fromarray(scene()), exif=notes, icc_profile=adobe_rgb())
    assert load_picture(profiled).shape == TURNS[turn](scene()).shape
    grey = Image.fromarray(scene()[..., 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(load_picture(write(grey, exif=notes))[..., 0], TURNS[turn](scene())[..., 0])


def test_notes_that_cannot_be_read_are_no_reason_to_refuse():
    data = write(Image.fromarray(scene()), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(load_picture(data), scene())


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_the_first_frame_of_an_animation(kind, options):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = write(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert apart(load_picture(data), np.full((6, 8, 3), (255, 0, 0), np.uint8)) == 0


# --- What is refused --------------------------------------------------------------------------------------------------


def test_too_many_pixels_are_refused_before_decoding():
    data = write(Image.fromarray(scene(30, 20)))
    assert load_picture(data, max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(UserError, match="30 x 20 pixels and at most 599"):
        load_picture(data, max_pixels=599)
    for side in (10_001, 100_000, 2**31 - 1):  # a header alone: nothing that could be decoded follows
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT"
        with pytest.raises(UserError, match="pixels"):
            load_picture(bomb)


@pytest.mark.parametrize(("kind", "options"), [
    ("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("GIF", {}), ("BMP", {}), ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {}),
])  # fmt: skip
@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_a_file_that_is_cut_short_is_refused(kind, options, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = write(noise, kind, **options)
    with pytest.raises(UserError, match=r"damaged or cut short|not an image"):
        load_picture(data[: int(share * len(data))])


@pytest.mark.parametrize(("data", "message"), [
    (b"", "empty"), (b"hello", "not an image"), (b"%PDF-1.7" + bytes(100), "not an image"),
    (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG.*rsvg-convert"),
    (b"\xef\xbb\xbf\n<svg width='3'/>", "SVG"), (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC.*heif-convert"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
])  # fmt: skip
def test_other_files_are_named_with_the_remedy(data, message):
    with pytest.raises(UserError, match=message):
        load_picture(data)


def test_damage_anywhere_is_a_user_error_or_a_picture():
    """Random damage: bytes changed, cut out, doubled, cut off, most of it in the header."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(scene())
    notes = Image.Exif()
    notes[0x0112] = 6
    files = [
        write(image, icc_profile=adobe_rgb(), exif=notes), write(image.convert("P"), transparency=3),
        write(image, "JPEG", exif=notes), write(image.convert("CMYK"), "JPEG"), write(image, "WEBP"),
        write(image, "GIF"), write(image, "BMP"), write(image, "TIFF", compression="tiff_lzw"), write(image, "PPM"),
        write(image, "JPEG2000"), write(image.convert("1"), "TIFF", compression="group4"),
    ]  # fmt: skip
    outcomes = []
    for i in range(60 * len(files)):
        data = bytearray(files[i % len(files)])
        for _ in range(rng.integers(1, 5)):
            at = int(rng.integers(min(len(data), 200) if rng.random() < 0.6 else len(data)))
            match rng.integers(4):
                case 0:
                    data[at] = rng.integers(256)
                case 1:
                    data[at : at + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", rng.bytes(4)])
                case 2:
                    del data[at : at + int(rng.integers(1, 20))]
                case _:
                    data[at:at] = data[at : at + int(rng.integers(1, 20))]
        try:
            picture = load_picture(bytes(data), max_pixels=4_000_000)
        except UserError:
            outcomes.append(False)
            continue
        outcomes.append(True)
        assert picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8 and 0 not in picture.shape
    assert 0.1 < np.mean(outcomes) < 0.9, "the damage is too slight, or too great, to show anything"
