"""Small data in the layout of the published sets, from the embedded world: so that every protocol runs end to end.

    python -m anygpt_jax.evaluation.stand_ins FOLDER --config configs/quickstart.py [--examples 16]

Its scores say that the way from files to scores is whole, and nothing about the published sets.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import pathlib
from collections.abc import Sequence

from anygpt_jax.cache import write_atomically
from anygpt_jax.cli import load_config
from anygpt_jax.evaluation.examples import Example, read_split
from anygpt_jax.evaluation.protocols import coco, vctk, vqav2
from anygpt_jax.tasks import registry


def write(folder: pathlib.Path, examples: int) -> None:
    """FOLDER/TASK for every protocol, of the first examples of the registered embedded test splits."""
    pictures = list(itertools.islice(read_split("image_to_text", "test"), examples))
    voices = list(itertools.islice(read_split("speech_to_text", "test"), examples))
    for task in ("coco_caption", "coco_image"):
        coco_captions(folder / task, pictures)
    vqa(folder / "vqav2", pictures)
    for subset in ("clean", "other"):
        librispeech(folder / f"librispeech_{subset}", f"test-{subset}", voices)
    vctk_sentences(folder / "vctk", voices)


def _caption(example: Example) -> str:
    assert example.target is not None
    return example.target[1].decode("utf-8")


def coco_captions(folder: pathlib.Path, pictures: Sequence[Example]) -> None:
    entries = []
    for i, example in enumerate(pictures):
        name = f"COCO_val2014_{i:012}.jpg"
        write_atomically(folder / "val2014" / name, _jpeg(example.source[1]))
        entries.append(
            {"filepath": "val2014", "filename": name, "split": "test", "sentences": [{"raw": _caption(example)}] * 5}
        )
    write_atomically(folder / coco.ANNOTATIONS, json.dumps({"images": entries}).encode())


def vqa(folder: pathlib.Path, pictures: Sequence[Example]) -> None:
    questions, answers = [], []
    for i, example in enumerate(pictures):
        write_atomically(folder / "val2014" / f"COCO_val2014_{i:012}.jpg", _jpeg(example.source[1]))
        said = str(example.attributes.get("object", "yes"))
        questions.append({"question_id": i, "image_id": i, "question": "What is in the picture?"})
        answers.append({"question_id": i, "multiple_choice_answer": said, "answers": [{"answer": said}] * 10})
    write_atomically(folder / vqav2.QUESTIONS, json.dumps({"questions": questions}).encode())
    write_atomically(folder / vqav2.ANSWERS, json.dumps({"annotations": answers}).encode())


def librispeech(folder: pathlib.Path, subset: str, voices: Sequence[Example]) -> None:
    chapter = folder / subset / "1" / "2"
    lines = []
    for i, example in enumerate(voices):
        name = f"1-2-{i:04}"
        write_atomically(chapter / f"{name}.flac", _flac(example.source[1]))
        lines.append(f"{name} {_caption(example).upper()}\n")
    write_atomically(chapter / "1-2.trans.txt", "".join(lines).encode())


def vctk_sentences(folder: pathlib.Path, voices: Sequence[Example]) -> None:
    for i, example in enumerate(voices):
        name = f"p{225 + i % 2}/p{225 + i % 2}_{i // 2 + 1:03}"
        write_atomically(folder / "txt" / f"{name}.txt", _caption(example).encode())
        write_atomically(folder / vctk.SOUNDS / f"{name}_mic1.flac", _flac(example.source[1]))


def _jpeg(data: bytes) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(out, "JPEG", quality=95)
    return out.getvalue()


def _flac(data: bytes) -> bytes:
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format="FLAC")
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--config", required=True, help="whose embedded data are taken; `anygpt build-data` makes them")
    parser.add_argument("--examples", type=int, default=16)
    args = parser.parse_args()
    registry.register(load_config(args.config))
    write(args.folder, args.examples)


if __name__ == "__main__":
    main()
