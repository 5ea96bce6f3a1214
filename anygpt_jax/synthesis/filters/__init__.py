"""What a dialogue must be to stay: one interface of every filter, before its media are made and after.

A filter drops nothing. It scores, and says why it refuses; the dialogue keeps both, so that all can be counted and shown.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from anygpt_jax.errors import UserError
from anygpt_jax.synthesis.dialogue import Dialogue, Place, media_of, with_media

if typing.TYPE_CHECKING:
    from anygpt_jax.synthesis.filters.selection import SelectionSettings

Read = Callable[[str], bytes]  # a medium's `file` → its bytes
SECTION = "config.synthesize.filters"
Settings = TypeVar("Settings")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a filter found: scores of the dialogue and of its media, and why it refuses (a sentence) if it does."""

    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    reason: str | None = None
    media: Mapping[Place, Mapping[str, float]] = dataclasses.field(default_factory=dict)


class Filter(Protocol):
    """`name` is what `Dialogue.removed_by` says."""

    @property
    def name(self) -> str:
        """With underscores, which reports show as spaces."""
        ...

    def check(self, dialogue: Dialogue, read: Read) -> Verdict:
        """`read` opens media by their `file`; filters of scripts leave it alone, as there are none yet."""
        ...


@typing.runtime_checkable
class Batched(Protocol):
    """A filter whose judge is faster with many dialogues' media at once."""

    @property
    def name(self) -> str:
        """As of `Filter`."""
        ...

    def check(self, dialogue: Dialogue, read: Read) -> Verdict:
        """As of `Filter`."""
        ...

    def check_many(self, dialogues: Sequence[Dialogue], read: Read) -> list[Verdict]:
        """A verdict a dialogue, in their order, the same that `check` gives each alone."""
        ...


def apply_many(filters: Sequence[Filter], dialogues: Sequence[Dialogue], read: Read) -> list[Dialogue]:
    """Every dialogue with the scores of the filters up to the first that refuses it, and with that one's reason.

    The later filters do not see it, as they may rely on what the earlier ones ask for. One that was removed before stays
    as it is.
    """
    found = list(dialogues)
    for one in filters:
        left = [i for i, dialogue in enumerate(found) if not dialogue.removed_by]
        verdicts: Sequence[Verdict]
        if isinstance(one, Batched):
            verdicts = one.check_many([found[i] for i in left], read)
        else:
            verdicts = [one.check(found[i], read) for i in left]
        for i, verdict in zip(left, verdicts, strict=True):
            found[i] = judged(found[i], one.name, verdict)
    return found


def judged(dialogue: Dialogue, name: str, verdict: Verdict) -> Dialogue:
    """The dialogue with what the filter of this name found."""
    scored = {
        place: dataclasses.replace(medium, scores={**medium.scores, **verdict.media[place]})
        for place, medium in media_of(dialogue)
        if place in verdict.media
    }
    found = dataclasses.replace(with_media(dialogue, scored), scores={**dialogue.scores, **verdict.scores})
    return found if verdict.reason is None else dataclasses.replace(found, removed_by=name, reason=verdict.reason)


def of_scripts(section: Mapping[str, Any]) -> Sequence[Filter]:
    """By `scripts` of the config's section of filters."""
    from anygpt_jax.synthesis.filters import scripts

    return scripts.filters(settings_of(scripts.ScriptSettings, section.get("scripts", {}), f"{SECTION}.scripts"))


def check(section: Mapping[str, Any]) -> None:
    """UserError for a setting that cannot be, before anything is made."""
    if unknown := set(section) - {"scripts", "selection", "media"}:
        raise UserError(f"{SECTION} has no part {min(unknown)!r}; there are scripts, selection and media.")
    of_scripts(section), of_selection(section), of_media(section)


def words_digest() -> str:
    """Of the word lists."""
    folder = importlib.resources.files("anygpt_jax.synthesis.filters").joinpath("words")
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.name.endswith(".txt"))).hexdigest()


def of_selection(section: Mapping[str, Any]) -> SelectionSettings:
    """`selection` of the config's section of filters."""
    from anygpt_jax.synthesis.filters import selection

    return settings_of(selection.SelectionSettings, section.get("selection", {}), f"{SECTION}.selection")


def of_media(section: Mapping[str, Any]) -> Sequence[Filter]:
    """By `media` of the config's section of filters."""
    from anygpt_jax.synthesis.filters import media

    return media.filters(settings_of(media.MediaSettings, section.get("media", {}), f"{SECTION}.media"))


def texts_of(dialogue: Dialogue) -> list[str]:
    """What is written in every turn, and the descriptions of its media."""
    return [text for said in dialogue.turns for text in (said.text, *(m.description for m in said.media)) if text]


def settings_of(kind: type[Settings], section: Mapping[str, Any], where: str) -> Settings:
    """Settings of a section of the config, called `where` in errors. A list becomes a tuple, a section a dict.

    UserError for an unknown name, or a value of another kind than the setting's default.
    """
    defaults = {field.name: getattr(kind(), field.name) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for name, value in section.items():
        if name not in defaults:
            raise UserError(f"{where}.{name} is not a setting; known ones: {', '.join(sorted(defaults))}.")
        default = defaults[name]
        value = tuple(value) if isinstance(value, list | tuple) else dict(value) if hasattr(value, "items") else value
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(default):
            raise UserError(f"{where}.{name} is {value!r}; it must be like its default, {default!r}.")
        given[name] = value
    return kind(**given)
