"""The directed pairs, and the judges that bound what each could score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anygpt_jax.evaluation.statistics import MetricFn
from anygpt_jax.tasks import metrics

# Judges that say what is in a medium, by what it is about.
READERS: dict[tuple[str, str], MetricFn] = {
    ("image", "image"): metrics.image_attributes,
    ("speech", "image"): metrics.spoken_image_attributes,
    ("speech", "music"): metrics.spoken_music_attributes,
    ("music", "music"): metrics.music_attributes,
}


def task_name(source: str, target: str) -> str:
    """Under which a pair's SeqIO task, its token cache and its predictions go."""
    return f"{source}_to_{target}"


def directed_pairs(modalities: Sequence[str], tasks: Sequence[str]) -> list[tuple[str, str]]:
    """Those among the modalities that are a task."""
    return [(s, t) for s in modalities for t in modalities if s != t and task_name(s, t) in tasks]


def subject(modality: str, attributes: Sequence[dict]) -> str:
    """What a medium tells of, "image" or "music": speech may tell of either."""
    if modality != "speech":
        return modality
    return "music" if all("instrument" in a for a in attributes) else "image"


def as_told_by(attributes: dict, about: str) -> dict:
    """Attributes in the terms of a picture or of a tune: a pictured instrument is the one that plays."""
    if about == "image" and "object" not in attributes and "instrument" in attributes:
        return {"object": attributes["instrument"]}
    if about == "music" and "instrument" not in attributes and "object" in attributes:
        return {"instrument": attributes["object"]}
    return attributes


def read_from(modality: str, targets: Sequence[dict], media: Sequence[Any]) -> dict[str, float]:
    """What a judge reads out of media of this modality, against the targets."""
    about = subject(modality, targets)
    return READERS[modality, about]([as_told_by(t, about) for t in targets], media)


def fits(attributes: dict, targets: Sequence[dict]) -> bool:
    """Whether a medium with these attributes could answer one of the targets in what it must name first."""
    for name in ("object", "instrument"):
        asked = {t[name] for t in targets if name in t}
        if asked:
            return attributes.get(name) in asked
    return "text" in attributes or not targets
