"""Files in and files out of `anygpt generate`."""

from __future__ import annotations

import itertools
import pathlib
from typing import Any

from anygpt_jax.cache import write_atomically
from anygpt_jax.errors import UserError
from anygpt_jax.modalities.base import ModalityTokenizer
from anygpt_jax.templates import TEXT

SHORTCUTS = ("image", "speech", "music")  # --image FILE is --input image=FILE
# What each modality is saved as. The tokenizer of another one may say it (`extension`).
EXTENSIONS = {TEXT: ".txt", "image": ".png", "speech": ".wav", "music": ".wav"}


def extension(modality: str, tokenizer: ModalityTokenizer | None = None) -> str:
    """Of the files of a modality, with its dot; text has no tokenizer here."""
    return EXTENSIONS.get(modality) or str(getattr(tokenizer, "extension", ".bin"))


def check_input(path: str | pathlib.Path, flag: str) -> pathlib.Path:
    """The path of an existing file, or UserError; `flag` is what named it."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder; name a file.")
    if not path.is_file():
        raise UserError(f"{flag} {path} does not exist; check the path.")
    return path


def read_media(path: pathlib.Path, tokenizer: ModalityTokenizer) -> Any:
    """The canonical media in a file; UserError names the file if it is empty, cut short or not supported."""
    try:
        return tokenizer.load(path.read_bytes())
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}).") from e


def check_output(path: str | pathlib.Path, flag: str, modality: str | None = None) -> pathlib.Path:
    """A path that can be written and whose extension fits the modality, or UserError."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise UserError(f"The folder {path.parent} of {flag} does not exist; create it first.")
    wanted = EXTENSIONS.get(modality or "")
    others = set(EXTENSIONS.values()) - {wanted}
    # Text may go to a file of any name but that of a medium; media say what they are by their extension.
    wrong = path.suffix.lower() in others if modality == TEXT else path.suffix.lower() != wanted
    if wanted and wrong:
        raise UserError(f"{flag} {path}: {modality} is saved as {wanted}; name the file {path.with_suffix(wanted)}.")
    return path


def numbered(path: pathlib.Path, index: int, count: int) -> pathlib.Path:
    """The path itself for one output; for several, NAME-1.png, NAME-2.png …"""
    return path if count == 1 else path.with_name(f"{path.stem}-{index + 1}{path.suffix}")


def default_output(modality: str, tokenizer: ModalityTokenizer) -> pathlib.Path:
    """NAME.EXT in the current folder."""
    return pathlib.Path(f"{modality}{extension(modality, tokenizer)}")


def next_free(folder: pathlib.Path, modality: str, tokenizer: ModalityTokenizer) -> pathlib.Path:
    """FOLDER/MODALITY-N.EXT with the smallest N that is not taken."""
    numbers = itertools.count(1)
    paths = (folder / f"{modality}-{n}{extension(modality, tokenizer)}" for n in numbers)
    return next(path for path in paths if not path.exists())


def write_media(path: pathlib.Path, media: Any, tokenizer: ModalityTokenizer) -> None:
    """Saves media whole or not at all."""
    write_atomically(path, tokenizer.save(media))
