"""Published evaluations, one a file: which examples, how they are asked and answered, what is measured, who says so.

A protocol's data are an ordinary SeqIO task (`Protocol.register`), read in the layout in which they are published; its
files stay outside the project, where their licences keep them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import seqio

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.judges.chosen import Judges
from anygpt_jax.evaluation.measures import Measure
from anygpt_jax.generation.sampling import Sampling
from anygpt_jax.tasks import preprocessors, registry
from anygpt_jax.tasks.sources.source import MediaSource

SPLIT = "test"
PROMPT_SECONDS = 3.0  # of a voice to imitate (VALL-E's protocol, arXiv 2301.02111; AnyGPT's as well)
# name -> the module in this package that has it
_MODULES = {
    "coco_caption": "coco",
    "coco_image": "coco",
    "dialogue": "dialogue",
    "dialogue_spoken": "dialogue",
    "librispeech_clean": "librispeech",
    "librispeech_other": "librispeech",
    "musiccaps_caption": "musiccaps",
    "musiccaps_music": "musiccaps",
    "omnibench": "omnibench",
    "vctk": "vctk",
    "vqav2": "vqav2",
}
NAMES = tuple(_MODULES)


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of a paper's table: the system, its scores by measure, and where they are printed."""

    system: str
    scores: Mapping[str, float]
    where: str


@dataclasses.dataclass(frozen=True)
class Protocol:
    """`source` and `target` are modalities; `fields` those of the data's examples, the source's and the target's.

    Without a source the data are whole turns, for `preprocessors.interleaved` as dialogues, and asked as they are up to
    the last answer. Without a target the model goes on by its own plan, and a prediction is a tuple of (modality, str
    or medium): None stands for a medium that cannot be read.
    """

    name: str
    title: str
    data: Callable[[pathlib.Path], MediaSource]  # of the folder that holds the data set
    files: tuple[str, ...]  # what must lie in that folder
    source: str | None
    target: str | None
    fields: tuple[str, str | None] | None  # None without a source
    reference: Callable[[Mapping[str, Any]], Any]  # of an example's attributes: what the measures compare with
    measures: tuple[Measure, ...]  # that need no network
    sampling: Sampling  # of the target's modality, of every one without a target
    beams: int
    max_new_tokens: int
    citation: str
    examples: int | None  # of the published set, where that is one: with fewer a score is another's
    published: tuple[Published, ...] = ()
    # Further measures, by networks that are loaded when they are needed.
    judged: Callable[[Judges], tuple[Measure, ...]] | None = None
    # The recording in whose voice speech is made: of an example's attributes; its first `PROMPT_SECONDS`.
    voice: Callable[[Mapping[str, Any]], pathlib.Path] | None = None
    # Beside the source, what is asked: of an example's attributes. None: the prompt format's own words for this direction.
    question: Callable[[Mapping[str, Any]], str] | None = None

    def register(self, folder: pathlib.Path) -> seqio.Task:
        """The SeqIO task NAME over the data in `folder`. UserError if files are not there."""
        self.check(folder)
        if self.name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(self.name)
        turn = functools.partial(preprocessors.interleaved, kind="dialogue")
        if self.source and self.target and self.fields:
            turn = functools.partial(
                preprocessors.pair,
                source=self.source,
                target=self.target,
                source_field=self.fields[0],
                target_field=self.fields[1],
            )
        return seqio.TaskRegistry.add(
            self.name,
            source=self.data(folder),
            preprocessors=[turn],
            output_features=preprocessors.OUTPUT_FEATURES,
            postprocess_fn=registry.postprocess,
            metric_fns=[self.scores],
        )

    def recipe(self) -> str:
        """What an answer depends on beside the model and the example."""
        return f"{self.name}: {self.sampling}, {self.beams} beams, at most {self.max_new_tokens} tokens"

    def check(self, folder: pathlib.Path) -> None:
        """UserError names those of `files` (names or patterns) that match nothing in the folder."""
        missing = [name for name in self.files if not any(folder.glob(name))]
        if missing:
            raise UserError(
                f"{self.name} needs {' and '.join(missing)} in {folder}; docs/evaluation.md says where they come from."
            )

    def all_measures(self, judges: Judges) -> tuple[Measure, ...]:
        """`measures`, then those of networks. UserError if a network that must be there is not."""
        return self.measures + (self.judged(judges) if self.judged else ())

    def scores(self, targets: list[Mapping[str, Any]], predictions: list[Any]) -> dict[str, float]:
        """A metric function as SeqIO's: of attributes and predicted media."""
        references = [self.reference(attributes) for attributes in targets]
        return {m.name: m.score(m.rows(references, predictions)) for m in self.measures}


def by_name(name: str) -> Protocol:
    """The protocol of one of NAMES, whose module is imported only now. UserError for any other name."""
    if name not in _MODULES:
        raise UserError(f"Unknown evaluation task '{name}'; known ones: {', '.join(NAMES)}.")
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    return module.PROTOCOLS[name]
