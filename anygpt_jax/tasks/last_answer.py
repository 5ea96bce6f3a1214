"""What the last answer of a made dialogue must be: the part of its media that the dialogue decides.

Who asks for "a fox" leaves size and place to whoever draws. So a true answer's picture is not what every answer is to be
held against, only what of it was asked for is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anygpt_jax.tasks.metrics.scores import IMAGE_ATTRIBUTES, MUSIC_ATTRIBUTES
from anygpt_jax.tasks.metrics.text import parse_attributes


def of_last_answer(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A record's attributes (`synthesis.export.row`) with those that the answer's picture or music must have."""

    def said(field: str, names: tuple[str, ...]) -> dict[str, str]:
        return parse_attributes(str(attributes.get(field, "")), names)

    picture, tune = said("answer_image", IMAGE_ATTRIBUTES), said("answer_music", MUSIC_ATTRIBUTES)
    shown, heard = said("shown_image", IMAGE_ATTRIBUTES), said("heard_music", MUSIC_ATTRIBUTES)
    must: dict[str, str] = {}
    if picture:
        must |= asked_of_picture(picture, said("asked", IMAGE_ATTRIBUTES), shown, heard)
    if tune:
        must |= asked_of_tune(tune, said("asked", MUSIC_ATTRIBUTES), shown)
    return {**attributes, **must, "form": attributes.get("requirement", "dialogue")}


def asked_of_picture(
    picture: Mapping[str, str], named: Mapping[str, str], shown: Mapping[str, str], heard: Mapping[str, str]
) -> dict[str, str]:
    """What the request names; all of it if one thing of the picture shown before is to be another; else the object may
    be the instrument that was heard."""
    changed = {name for name in picture if picture[name] != shown.get(name)}
    if set(picture) == set(shown) and len(changed) == 1 and changed <= set(named):
        return dict(picture)
    asked = {name: value for name, value in picture.items() if named.get(name) == value}
    if "object" not in named and picture.get("object") == heard.get("instrument", ""):
        asked["object"] = picture["object"]
    return asked


def asked_of_tune(tune: Mapping[str, str], named: Mapping[str, str], shown: Mapping[str, str]) -> dict[str, str]:
    """What the request names; without an instrument there, that of the picture shown."""
    asked = {name: value for name, value in tune.items() if named.get(name) == value}
    if "instrument" not in named and tune.get("instrument") == shown.get("object", ""):
        asked["instrument"] = tune["instrument"]
    return asked
