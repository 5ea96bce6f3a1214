"""Documents of text and images as Multimodal C4 has them (github.com/allenai/mmc4, README)."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anygpt_jax.tasks.paths import OUTSIDE, below
from anygpt_jax.tasks.sources.metadata import rows
from anygpt_jax.tasks.sources.source import Example, File, MediaSource, Unit, Unreadable, read_medium

FIELDS = ("kind", "modality", "role", "content")
LISTS = ("modality", "role", "content")


def mmc4(splits: Mapping[str, str | Sequence[str]], images: str, least_similarity: float = 0.0) -> MediaSource:
    """Splits are JSONL files of documents; `images` is the folder that has every `image_name`.

    An image stands before the sentence it is matched to. Left out, and counted in the attributes, are images below
    `least_similarity` (`matched_sim`, the cosine of CLIP ViT-L/14) and images that are not in the folder: links die.
    A document with an image whose name leads out of the folder is rejected.
    Examples are for `preprocessors.interleaved` with kind "document".
    """
    reader = functools.partial(read, images=pathlib.Path(images), least_similarity=least_similarity)
    return MediaSource(splits, reader, fields=FIELDS, lists=LISTS)


def read(file: File, images: pathlib.Path, least_similarity: float) -> Iterator[Unit]:
    """A unit is one document."""
    for n, row in enumerate(rows(file.path)):
        yield functools.partial(document, n, row, images, least_similarity)


def document(
    n: int, row: Mapping[str, Any] | Unreadable, images: pathlib.Path, least_similarity: float
) -> Iterator[Example]:
    """One example, named by its row `n`. Sentences of white space alone are left out."""
    key = f"{n:08d}"
    if isinstance(row, Unreadable):
        yield {"key": key, "unreadable": row.reason}
        return
    sentences = row["text_list"]
    before: list[list[bytes | Unreadable]] = [[] for _ in sentences]
    dissimilar = missing = 0
    for image in row.get("image_info") or ():
        if float(image.get("matched_sim", 1.0)) < least_similarity:
            dissimilar += 1
        elif (path := below(images, image["image_name"])) is None:
            before[image["matched_text_index"]].append(Unreadable(OUTSIDE))
        elif not path.is_file():
            missing += 1
        else:
            before[image["matched_text_index"]].append(read_medium(path))
    content: list[tuple[str, str | bytes | Unreadable]] = []
    for sentence, matched in zip(sentences, before, strict=True):
        content += [("image", image) for image in matched]
        content += [("text", sentence)] if sentence.strip() else []
    yield {
        "key": key,
        "kind": "document",
        "modality": [modality for modality, _ in content],
        "role": ["document"] * len(content),
        "content": [value for _, value in content],
        "attributes": {"url": row.get("url"), "dissimilar_images": dissimilar, "missing_images": missing},
    }
