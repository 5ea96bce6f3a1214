"""Released layouts that are a tar, a table or a folder of the general kinds. What is read here is only where things are.

Others have files of their own: gigaspeech.py, interleaved documents in mmc4.py, dialogues in any_instruct.py.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from anygpt_jax.tasks.sources import grouped
from anygpt_jax.tasks.sources.metadata import medium, table_rows
from anygpt_jax.tasks.sources.source import Example, File, MediaSource, Unit, Unreadable
from anygpt_jax.tasks.sources.webdataset import webdataset

Splits = Mapping[str, str | Sequence[str]]


def laion(splits: Splits) -> MediaSource:
    """Tars as img2dataset writes them (github.com/rom1504/img2dataset, README): 000000012.jpg, .txt and .json.

    Fields: image, caption. The attributes are the JSON's: width, height, similarity, NSFW and so on, by its subset.
    """
    return webdataset(splits, {"image": grouped.IMAGES, "caption": "txt"})


def music_with_json(splits: Splits, caption: str = "caption") -> MediaSource:
    """Tars of songs, each with a JSON whose value `caption` ("title.en" looks inside) describes it.

    Fields: music, caption. AnyGPT's music data is of this kind: metadata as JSON beside the sound (paper, 4.1).
    """
    return webdataset(splits, {"music": grouped.SOUNDS, "caption": f"json:{caption}"})


def multilingual_librispeech(splits: Mapping[str, str], extension: str = "flac") -> MediaSource:
    """Folders of OpenSLR 94 (`{"train": "mls_english/train", "validation": "mls_english/dev"}`).

    transcripts.txt has a line SPEAKER_BOOK_NUMBER, tab, text; its sound is audio/SPEAKER/BOOK/SPEAKER_BOOK_NUMBER.flac
    (`extension="opus"` in the smaller edition). Fields: speech, text; attributes: speaker, book.
    """
    files = {split: f"{folder}/transcripts.txt" for split, folder in splits.items()}
    return MediaSource(files, functools.partial(_mls, extension=extension), fields=("speech", "text"), count=_lines)


def _mls(file: File, extension: str) -> Iterator[Unit]:
    with file.path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as f:
        for n, line in enumerate(f):
            yield functools.partial(_mls_line, n, line.rstrip("\r\n"), file.path.parent / "audio", extension)


def _mls_line(n: int, line: str, audio: pathlib.Path, extension: str) -> Iterator[Example]:
    name, tab, text = line.partition("\t")
    parts = name.split("_")
    if not tab or len(parts) != 3:
        yield {"key": f"#{n}", "unreadable": f"line {n + 1} of transcripts.txt is not SPEAKER_BOOK_NUMBER, tab, text"}
        return
    speaker, book, _ = parts
    speech = medium(audio, f"{speaker}/{book}/{name}.{extension}")
    yield {"key": name, "speech": speech, "text": text, "attributes": {"speaker": speaker, "book": book}}


def _lines(file: File) -> int:
    with file.path.open("rb") as f:
        return sum(1 for _ in f)


def common_voice(splits: Splits) -> MediaSource:
    """Tables of a Common Voice release (`{"train": "cv-corpus/en/train.tsv"}`), whose sounds are in clips/ beside them.

    Fields: speech, text; the other columns (client_id, age, gender, accents, locale …) are attributes.
    """
    return MediaSource(splits, _common_voice, fields=("speech", "text"), count=lambda file: _lines(file) - 1)


def _common_voice(file: File) -> Iterator[Unit]:
    # Sentences hold lone quotation marks, which mean nothing to this format.
    for n, row in enumerate(table_rows(file.path, "\t", quoted=False)):
        yield functools.partial(_clip, n, row, file.path.parent / "clips")


def _clip(n: int, row: Mapping[str, str | None], clips: pathlib.Path) -> Iterator[Example]:
    path, sentence = row.get("path") or "", row.get("sentence")
    name = path if not path or "." in path else f"{path}.mp3"  # early releases leave the extension out
    yield {
        "key": path or f"#{n}",
        "speech": medium(clips, name),
        "text": Unreadable("its row has no sentence") if sentence is None else sentence,
        "attributes": {c: v for c, v in row.items() if c not in ("path", "sentence") and v},
    }
