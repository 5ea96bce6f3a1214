"""Speech in a voice that was never heard: VCTK, three seconds of another sentence of the speaker as the prompt."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from anygpt_jax.evaluation.judges.chosen import Judges
from anygpt_jax.evaluation.measures import Measure
from anygpt_jax.evaluation.measures.distributions import Embed, embed_in_batches, similarity
from anygpt_jax.evaluation.measures.transcripts import word_errors
from anygpt_jax.evaluation.protocols import SPLIT, Protocol, Published
from anygpt_jax.generation.sampling import Sampling
from anygpt_jax.modalities.audio import load_audio
from anygpt_jax.modalities.base import Audio
from anygpt_jax.tasks.sources.source import Example, File, MediaSource, Unit, read_medium

SOUNDS = "wav48_silence_trimmed"


def sentences(folder: pathlib.Path) -> MediaSource:
    """VCTK 0.92: txt/p225/p225_001.txt and wav48_silence_trimmed/p225/p225_001_mic1.flac. Fields: text, speech.

    AnyGPT's paper says neither which sentences nor which microphone: these are all, by the first one. The voice is that
    of the speaker's next sentence, the last one's that of the first.
    """
    return MediaSource({SPLIT: str(folder / "txt" / "*")}, _read, fields=("text", "speech"))


def _read(file: File) -> Iterator[Unit]:
    sounds = file.path.parents[1] / SOUNDS / file.path.name
    texts = {path.stem: path for path in sorted(file.path.glob("*.txt"))}
    names = [name for name in texts if (sounds / f"{name}_mic1.flac").is_file()]
    for i, name in enumerate(names):
        voice = names[(i + 1) % len(names)]
        yield functools.partial(_sentence, texts[name], sounds / f"{name}_mic1.flac", sounds / f"{voice}_mic1.flac")


def _sentence(text: pathlib.Path, sound: pathlib.Path, voice: pathlib.Path) -> Iterator[Example]:
    said = text.read_text(encoding="utf-8").strip()
    attributes = {"text": said, "file": str(sound), "voice": str(voice)}
    yield {"key": text.stem, "text": said, "speech": read_medium(sound), "attributes": attributes}


def _measures(judges: Judges) -> tuple[Measure, ...]:
    errors = word_errors("whisper")

    def by(name: str, hear: Callable[[Sequence[Audio]], list[str]]) -> Measure:
        def rows(references: Sequence[Mapping[str, Any]], predictions: Sequence[Any]) -> np.ndarray:
            present = [i for i, sound in enumerate(predictions) if sound is not None]
            heard = dict(zip(present, hear([predictions[i] for i in present]), strict=True))
            return errors.rows([r["text"] for r in references], [heard.get(i) for i in range(len(predictions))])

        return Measure(name, False, rows, errors.score)

    def voices(name: str, embed: Embed) -> Measure:
        def originals(references: Sequence[Mapping[str, Any]]) -> np.ndarray:
            return embed_in_batches(embed, (load_audio(pathlib.Path(r["file"]).read_bytes()) for r in references))

        return similarity(name, originals, embed)

    return (
        by("wer_pocketsphinx", judges.heard),
        *(by(f"wer_whisper_{whisper.size}", whisper.heard) for whisper in [judges.whisper] if whisper),
        voices("speaker_resemblyzer", judges.speaker.embed),
        *(voices("speaker_wavlm", wavlm.embed) for wavlm in [judges.wavlm] if wavlm),
    )


PROTOCOLS = {
    "vctk": Protocol(
        name="vctk",
        title="VCTK, zero-shot speech",
        data=sentences,
        files=("txt", SOUNDS),
        source="text",
        target="speech",
        fields=("text", "speech"),
        reference=lambda attributes: attributes,
        measures=(),
        judged=_measures,
        voice=lambda attributes: pathlib.Path(attributes["voice"]),
        sampling=Sampling(temperature=1.0, top_p=0.7),  # AnyGPT, table 9
        beams=1,
        max_new_tokens=4096,
        citation="Yamagishi et al. 2019 (doi 10.7488/ds/2645); VALL-E's way (arXiv 2301.02111)",
        examples=None,
        # By Whisper medium, and by UniAudio's script, whose network is that of speaker_wavlm: on which pairs is not said.
        published=(
            Published("ground truth", {"wer_whisper_medium": 0.019, "speaker_wavlm": 0.93}, "arXiv 2402.12226"),
            Published("VALL-E", {"wer_whisper_medium": 0.079, "speaker_wavlm": 0.75}, "arXiv 2402.12226"),
            Published("AnyGPT 8B", {"wer_whisper_medium": 0.085, "speaker_wavlm": 0.77}, "arXiv 2402.12226"),
            Published("AR-Omni 7B", {"wer": 0.065}, "arXiv 2601.17761"),
        ),
    )
}
