"""Small data in the layout of the published sets, from the embedded world: so that every protocol runs end to end.

    python -m anygpt_jax.evaluation.stand_ins FOLDER --config configs/quickstart.py [--examples 16]

Its scores say that the way from files to scores is whole, and nothing about the published sets.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import pathlib
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

from anygpt_jax.cache import write_atomically
from anygpt_jax.cli import load_config
from anygpt_jax.evaluation.examples import Example, read_split
from anygpt_jax.evaluation.protocols import coco, dialogue, musiccaps, omnibench, vctk, vqav2
from anygpt_jax.tasks import registry
from anygpt_jax.templates import TEXT


def write(folder: pathlib.Path, examples: int) -> None:
    """FOLDER/TASK for every protocol, of the first examples of the registered embedded test splits."""
    pictures = list(itertools.islice(read_split("image_to_text", "test"), examples))
    voices = list(itertools.islice(read_split("speech_to_text", "test"), examples))
    for task in ("coco_caption", "coco_image"):
        _coco_captions(folder / task, pictures)
    _vqa(folder / "vqav2", pictures)
    for subset in ("clean", "other"):
        _librispeech(folder / f"librispeech_{subset}", f"test-{subset}", voices)
    _vctk_sentences(folder / "vctk", voices)
    tunes = list(itertools.islice(read_split("music_to_text", "test"), examples))
    for task in ("musiccaps_caption", "musiccaps_music"):
        _musiccaps(folder / task, tunes)
    omnibench_questions(folder / "omnibench", pictures, voices, tunes)
    talks = list(itertools.islice(read_split("dialogues", "test"), examples))
    for task in ("dialogue", "dialogue_spoken"):
        dialogues(folder / task, talks)


def _caption(example: Example) -> str:
    assert example.target is not None
    return example.target[1].decode("utf-8")


def _coco_captions(folder: pathlib.Path, pictures: Sequence[Example]) -> None:
    """val2014/ in JPEG and dataset_coco.json: every picture has its one caption five times, all in the split test."""
    entries = []
    for i, example in enumerate(pictures):
        name = f"COCO_val2014_{i:012}.jpg"
        write_atomically(folder / "val2014" / name, _jpeg(example.source[1]))
        entries.append(
            {"filepath": "val2014", "filename": name, "split": "test", "sentences": [{"raw": _caption(example)}] * 5}
        )
    write_atomically(folder / coco.ANNOTATIONS, json.dumps({"images": entries}).encode())


def _vqa(folder: pathlib.Path, pictures: Sequence[Example]) -> None:
    """val2014/ in JPEG and the files of questions and answers: what is in the picture, said alike by all ten people."""
    questions, answers = [], []
    for i, example in enumerate(pictures):
        write_atomically(folder / "val2014" / f"COCO_val2014_{i:012}.jpg", _jpeg(example.source[1]))
        said = str(example.attributes.get("object", "yes"))
        questions.append({"question_id": i, "image_id": i, "question": "What is in the picture?"})
        answers.append({"question_id": i, "multiple_choice_answer": said, "answers": [{"answer": said}] * 10})
    write_atomically(folder / vqav2.QUESTIONS, json.dumps({"questions": questions}).encode())
    write_atomically(folder / vqav2.ANSWERS, json.dumps({"annotations": answers}).encode())


def _librispeech(folder: pathlib.Path, subset: str, voices: Sequence[Example]) -> None:
    """FOLDER/SUBSET/1/2: FLACs of one speaker's one chapter, and its file of transcripts, in capitals."""
    chapter = folder / subset / "1" / "2"
    lines = []
    for i, example in enumerate(voices):
        name = f"1-2-{i:04}"
        write_atomically(chapter / f"{name}.flac", _sound(example.source[1], "FLAC"))
        lines.append(f"{name} {_caption(example).upper()}\n")
    write_atomically(chapter / "1-2.trans.txt", "".join(lines).encode())


def _vctk_sentences(folder: pathlib.Path, voices: Sequence[Example]) -> None:
    """txt/ and the FLACs of the first microphone; two speakers, p225 and p226, take the sentences in turn."""
    for i, example in enumerate(voices):
        name = f"p{225 + i % 2}/p{225 + i % 2}_{i // 2 + 1:03}"
        write_atomically(folder / "txt" / f"{name}.txt", _caption(example).encode())
        write_atomically(folder / vctk.SOUNDS / f"{name}_mic1.flac", _sound(example.source[1], "FLAC"))


def _musiccaps(folder: pathlib.Path, tunes: Sequence[Example]) -> None:
    """audio/ in WAV and of musiccaps-public.csv the columns that say which clip and what it is."""
    written = io.StringIO(newline="")
    rows = csv.writer(written)
    rows.writerow(("ytid", "start_s", "end_s", "caption"))
    for i, example in enumerate(tunes):
        write_atomically(folder / musiccaps.SOUNDS / f"tune-{i:04}.wav", _sound(example.source[1], "WAV"))
        rows.writerow((f"tune-{i:04}", 0, 10, _caption(example)))
    write_atomically(folder / musiccaps.ANNOTATIONS, written.getvalue().encode())


def omnibench_questions(
    folder: pathlib.Path, pictures: Sequence[Example], voices: Sequence[Example], tunes: Sequence[Example]
) -> None:
    """What is in the picture, and is there a voice or music? Four options, of which one is right in both."""
    things = sorted({str(example.attributes["object"]) for example in pictures})
    rows = []
    for i, (picture, voice, tune) in enumerate(zip(pictures, voices, tunes, strict=False)):
        kind, sound = ("speech", voice) if i % 2 else ("music", tune)
        thing = str(picture.attributes["object"])
        other = things[(things.index(thing) + 1) % len(things)] if len(things) > 1 else "nothing"
        options = [f"{seen} and {heard}" for seen in (thing, other) for heard in ("speech", "music")]
        options = options[i % 4 :] + options[: i % 4]
        write_atomically(folder / omnibench.PICTURES / f"{i}.jpg", _jpeg(picture.source[1]))
        write_atomically(folder / omnibench.SOUNDS / f"{i}.mp3", _sound(sound.source[1], "MP3"))
        row = {"index": i, "task type": "Object Identification and Description", "audio type": kind}
        row |= {"question": "What do you see and hear?", "options": options, "answer": f"{thing} and {kind}"}
        rows.append(row | {"image_path": f"{i}.jpg", "audio_path": f"{i}.mp3"})
    write_atomically(folder / omnibench.ANNOTATIONS, _lines(rows))


def dialogues(folder: pathlib.Path, talks: Sequence[Example]) -> None:
    """Every segment is a turn of its own, as a turn has one order of its parts; what is spoken is written beside it."""
    rows: list[dict[str, Any]] = []
    media: dict[str, dict[str, bytes]] = {modality: {} for modality in dialogue.TARS}
    for i, example in enumerate(talks):
        parts = (*example.history, *(("assistant", *content) for content in example.answer))
        turns: list[dict[str, Any]] = []
        for j, (role, modality, data) in enumerate(parts):
            turn: dict[str, Any] = {"role": "user" if role == "human" else "chatbot"}
            if modality == TEXT:
                turn["message"] = data.decode("utf-8")
            else:
                name = f"{i}-{j}.{'png' if modality == 'image' else 'flac'}"
                media[modality][name] = data
                turn[dict(dialogue.NAMES.media)[modality]] = name
                if modality == "speech" and role == "human":
                    turn["message"] = _spoken(parts[j + 1 :])
            turns.append(turn)
        rows.append({"id": i, "chat": turns, "form": example.attributes.get("form", "dialogue")})
    write_atomically(folder / "metadata.jsonl", _lines(rows))
    for modality, members in media.items():
        write_atomically(folder / dialogue.TARS[modality].replace("*", ""), _tar(members))


def _spoken(after: Sequence[tuple[str, str, bytes]]) -> str:
    """In the embedded dialogues speech is answered by its transcript first."""
    return next((data.decode("utf-8") for role, modality, data in after if (role, modality) == ("assistant", TEXT)), "")


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _tar(members: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _jpeg(data: bytes) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(out, "JPEG", quality=95)
    return out.getvalue()


def _sound(data: bytes, form: str) -> bytes:
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=form)
    return out.getvalue()


def main() -> None:
    """For the command line; the config's data must have been built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--config", required=True, help="whose embedded data are taken; `anygpt build-data` makes them")
    parser.add_argument("--examples", type=int, default=16)
    args = parser.parse_args()
    registry.register(load_config(args.config))
    write(args.folder, args.examples)


if __name__ == "__main__":
    main()
