"""Both directions of a source of pairs, registered as SeqIO tasks in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import seqio

from anygpt_jax.tasks import filters, preprocessors, registry
from anygpt_jax.templates import TEXT


def add_pairs(
    name: str,
    source: seqio.DataSource,
    modality: str,
    field: str,
    text: str,
    *,
    steps: Sequence[Callable] = (),
    x_to_text: float | None = None,
    metrics: tuple[str, str] | None = None,
    asked_by: tuple[tuple[str, ...], tuple[str, ...]] = ((), ()),
) -> tuple[str, str]:
    """Adds NAME_to_text and text_to_NAME, and returns their names.

    `field` has the media of `modality`, `text` what they say. `steps` (filters, normalization) come first. With
    `x_to_text` every pair goes one way, that share of them to text; without it every pair goes both ways. `metrics`
    are names in `anygpt_jax.tasks.metrics` that score text and media; `asked_by` replaces the instructions of both.
    """
    names = (f"{name}_to_text", f"text_to_{name}")
    ways = ((modality, TEXT, field, text), (TEXT, modality, text, field))
    for i, (task, (from_, to, from_field, to_field)) in enumerate(zip(names, ways, strict=True)):
        turn = functools.partial(
            preprocessors.pair, source=from_, target=to, source_field=from_field, target_field=to_field,
            asked_by=asked_by[i],
        )  # fmt: skip
        policy = [] if x_to_text is None else [filters.direction(x_to_text, to_text=to == TEXT)]
        if task in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(task)  # a module that is loaded again may have other data
        seqio.TaskRegistry.add(
            task,
            source=source,
            preprocessors=[*steps, *policy, turn],
            output_features=preprocessors.OUTPUT_FEATURES,
            postprocess_fn=registry.postprocess,
            metric_fns=[registry.metric(metrics[i])] if metrics else [],
        )
    return names
