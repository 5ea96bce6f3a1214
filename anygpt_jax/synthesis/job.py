"""One synthesis: its settings, as workers get them, and the seeds and splits that follow from an item's id."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import ml_collections

from anygpt_jax.errors import UserError
from anygpt_jax.synthesis import prompts

SPLITS = ("train", "validation", "test")
FOLDER = "synthesis"


@dataclasses.dataclass(frozen=True)
class Job:
    """Plain strings and numbers: it is sent to every worker."""

    out: str  # WORKDIR/synthesis
    config: str  # config.synthesize as JSON
    seed: int

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> Job:
        """UserError for a config without a `synthesize` section, or with settings that cannot be."""
        if "synthesize" not in config:
            raise UserError("The config has no `synthesize` section; see configs/synthesize_small.py.")
        job = cls(
            str(pathlib.Path(config.workdir) / FOLDER), config.synthesize.to_json(sort_keys=True), int(config.seed)
        )
        s = job.settings
        for name in s.requirements:
            prompts.required(name)
        counts = ("shards", "rounds", "topics_a_round", "topics_a_call", "scenarios_a_topic")
        if bad := [name for name in counts if s[name] < 1]:
            raise UserError(f"config.synthesize.{bad[0]} is {s[bad[0]]}; it must be at least 1.")
        if not 0 <= s.held_out < 0.5 or not 0 <= s.spoken <= 1:
            raise UserError("config.synthesize needs held_out from 0 to below 0.5 and spoken from 0 to 1.")
        low, high = s.rounds_a_dialogue
        if not 1 <= low <= high:
            raise UserError(f"config.synthesize.rounds_a_dialogue is {(low, high)}; it must be at least, at most.")
        if not (s.voices and s.answering_voices) or not s.requirements:
            raise UserError("config.synthesize needs a voice of each side and a requirement at least.")
        if job.instructed and s.spoken != 1:
            raise UserError(f"config.synthesize.spoken is {s.spoken}; with instructions all is spoken: set it to 1.0.")
        return job

    @property
    def folder(self) -> pathlib.Path:
        """Where stages, answers and the ledger of costs are; the finished set and its report lie beside it."""
        return pathlib.Path(self.out)

    @functools.cached_property
    def settings(self) -> ml_collections.ConfigDict:
        """config.synthesize, parsed when it is first asked for."""
        return ml_collections.ConfigDict(json.loads(self.config))

    @property
    def instructed(self) -> bool:
        """Whether the words come from instruction sets, so that only their speech is made."""
        return bool(self.settings.get("instructions"))

    @property
    def shards(self) -> int:
        """Of every stage but the selection, which is one."""
        return int(self.settings.shards)

    def seed_of(self, *parts: Any) -> int:
        """32 bits that depend on the job's seed and these parts alone."""
        return int(_hash(self.seed, *parts)[:8], 16)

    def split_of(self, topic: str) -> str:
        """By the topic's own words, so that no topic is in two splits: `held_out` to test, a third of that to validation."""
        place = int(_hash("split", " ".join(topic.lower().split()))[:8], 16) / 2**32
        share = float(self.settings.held_out)
        return "test" if place < share else "validation" if place < share * 4 / 3 else "train"


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
