"""Captions of MS-COCO pictures by Karpathy's split, five captions a picture, both ways.

To text by beam search of five. To pictures by one caption, judged by CLIP twice: AnyGPT's 0.65 is called the similarity
to "its corresponding caption from a real image", and can only be a cosine of two pictures; so both are measured. With
Inception's weights there is FID too, between all pictures made and all their originals.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from anygpt_jax.evaluation.judges.chosen import Judges
from anygpt_jax.evaluation.measures import Measure
from anygpt_jax.evaluation.measures.captions import BLEU4, CIDER, ROUGE_L
from anygpt_jax.evaluation.measures.distributions import embed_in_batches, frechet_to_originals, similarity
from anygpt_jax.evaluation.protocols import SPLIT, Protocol, Published
from anygpt_jax.generation.sampling import Sampling
from anygpt_jax.modalities.pictures import load_picture
from anygpt_jax.tasks.sources.source import Example, File, MediaSource, Unit, read_medium

ANNOTATIONS = "dataset_coco.json"


def pictures(folder: pathlib.Path) -> MediaSource:
    """Karpathy's dataset_coco.json beside the folders val2014/ and train2014/. Fields: image, caption (the first)."""
    return MediaSource({SPLIT: str(folder / ANNOTATIONS)}, _read, fields=("image", "caption"))


def _read(file: File) -> Iterator[Unit]:
    for entry in json.loads(file.path.read_text(encoding="utf-8"))["images"]:
        if entry["split"] == file.split:
            yield functools.partial(_picture, file.path.parent, entry)


def _picture(folder: pathlib.Path, entry: dict) -> Iterator[Example]:
    captions = [sentence["raw"].strip() for sentence in entry["sentences"]]
    path = folder / entry["filepath"] / entry["filename"]
    yield {
        "key": entry["filename"],
        "image": read_medium(path),
        "caption": captions[0],
        "attributes": {"captions": captions, "file": str(path)},
    }


def _originals(attributes: Sequence[Mapping[str, Any]]) -> Iterator[np.ndarray]:
    return (load_picture(pathlib.Path(a["file"]).read_bytes()) for a in attributes)


def _picture_measures(judges: Judges) -> tuple[Measure, ...]:
    def original(attributes: Sequence[Mapping[str, Any]]) -> np.ndarray:
        return embed_in_batches(judges.clip.images, _originals(attributes))

    def caption(attributes: Sequence[Mapping[str, Any]]) -> np.ndarray:
        return judges.clip.texts([a["captions"][0] for a in attributes])

    found = (similarity("clip_i", original, judges.clip.images), similarity("clip_t", caption, judges.clip.images))
    if (inception := judges.inception) is None:
        return found

    def features(attributes: Sequence[Mapping[str, Any]]) -> np.ndarray:
        return inception.images(_originals(attributes))

    return (*found, frechet_to_originals("fid", inception.width, features, inception.images))


PROTOCOLS = {
    "coco_caption": Protocol(
        name="coco_caption",
        title="COCO captions, Karpathy's test split",
        data=pictures,
        files=(ANNOTATIONS, "val2014"),
        source="image",
        target="text",
        fields=("image", "caption"),
        reference=lambda attributes: attributes["captions"],
        measures=(CIDER, BLEU4, ROUGE_L),
        sampling=Sampling(temperature=0.0),
        beams=5,  # AnyGPT, table 9; SEED-LLaMA's captions too (its repository, issue 9)
        max_new_tokens=64,
        citation="Chen et al. 2015 (arXiv 1504.00325); split of Karpathy and Fei-Fei 2015 (arXiv 1412.2306)",
        examples=5_000,
        published=(
            Published("AnyGPT 8B", {"cider": 1.075}, "arXiv 2402.12226"),
            Published("SEED-LLaMA 8B", {"cider": 1.236}, "arXiv 2402.12226"),
            Published("DreamLLM 8B", {"cider": 1.154}, "arXiv 2402.12226"),
            Published("MIO 7B", {"cider": 1.204}, "arXiv 2601.17761"),
            Published("AR-Omni 7B", {"cider": 0.5653}, "arXiv 2601.17761"),
        ),
    ),
    "coco_image": Protocol(
        name="coco_image",
        title="Pictures of COCO captions, Karpathy's test split",
        data=pictures,
        files=(ANNOTATIONS, "val2014"),
        source="text",
        target="image",
        fields=("caption", "image"),
        reference=lambda attributes: attributes,
        measures=(),
        judged=_picture_measures,
        sampling=Sampling(temperature=1.0, top_p=0.7),  # AnyGPT, table 9
        beams=1,
        max_new_tokens=4096,
        citation="GILL's protocol (Koh et al. 2023, arXiv 2305.17216); it takes 30,000 captions of the validation split",
        examples=30_000,
        published=(
            Published("AnyGPT 8B", {"clip_i": 0.65}, "arXiv 2402.12226"),
            Published("SEED-LLaMA 8B", {"clip_i": 0.69}, "arXiv 2402.12226"),
            Published("Emu 14B", {"clip_i": 0.66}, "arXiv 2402.12226"),
            Published("GILL 8B", {"clip_i": 0.67}, "arXiv 2402.12226"),
            Published("AR-Omni 7B", {"clip_t": 0.24}, "arXiv 2601.17761"),
        ),
    ),
}
