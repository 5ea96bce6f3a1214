"""Which files the published evaluations need, where they are published, and whether a copy of them is whole.

    python -m anygpt_jax.evaluation.archives                 what each task needs, and where it goes
    python -m anygpt_jax.evaluation.archives FOLDER          checks the archives that lie in FOLDER by their MD5

Nothing is downloaded: the data have licences of their own, which whoever takes them accepts.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import pathlib
import sys


@dataclasses.dataclass(frozen=True)
class Archive:
    """`md5` is its publisher's, or that which many projects pin; "" where none is known. `goes` is below --data."""

    url: str
    md5: str
    goes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the file as it is published, and as `state_of` looks for it: the last part of the URL."""
        return self.url.rpartition("/")[2]


_ANY_INSTRUCT = "https://huggingface.co/datasets/fnlp/AnyInstruct/resolve/main"
_COCO, _VQA = ("coco_caption", "coco_image", "vqav2"), "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
ARCHIVES = (
    Archive(
        "http://images.cocodataset.org/zips/val2014.zip",
        "a3d79f5ed8d289b7a7554ce06a5782b3",
        tuple(f"{task}/val2014/" for task in _COCO),
    ),
    Archive(
        "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
        "",
        tuple(f"{task}/dataset_coco.json" for task in _COCO[:2]),
    ),
    Archive(f"{_VQA}/v2_Questions_Val_mscoco.zip", "", ("vqav2/v2_OpenEnded_mscoco_val2014_questions.json",)),
    Archive(f"{_VQA}/v2_Annotations_Val_mscoco.zip", "", ("vqav2/v2_mscoco_val2014_annotations.json",)),
    Archive(
        "https://www.openslr.org/resources/12/test-clean.tar.gz",
        "32fa31d27d2e1cad72775fee3f4849a9",
        ("librispeech_clean/test-clean/",),
    ),
    Archive(
        "https://www.openslr.org/resources/12/test-other.tar.gz",
        "fb5a50374b501bb3bac4815ee91d3135",
        ("librispeech_other/test-other/",),
    ),
    Archive(
        "https://datashare.ed.ac.uk/bitstream/handle/10283/3443/VCTK-Corpus-0.92.zip",
        "8a6ba2946b36fcbef0212cad601f4bfa",
        ("vctk/txt/", "vctk/wav48_silence_trimmed/"),
    ),
    Archive(  # GitHub packs it anew, so that no checksum lasts
        "https://github.com/multimodal-art-projection/OmniBench/archive/refs/heads/main.zip",
        "",
        tuple(
            f"omnibench/{place}"
            for place in ("dataset/batch-5_1142_20240817.jsonl", "mm_data/image/", "mm_data/audio/")
        ),
    ),
    Archive(
        f"{_ANY_INSTRUCT}/part1/metadata.json",
        "",
        tuple(f"{task}/metadata*.json*" for task in ("dialogue", "dialogue_spoken")),
    ),
    Archive(f"{_ANY_INSTRUCT}/part1/speech.tar", "", ("dialogue_spoken/speech*.tar",)),
)


def state_of(archive: Archive, folder: pathlib.Path) -> str:
    """ "whole", "damaged", "absent", or "unchecked" where no checksum is known."""
    path = folder / archive.name
    if not path.is_file():
        return "absent"
    if not archive.md5:
        return "unchecked"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return "whole" if found == archive.md5 else "damaged"


def main(argv: list[str] | None = None) -> int:
    """1 if an archive is damaged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, nargs="?", help="where the archives lie")
    args = parser.parse_args(argv)
    states = []
    for archive in ARCHIVES:
        states.append("" if args.folder is None else state_of(archive, args.folder))
        print(f"{states[-1]:<10}{archive.url}\n{'':10}md5 {archive.md5 or 'not known'}; to {', '.join(archive.goes)}")
    return int("damaged" in states)


if __name__ == "__main__":
    sys.exit(main())
