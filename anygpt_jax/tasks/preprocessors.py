"""tf.data steps that bring any source to the one form of example that is tokenized and evaluated.

    key         string      unique in its source
    modality    string[n]   "text", "image", "speech", "music", …
    content     string[n]   UTF-8 text or encoded media (PNG, FLAC, WAV)
    role        string[n]   one of anygpt_jax.records.ROLES
    loss        bool[n]     whether the segment is trained
    attributes  string      JSON: what the task's metrics score against

Every step is a pure function of the example, so that shards and reruns agree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import seqio
import tensorflow as tf

from anygpt_jax.tasks.instructions import choose, instructions
from anygpt_jax.templates import TEXT

Example = Mapping[str, tf.Tensor]
Attributes = dict[str, object]

# Nothing here needs Python's control flow rewritten, and rewriting it costs more than running it.
_plain = tf.autograph.experimental.do_not_convert

_RAW = seqio.PassThroughVocabulary(size=1)


def _feature(dtype: tf.DType, rank: int) -> seqio.Feature:
    return seqio.Feature(vocabulary=_RAW, add_eos=False, dtype=dtype, rank=rank)


OUTPUT_FEATURES = {
    "key": _feature(tf.string, 0),
    "modality": _feature(tf.string, 1),
    "content": _feature(tf.string, 1),
    "role": _feature(tf.string, 1),
    "loss": _feature(tf.bool, 1),
    "attributes": _feature(tf.string, 0),
}


def keep(dataset: tf.data.Dataset, rule: Callable[[Attributes], bool]) -> tf.data.Dataset:
    """Only the examples whose attributes satisfy `rule`."""

    def satisfies(attributes: bytes) -> bool:
        return bool(rule(json.loads(attributes)))

    @_plain
    def wanted(example: Example) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(satisfies, [example["attributes"]], tf.bool), [])

    return dataset.filter(wanted)


def derive_attributes(dataset: tf.data.Dataset, derive: Callable[[Attributes], Attributes]) -> tf.data.Dataset:
    """Replaces the attributes: what is scored may be called otherwise in the target's modality."""

    def rewrite(attributes: bytes) -> bytes:
        return json.dumps(derive(json.loads(attributes)), sort_keys=True).encode()

    @_plain
    def replaced(example: Example) -> Example:
        attributes = tf.ensure_shape(tf.numpy_function(rewrite, [example["attributes"]], tf.string), [])
        return {**example, "attributes": attributes}

    return dataset.map(replaced, num_parallel_calls=tf.data.AUTOTUNE)


def pair(
    dataset: tf.data.Dataset,
    *,
    source: str,
    target: str,
    source_field: str,
    target_field: str | None,
    asked_by: tuple[str, ...] = (),
) -> tf.data.Dataset:
    """A human turn of instruction and source; if the data has the target, an assistant turn that is trained.

    `asked_by` are the instructions; by default ours for this direction.
    """
    variants = asked_by or instructions(source, target)

    def instruct(key: bytes) -> bytes:
        return choose(variants, key.decode()).encode()

    @_plain
    def segments(example: Example) -> Example:
        asked = tf.ensure_shape(tf.numpy_function(instruct, [example["key"]], tf.string), [])
        modality, content = [TEXT, source], [asked, example[source_field]]
        role, loss = ["human", "human"], [False, False]
        if target_field is not None:
            modality, content = [*modality, target], [*content, example[target_field]]
            role, loss = [*role, "assistant"], [*loss, True]
        return {
            "key": example["key"],
            "modality": tf.constant(modality),
            "content": tf.stack(content),
            "role": tf.constant(role),
            "loss": tf.constant(loss),
            "attributes": example["attributes"],
        }

    return dataset.map(segments, num_parallel_calls=tf.data.AUTOTUNE)


def interleaved(dataset: tf.data.Dataset, *, kind: str) -> tf.data.Dataset:
    """Documents (loss everywhere) or dialogues (loss on the assistant's turns) from one interleaved source."""

    @_plain
    def segments(example: Example) -> Example:
        role = example["role"]
        return {
            "key": example["key"],
            "modality": example["modality"],
            "content": example["content"],
            "role": role,
            "loss": tf.ones_like(role, tf.bool) if kind == "document" else tf.equal(role, "assistant"),
            "attributes": example.get("attributes", tf.constant("{}")),
        }

    of_this_kind = dataset.filter(_plain(lambda example: tf.equal(example["kind"], kind)))
    return of_this_kind.map(segments, num_parallel_calls=tf.data.AUTOTUNE)
