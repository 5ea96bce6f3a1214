"""Recognition of read English: LibriSpeech test-clean and test-other, word error rate, beam search of five."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator

from anygpt_jax.evaluation.measures.transcripts import word_errors
from anygpt_jax.evaluation.protocols import SPLIT, Protocol, Published
from anygpt_jax.generation.sampling import Sampling
from anygpt_jax.tasks.sources.source import Example, File, MediaSource, Unit, read_medium


def utterances(folder: pathlib.Path, subset: str) -> MediaSource:
    """OpenSLR 12: SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt, a line an utterance, beside its .flac files."""
    return MediaSource({SPLIT: str(folder / subset / "*" / "*" / "*.trans.txt")}, _read, fields=("speech", "text"))


def _read(file: File) -> Iterator[Unit]:
    for line in file.path.read_text(encoding="utf-8").rstrip("\n").split("\n"):
        yield functools.partial(_utterance, file.path.parent, line)


def _utterance(folder: pathlib.Path, line: str) -> Iterator[Example]:
    name, _, text = line.partition(" ")
    yield {
        "key": name,
        "speech": read_medium(folder / f"{name}.flac"),
        "text": text.lower(),
        "attributes": {"text": text},
    }


def _protocol(subset: str, examples: int, published: tuple[Published, ...]) -> Protocol:
    return Protocol(
        name=f"librispeech_{subset.removeprefix('test-')}",
        title=f"LibriSpeech {subset}",
        data=functools.partial(utterances, subset=subset),
        files=(subset,),
        source="speech",
        target="text",
        fields=("speech", "text"),
        reference=lambda attributes: attributes["text"],
        # The authors' word is all there is on their normalizer (AnyGPT's repository, issue 40): both are told.
        measures=(word_errors("paper"), word_errors("whisper")),
        sampling=Sampling(temperature=0.0),
        beams=5,
        max_new_tokens=256,
        citation="Panayotov et al. 2015, ICASSP",
        examples=examples,
        published=published,
    )


PROTOCOLS = {
    p.name: p
    for p in (
        _protocol(
            "test-clean",
            2_620,
            (
                Published("AnyGPT 8B", {"wer_paper": 0.085}, "arXiv 2402.12226"),
                Published("Whisper large-v2", {"wer_paper": 0.027}, "arXiv 2402.12226"),
                Published("wav2vec 2.0", {"wer_paper": 0.027}, "arXiv 2402.12226"),
                Published("MIO 7B", {"wer_paper": 0.063}, "arXiv 2601.17761"),
                Published("AR-Omni 7B", {"wer_paper": 0.094}, "arXiv 2601.17761"),
            ),
        ),
        _protocol("test-other", 2_939, ()),
    )
}
