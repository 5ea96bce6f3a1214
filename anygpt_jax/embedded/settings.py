"""What is built, and where it lands. Imports nothing heavy: every room may ask for `data_dir`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib

import ml_collections

from anygpt_jax.errors import UserError

# Raise it whenever the same settings would give other examples: the folder of a build is named after it.
VERSION = "2.0.0"
BUILDER_CONFIGS = ("images", "speech", "music", "interleaved")
# Of settings that may not be any positive number. The eight instruments are among the objects.
BOUNDS: dict[str, tuple[int, int | None]] = {
    "objects": (10, 128), "two_objects": (0, 100), "voices_a_sentence": (1, 3), "seed": (0, None)
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of the training splits and, as `held_out`, of each validation (at most 128), test and hard split."""

    objects: int = 40
    scenes: int = 6000
    two_objects: int = 0  # percent of the scenes
    sentences: int = 900
    voices_a_sentence: int = 2  # of the training sentences
    espeak_sentences: int = 300
    clips: int = 1500
    dialogues: int = 800
    held_out: int = 96
    seed: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            low, high = BOUNDS.get(field.name, (1, None))
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < low or (high is not None and value > high):
                bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
                raise UserError(f"config.data.{field.name} is {value!r}; it must be a whole number {bounds}.")

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> Settings:
        """Reads `config.data` and `config.seed`; UserError for a missing or unknown name."""
        if "data" not in config:
            raise UserError(
                "The config has no `data` section, so there is nothing to build; see configs/quickstart.py."
            )
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(config.data) - known)
        if unknown:
            raise UserError(f"config.data.{unknown[0]} is not a setting; known ones: {', '.join(sorted(known))}.")
        return cls(seed=int(config.seed), **config.data.to_dict())

    @property
    def fingerprint(self) -> str:
        """12 hex digits: equal ones mean the same examples."""
        text = json.dumps([VERSION, dataclasses.asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def data_dir(config: ml_collections.ConfigDict) -> pathlib.Path:
    """The TFDS `data_dir` of this config: other settings are built beside, never over, what is there.

    A prepared part lies in `data_dir(config) / "embedded_world" / PART / VERSION`.
    """
    return pathlib.Path(config.workdir) / "data" / Settings.from_config(config).fingerprint
