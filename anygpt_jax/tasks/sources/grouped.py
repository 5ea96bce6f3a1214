"""Files that belong together by their names: `cat.jpg`, `cat.txt` and `cat.json` are one example.

A field is written as WebDataset writes it, `"jpg;png"`: the first of these extensions that is there. `"json:caption"`
is one value of a JSON file, `"json:title.en"` one deeper in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from anygpt_jax.tasks.sources.source import Example, Unreadable, cause

IMAGES = "jpg;jpeg;png;webp;gif;bmp;tif;tiff;avif;jp2"
SOUNDS = "flac;wav;mp3;ogg;opus;aif;aiff"

Place = TypeVar("Place")
Fields = Mapping[str, str]  # field -> extensions


def at_first_dot(name: str) -> tuple[str, str]:
    """`a/cat.seg.png` → `a/cat` and `seg.png`: the rule of WebDataset."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".") if not base.startswith(".") else (base, "", "")
    return folder + slash + stem, extension.lower()


def at_last_dot(name: str) -> tuple[str, str]:
    """`a/1.5.png` → `a/1.5` and `png`: the rule of file systems."""
    stem, _, extension = name.rpartition(".") if "." in name.rpartition("/")[2][1:] else (name, "", "")
    return stem, extension.lower()


def consecutive(
    named: Iterable[tuple[str, Place]], split_name: Callable[[str], tuple[str, str]]
) -> Iterator[tuple[str, dict[str, Place]]]:
    """Neighbours of one name as (name, {extension: place}). A name that comes back is numbered: keys are unique."""
    seen: dict[str, int] = {}
    current: str | None = None
    group: dict[str, Place] = {}

    def finished(name: str) -> str:
        seen[name] = seen.get(name, 0) + 1
        return name if seen[name] == 1 else f"{name}~{seen[name]}"

    for name, place in named:
        key, extension = split_name(name)
        if current is not None and (key != current or extension in group):
            yield finished(current), group
            group = {}
        current = key
        group[extension] = place
    if current is not None:
        yield finished(current), group


def example(
    key: str, group: Mapping[str, Place], fields: Fields, attributes: str | None, read: Callable[[Place], Any]
) -> Example:
    """`read` gives the bytes of a place, or Unreadable. `attributes` is the extension of the JSON that has them."""
    parsed: dict[str, Any] = {}

    def document(extension: str) -> Any:
        if extension not in parsed:
            data = read(group[extension])
            try:
                parsed[extension] = data if isinstance(data, Unreadable) else json.loads(data)
            except ValueError as e:
                parsed[extension] = Unreadable(f"its {extension} cannot be read ({cause(e)})")
        return parsed[extension]

    made: dict[str, Any] = {"key": key}
    for field, wanted in fields.items():
        extensions, _, inner = wanted.partition(":")
        found = next((e for e in extensions.split(";") if e in group), None)
        if found is None:
            made[field] = Unreadable(f"it has no {extensions.replace(';', ', ')} file")
        elif inner:
            made[field] = _inside(document(found), inner)
        else:
            made[field] = read(group[found])
    if attributes is not None and attributes in group:
        said = document(attributes)
        made["attributes"] = said if isinstance(said, dict) else {}
    return made


def _inside(document: Any, path: str) -> Any:
    if isinstance(document, Unreadable):
        return document
    for name in path.split("."):
        document = document.get(name) if isinstance(document, dict) else None
    return Unreadable(f"its JSON has no {path}") if document is None else document
