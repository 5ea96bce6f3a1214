"""`anygpt build-data`: builds the embedded data set with TFDS, part by part.

A part is written into a folder of its own that gets its final name only when it is whole, so that an
interrupted build leaves finished parts and nothing that could be taken for one.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import importlib.util
import json
import logging
import os
import pathlib
import shutil
import time

import ml_collections

from anygpt_jax.cache import write_atomically
from anygpt_jax.embedded import assets
from anygpt_jax.embedded.settings import BUILDER_CONFIGS, VERSION, Settings, data_dir
from anygpt_jax.errors import UserError
from anygpt_jax.locks import alone

log = logging.getLogger(__name__)

CARD = pathlib.Path(__file__).with_name("CARD.md")


def part_dir(folder: pathlib.Path, part: str) -> pathlib.Path:
    """Where TFDS keeps a part under its `data_dir`."""
    return folder / "embedded_world" / part / VERSION


def is_built(folder: pathlib.Path, part: str) -> bool:
    """Whether a part is there and whole: TFDS renames its folder when all of it is written."""
    return (part_dir(folder, part) / "dataset_info.json").is_file()


def _clear_leftovers(folder: pathlib.Path, part: str) -> None:
    """Removes what an interrupted build of this part left behind: TFDS's `incomplete.…` folders."""
    for path in part_dir(folder, part).parent.glob("*incomplete*"):
        shutil.rmtree(path)


def build_part(settings: Settings, folder: pathlib.Path, part: str) -> dict[str, int]:
    """Builds one part unless it is there, and returns its number of examples by split."""
    import tensorflow_datasets as tfds

    from anygpt_jax.embedded.embedded_world.embedded_world_dataset_builder import Builder

    builder = Builder(config=part, settings=settings, data_dir=str(folder), file_format="tfrecord")
    if not is_built(folder, part):
        _clear_leftovers(folder, part)
        # TFDS wants a folder for downloads; there are none, so it stays empty.
        config = tfds.download.DownloadConfig(register_checksums=False)
        try:
            builder.download_and_prepare(download_dir=str(folder / "downloads"), download_config=config)
        except Exception as e:
            # TensorFlow and TFDS each wrap what the system said.
            if os.strerror(errno.ENOSPC) not in str(e):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from e
        finally:
            shutil.rmtree(folder / "downloads", ignore_errors=True)
    return {split: info.num_examples for split, info in builder.info.splits.items()}


def _write_card(path: pathlib.Path, settings: Settings, counts: dict[str, dict[str, int]]) -> None:
    """The data set's card, and what this build of it holds."""
    rows = "".join(f"| `{part}` | {', '.join(f'{s} {n:,}' for s, n in of.items())} |\n" for part, of in counts.items())
    listed = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(settings).items())
    text = (
        CARD.read_text() + f"\n## This build\n\nVersion {VERSION}; {listed}.\n\n| part | examples |\n|---|---|\n{rows}"
    )
    write_atomically(path, text.encode())


def _quiet() -> None:
    """Our own bars show the progress; TFDS's bars and notes would break them up."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import absl.logging
    import tensorflow_datasets as tfds

    absl.logging.set_verbosity(absl.logging.WARNING)
    tfds.disable_progress_bar()


def run(config: ml_collections.ConfigDict, args: argparse.Namespace) -> None:
    """Builds what is missing of `config.data` in WORKDIR/data. UserError for a bad setting or a missing package."""
    settings, folder = Settings.from_config(config), data_dir(config)
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise UserError("Building data needs TFDS; install this package with its [data] extra.")
    assets.require(*assets.PIP_NAMES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as e:
        raise UserError(f"Cannot make the folder {folder} ({e.strerror}); name another one with --workdir.") from e
    _quiet()
    counts = {}
    with alone(folder / ".lock", f"Another build is writing to {folder}; wait for it to end, then run this again."):
        for i, part in enumerate(BUILDER_CONFIGS, 1):
            start, ready = time.monotonic(), is_built(folder, part)
            counts[part] = build_part(settings, folder, part)
            listed = ", ".join(f"{split} {n}" for split, n in counts[part].items())
            took = "already built" if ready else f"{time.monotonic() - start:.1f} s"
            log.info("part %d of %d, %s: %s (%s)", i, len(BUILDER_CONFIGS), part, listed, took)
        settings_json = json.dumps({"version": VERSION, **dataclasses.asdict(settings)}, indent=1) + "\n"
        write_atomically(folder / "settings.json", settings_json.encode())
        _write_card(folder.parent / "README.md", settings, counts)
    print(f"The data set is in {folder}; its card is {folder.parent / 'README.md'}.")
