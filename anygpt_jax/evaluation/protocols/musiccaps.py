"""Music and its descriptions: MusicCaps, both ways, judged by CLAP; with VGGish's weights music made has an FAD too.

Clips are of YouTube and many were taken down since: those without a file are left out, so that `n` differs from paper
to paper. AnyGPT's paper does not say which of LAION's networks its CLAP score is by: scores by another one have another
scale, and only those of the real captions by the same one tell what a score is worth.
"""

from __future__ import annotations

import csv
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from anygpt_jax.evaluation.judges.chosen import Judges
from anygpt_jax.evaluation.measures import Measure
from anygpt_jax.evaluation.measures.distributions import frechet_to_originals, similarity
from anygpt_jax.evaluation.protocols import SPLIT, Protocol, Published
from anygpt_jax.generation.sampling import Sampling
from anygpt_jax.modalities.audio import load_audio
from anygpt_jax.modalities.base import Audio
from anygpt_jax.tasks.sources.source import Example, File, MediaSource, Unit, read_medium

ANNOTATIONS = "musiccaps-public.csv"
SOUNDS = "audio"
SUFFIXES = (".wav", ".flac", ".mp3")


def clips(folder: pathlib.Path) -> MediaSource:
    """musiccaps-public.csv beside audio/YTID.wav, .flac or .mp3: the ten seconds from start_s, cut out already.

    Fields: music, caption.
    """
    return MediaSource({SPLIT: str(folder / ANNOTATIONS)}, _read, fields=("music", "caption"))


def _read(file: File) -> Iterator[Unit]:
    with file.path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            paths = (file.path.parent / SOUNDS / f"{row['ytid']}{suffix}" for suffix in SUFFIXES)
            if found := next((path for path in paths if path.is_file()), None):
                yield functools.partial(_clip, found, row["caption"].strip())


def _clip(path: pathlib.Path, caption: str) -> Iterator[Example]:
    attributes = {"caption": caption, "file": str(path)}
    yield {"key": path.stem, "music": read_medium(path), "caption": caption, "attributes": attributes}


def _originals(attributes: Sequence[Mapping[str, Any]], rate: int) -> Iterator[Audio]:
    return (load_audio(pathlib.Path(a["file"]).read_bytes(), rate) for a in attributes)  # all at once would be 10 GB


def _text_measures(judges: Judges) -> tuple[Measure, ...]:
    clap = judges.clap

    def original(attributes: Sequence[Mapping[str, Any]]) -> np.ndarray:
        return clap.sounds(_originals(attributes, clap.mels.sample_rate))

    return (similarity("clap_score", original, clap.texts),)


def _music_measures(judges: Judges) -> tuple[Measure, ...]:
    clap = judges.clap

    def caption(attributes: Sequence[Mapping[str, Any]]) -> np.ndarray:
        return clap.texts([a["caption"] for a in attributes])

    found = (similarity("clap_score", caption, clap.sounds),)
    if (vggish := judges.vggish) is None:
        return found

    def embeddings(attributes: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        return vggish.sounds(_originals(attributes, vggish.sample_rate))

    return (*found, frechet_to_originals("fad", vggish.width, embeddings, vggish.sounds))


CITATION = "Agostinelli et al. 2023 (arXiv 2301.11325)"

PROTOCOLS = {
    "musiccaps_caption": Protocol(
        name="musiccaps_caption",
        title="MusicCaps, descriptions of music",
        data=clips,
        files=(ANNOTATIONS, SOUNDS),
        source="music",
        target="text",
        fields=("music", "caption"),
        reference=lambda attributes: attributes,
        measures=(),
        judged=_text_measures,
        sampling=Sampling(temperature=0.0),
        beams=5,  # AnyGPT, table 9
        max_new_tokens=256,
        citation=CITATION,
        examples=5_521,
        published=(
            Published("real captions", {"clap_score": 0.16}, "arXiv 2402.12226"),
            Published("AnyGPT 8B", {"clap_score": 0.11}, "arXiv 2402.12226"),
        ),
    ),
    "musiccaps_music": Protocol(
        name="musiccaps_music",
        title="MusicCaps, music of descriptions",
        data=clips,
        files=(ANNOTATIONS, SOUNDS),
        source="text",
        target="music",
        fields=("caption", "music"),
        reference=lambda attributes: attributes,
        measures=(),
        judged=_music_measures,
        sampling=Sampling(temperature=1.0, repetition_penalty=1.15),  # AnyGPT, table 9
        beams=1,
        max_new_tokens=4096,
        citation=CITATION,
        examples=5_521,
        published=(
            Published("AnyGPT 8B", {"clap_score": 0.14}, "arXiv 2402.12226"),
            Published("Riffusion", {"clap_score": 0.19}, "arXiv 2402.12226"),
            Published("Mousai", {"clap_score": 0.23}, "arXiv 2402.12226"),
        ),
    ),
}
