"""The voices that the model can speak in: recordings of a few seconds, in the package and in a folder of the user's.

ada, ben and cleo are recordings of the voices that the embedded data set speaks with (hibari-tts, Apache-2.0).
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.audio import load_audio
from anygpt_jax.modalities.base import Audio

SHIPPED = pathlib.Path(__file__).with_name("recordings")
DEFAULT = "default"  # the speech tokenizer's own
LONGEST = 30.0  # s
KINDS = (".flac", ".wav", ".mp3", ".ogg", ".opus")


def load(folder: pathlib.Path | None = None) -> Mapping[str, Audio]:
    """Recordings by name, which is the file's; those of the folder go over the package's. UserError for a bad file, and
    for one with the name of the model's own voice."""
    if folder is not None and not folder.is_dir():
        raise UserError(f"--voices {folder} is no folder; name one that holds recordings ({', '.join(KINDS)}).")
    found = {}
    for place in (SHIPPED, folder):
        for path in sorted(place.iterdir()) if place else ():
            if path.suffix.lower() in KINDS:
                if path.stem == DEFAULT:
                    raise UserError(f"{path}: '{DEFAULT}' is the model's own voice; give the recording another name.")
                try:
                    found[path.stem] = load_audio(path.read_bytes(), longest=LONGEST)
                except UserError as e:
                    raise UserError(f"{path}: {e}") from e
    return found
