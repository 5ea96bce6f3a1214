"""Pictures in and out: any file that Pillow reads safely becomes RGB in sRGB, and a picture becomes a PNG file."""

from __future__ import annotations

import functools
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from anygpt_jax.errors import UserError

MAX_PIXELS = 100_000_000  # 300 MB of RGB; Pillow itself refuses more than 178,956,970 pixels
# The other readers of Pillow start programs (EPS), or are for files that are rarely meant as pictures.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
KINDS = "PNG, JPEG, WebP, GIF, BMP or TIFF"
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands of ISO/IEC 23008-12


def load_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """Bytes of a picture file → RGB, turned as its EXIF orientation says.

    Colours with an ICC profile are converted to sRGB, CMYK becomes RGB, 16 bits are scaled to 8, and what is
    transparent becomes white. Of an animation it is the still picture: the first frame, or an APNG's default image;
    what is missing after that is not missed.

    Raises UserError if the file is empty, cut short, damaged, has more than `max_pixels` (this is known before
    anything is decoded), or is of a kind that is not read.
    """
    if not data:
        raise UserError(f"The image file is empty; give a {KINDS} file.")
    _refuse_foreign(data)
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError as e:
        raise UserError(f"This is not an image file that can be read; give a {KINDS} file.") from e
    except Image.DecompressionBombError as e:
        raise UserError(f"The image has more than {max_pixels:,} pixels; scale it down first.") from e
    except Exception as e:  # Pillow's readers raise whatever their parsing met
        raise _damaged(e) from e
    width, height = image.size
    if width * height > max_pixels:
        raise UserError(
            f"The image has {width:,} x {height:,} pixels and at most {max_pixels:,} are taken; scale it down first."
        )
    try:
        image.load()
        return np.asarray(_rgb(_upright(image), image.format))
    except UserError:
        raise
    except Exception as e:
        raise _damaged(e) from e


def save_png(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """A PNG file; equal pictures give equal bytes."""
    out = io.BytesIO()
    Image.fromarray(np.asarray(picture, np.uint8)).save(out, "PNG")
    return out.getvalue()


def check(picture: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    """The picture as an array; UserError unless it is uint8[H, W, 3] and not empty."""
    picture = np.asarray(picture)
    if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
        raise UserError(f"An image must be uint8[H, W, 3]; this is {picture.dtype}{list(picture.shape)}.")
    return picture


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow has: AVIF came with 11.3."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _refuse_foreign(data: bytes) -> None:
    """UserError for the kinds that people have and Pillow does not read, with the remedy."""
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:5].lower() == b"<?xml" or start[:4].lower() == b"<svg":
        raise UserError("This is an SVG drawing, not a picture of pixels; draw it first: rsvg-convert IN -o OUT.png")
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    if brand in HEIC and b"avif" not in data[12:64]:
        raise UserError("This is a HEIC picture, which is not read; convert it first: heif-convert IN OUT.png")
    if brand and "AVIF" not in _formats():
        raise UserError("This is an AVIF picture, which Pillow reads from version 11.3 on; install that version.")


def _damaged(cause: Exception) -> UserError:
    return UserError(f"The image file is damaged or cut short ({cause}); copy it again from its source.")


def _rgb(image: Image.Image, kind: str | None) -> Image.Image:
    """RGB in sRGB, over white, of what was read from a file of this kind."""
    if image.mode in ("I;16", "I;16B", "I;16L"):
        grey = np.asarray(image)
        clear = grey == image.info.get("transparency", -1)
        return Image.fromarray(np.where(clear, 255, (grey / 257).round()).astype(np.uint8)).convert("RGB")
    if image.mode == "I" and kind == "PPM":  # whose numbers Pillow has scaled to 16 bits
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F", "LAB"):
        numbers = {"I": "32-bit integers", "F": "floating-point numbers", "LAB": "L*a*b* colours"}[image.mode]
        raise UserError(f"The image holds {numbers}, which have no known range; save it as 8- or 16-bit RGB or grey.")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    elif image.mode in ("P", "PA", "1"):
        image = image.convert("RGB" if image.mode == "P" else "L")
    to_srgb = _to_srgb(image.info.get("icc_profile"), "RGB" if alpha else image.mode)
    colours = image.convert("RGB") if alpha or to_srgb is None else image
    if to_srgb is not None:
        colours = to_srgb.apply(colours)
    if alpha is None:
        return colours
    return Image.composite(colours, Image.new("RGB", colours.size, (255, 255, 255)), alpha)


@functools.lru_cache(maxsize=32)
def _to_srgb(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The conversion of an embedded profile to sRGB, or None if there is nothing, or no sense, in it.

    A profile of another colour space than the pixels, or one that cannot be read, says nothing, as in browsers.
    """
    if not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None
        # LittleCMS shortens grey curves to a table of few steps, which loses the dark ones.
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        return ImageCms.buildTransform(source, _srgb(), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, flags)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _upright(image: Image.Image) -> Image.Image:
    """Turned and mirrored as the camera noted; a note that cannot be read is no reason to refuse the picture."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF is parsed in many ways, each with its own errors
        return image
