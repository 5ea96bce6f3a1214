"""The SeqIO tasks: the one place where a data set is defined.

To tokenize, train on and evaluate data of your own, register a task in a module of yours, and name that
module in `config.tokenize.modules` and the task in `config.tokenize.tasks` and `config.mixture`:

    seqio.TaskRegistry.add(
        "photos_to_text",
        source=seqio.TfdsDataSource("photos:1.0.0", tfds_data_dir="data", splits=("train", "test")),
        preprocessors=[functools.partial(
            preprocessors.pair, source="image", target="text", source_field="photo", target_field="caption")],
        output_features=preprocessors.OUTPUT_FEATURES, metric_fns=[registry.metric("caption_attributes")])
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import seqio

from anygpt_jax.embedded import settings, voices
from anygpt_jax.errors import UserError
from anygpt_jax.tasks import preprocessors
from anygpt_jax.tasks.last_answer import of_last_answer
from anygpt_jax.tasks.preprocessors import Attributes

DATASET = "embedded_world"
MIXTURE = "anygpt"
TRAINED_SPLITS = ("train", "validation", "test")
HARD_SPEECH = ("test_voice", "test_unspoken", "test_librivox")

# Names of the builder's configs, and the field that holds each modality.
FIELDS: Mapping[str, Mapping[str, str]] = {
    "images": {"image": "image", "text": "caption"},
    "speech": {"speech": "speech", "text": "text"},
    "music": {"music": "music", "text": "caption"},
}


@dataclasses.dataclass(frozen=True)
class PairTask:
    """One directed pair over one builder config. Without `target` in the data there is only a human turn."""

    source: str
    target: str
    data: str
    metric: str
    splits: tuple[str, ...] | Mapping[str, str] = TRAINED_SPLITS  # or the task's -> the data's
    keep: Callable[[Attributes], bool] | None = None  # the direction policy
    derive: Callable[[Attributes], Attributes] | None = None
    also: tuple[str, ...] = ()  # metrics beside the main one

    @property
    def name(self) -> str:
        """As it is registered in SeqIO, and named in configs."""
        return f"{self.source}_to_{self.target}"

    def preprocessors(self) -> list[Callable]:
        """The task's steps, in their order: they take examples of the builder's config `data`."""
        fields = FIELDS[self.data]
        steps: list[Callable] = []
        if self.keep is not None:
            steps.append(functools.partial(preprocessors.keep, rule=self.keep))
        if self.derive is not None:
            steps.append(functools.partial(preprocessors.derive_attributes, derive=self.derive))
        steps.append(
            functools.partial(
                preprocessors.pair,
                source=self.source,
                target=self.target,
                source_field=fields[self.source],
                target_field=fields.get(self.target),
            )
        )
        return steps


def in_a_voice_to_imitate(attributes: Attributes) -> bool:
    """Formant synthesis is for listening only: the model should not learn to speak like it."""
    return attributes["voice"] in voices.names("tts")


def mentions_a_picture(attributes: Attributes) -> bool:
    """Of spoken sentences only those about a picture ask for one."""
    return "object" in attributes


def mentions_an_instrument(attributes: Attributes) -> bool:
    """Of spoken sentences only those about music ask for a tune."""
    return "instrument" in attributes


def instrument_to_play(attributes: Attributes) -> Attributes:
    """A picture of an instrument asks for a tune on it."""
    return {"instrument": attributes["object"]}


def instrument_to_draw(attributes: Attributes) -> Attributes:
    """A tune asks for a picture of what plays it."""
    return {"object": attributes["instrument"]}


PAIRS = (
    PairTask("image", "text", "images", "caption_attributes", (*TRAINED_SPLITS, "test_openmoji")),
    PairTask("text", "image", "images", "image_attributes"),
    PairTask(
        "speech", "text", "speech", "word_error_rate", (*TRAINED_SPLITS, *HARD_SPEECH), also=("unspoken_word_recall",)
    ),
    PairTask(
        "text", "speech", "speech", "speech_word_error_rate", (*TRAINED_SPLITS, "test_unspoken"),
        in_a_voice_to_imitate, also=("heard_unspoken_word_recall",),
    ),
    PairTask("music", "text", "music", "music_caption_attributes"),
    PairTask("text", "music", "music", "music_attributes"),
    # Never trained: made of the same held-out examples, and there is no truth but the attributes.
    PairTask("speech", "image", "speech", "image_attributes", ("test",), keep=mentions_a_picture),
    PairTask("image", "speech", "images", "spoken_image_attributes", ("test",)),
    PairTask("speech", "music", "speech", "music_attributes", {"test": "test_music"}, keep=mentions_an_instrument),
    PairTask("music", "speech", "music", "spoken_music_attributes", ("test",)),
    PairTask("image", "music", "images", "music_attributes", {"test": "test_instruments"}, derive=instrument_to_play),
    PairTask("music", "image", "music", "image_attributes", ("test",), derive=instrument_to_draw),
)  # fmt: skip

# Text by itself, as documents: task -> (the builder's config, its field).
TEXTS = {
    "image_captions": ("images", "caption"), "music_captions": ("music", "caption"), "sentences": ("speech", "text")
}  # fmt: skip


def metric(name: str) -> Callable[[Sequence[Attributes], Sequence[Any]], dict[str, float]]:
    """A metric of anygpt_jax.tasks.metrics, imported when it is called: judges load recognizers."""

    def score(targets: Sequence[Attributes], predictions: Sequence[Any]) -> dict[str, float]:
        return getattr(importlib.import_module("anygpt_jax.tasks.metrics"), name)(targets, predictions)

    score.__name__ = name
    return score


def postprocess(output: Any, *, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """A target is the dict of attributes of its example; a prediction is already media."""
    if is_target and example is not None:
        return json.loads(example["attributes"])
    return output


def any_instruct_source(folder: pathlib.Path, heard: str) -> seqio.DataSource:
    """Of a set that `anygpt synthesize` made; what is spoken in it is heard and answered by voice."""
    from anygpt_jax.tasks.sources.any_instruct import any_instruct

    tars = {"image": "images", "music": "music", "speech": "speech"}
    return any_instruct(
        {split: str(folder / split / "metadata-*.jsonl") for split in TRAINED_SPLITS},
        {m: [str(p) for p in sorted(folder.glob(f"*/{name}-*.tar"))] for m, name in tars.items()},
        spoken=True,
        heard=heard,
    )


def register(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Registers every task of the embedded data set of this config, and the config's mixture.

    Returns `config.tokenize.tasks`. Calling it again changes nothing; with another workdir the tasks move
    there. Raises UserError for a task that no module registered.
    """
    for module in config.tokenize.get("modules", ()):
        importlib.import_module(module)
    data_dir = str(settings.data_dir(config))
    for task in PAIRS:
        metric_fns = [metric(name) for name in (task.metric, *task.also)]
        _add(task.name, task.data, data_dir, task.splits, task.preprocessors(), metric_fns)
    for kind in ("document", "dialogue"):
        steps = [functools.partial(preprocessors.interleaved, kind=kind)]
        _add(f"{kind}s", "interleaved", data_dir, TRAINED_SPLITS, steps, [])
    for name, (data, field) in TEXTS.items():
        _add(name, data, data_dir, TRAINED_SPLITS, [functools.partial(preprocessors.text_alone, field=field)], [])
    if folder := config.tokenize.get("any_instruct"):
        steps = [
            functools.partial(preprocessors.interleaved, kind="dialogue"),
            functools.partial(preprocessors.derive_attributes, derive=of_last_answer),
        ]
        source = any_instruct_source(pathlib.Path(folder), config.tokenize.get("heard") or "")
        _add_task("any_instruct", source, steps, [])
    names = seqio.TaskRegistry.names()
    for name in (*config.tokenize.tasks, *config.mixture):
        if name not in names:
            raise UserError(f"No SeqIO task '{name}' is registered; there are: {', '.join(sorted(names))}.")
    if MIXTURE in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(MIXTURE)
    seqio.MixtureRegistry.add(MIXTURE, [(name, float(share)) for name, share in config.mixture.items()])
    return tuple(config.tokenize.tasks)


def _add(
    name: str,
    data: str,
    data_dir: str,
    splits: Sequence[str] | Mapping[str, str],
    steps: Sequence[Callable],
    metric_fns: Sequence[Callable],
) -> None:
    """Of the embedded data set."""
    source = seqio.TfdsDataSource(f"{DATASET}/{data}:{settings.VERSION}", tfds_data_dir=data_dir, splits=splits)
    _add_task(name, source, steps, metric_fns)


def _add_task(name: str, source: seqio.DataSource, steps: Sequence[Callable], metric_fns: Sequence[Callable]) -> None:
    """Adds or moves one task. SeqIO looks at the data only when the task is read."""
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=list(steps),
        output_features=preprocessors.OUTPUT_FEATURES,
        postprocess_fn=postprocess,
        metric_fns=list(metric_fns),
    )
