"""tf.data steps that bring any source to the one form of example that is tokenized and evaluated.

    key         string      unique in its source
    modality    string[n]   "text", "image", "speech", "music", …
    content     string[n]   UTF-8 text or encoded media (PNG, FLAC, WAV)
    role        string[n]   one of anygpt_jax.records.ROLES
    loss        bool[n]     whether the segment is trained
    attributes  string      JSON: what the task's metrics score against
    filtered    string      "" or the first rule that refused the example; "!" and a reason if a step failed on it

Every step is a pure function of the example, so that shards and reruns agree. No step drops an example: a refused
one is only marked, so that the job can count what became of every input.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from anygpt_jax.tasks.encoding import FAILED, Stop
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
    "filtered": _feature(tf.string, 0),
}


def keep(
    dataset: tf.data.Dataset,
    rule: Callable[..., bool],
    *,
    name: str = "",
    fields: Sequence[str] = ("attributes",),
) -> tf.data.Dataset:
    """Marks the examples that `rule` refuses as filtered by `name` (by default the rule's own name).

    `rule` is called with the named fields in order: attributes as a dict, others as bytes or lists of bytes. It sees
    only examples that no earlier rule refused, and costs only the example on which it raises, unless it raises Stop.
    """
    named = name or getattr(rule, "__name__", type(rule).__name__)
    if named.startswith(FAILED):
        raise ValueError(f"a rule's name must not begin with {FAILED!r}: {named}")

    def mark(filtered: bytes, *values: bytes | np.ndarray) -> bytes:
        if filtered:
            return filtered
        try:
            return b"" if rule(*map(_plain_value, fields, values)) else named.encode()
        except Stop:
            raise
        except Exception as e:
            return _failure(named, e)

    @_plain
    def marked(example: Example) -> Example:
        inputs = [_filtered(example), *(example[field] for field in fields)]
        return {**example, "filtered": tf.ensure_shape(tf.numpy_function(mark, inputs, tf.string), [])}

    return dataset.map(marked, num_parallel_calls=tf.data.AUTOTUNE)


def _filtered(example: Example) -> tf.Tensor:
    return example["filtered"] if "filtered" in example else tf.constant("")


def _plain_value(field: str, value: bytes | np.ndarray) -> object:
    if isinstance(value, np.ndarray):
        return list(value)
    return json.loads(value) if field == "attributes" else value


def _failure(step: str, error: Exception) -> bytes:
    return f"{FAILED}{step}: {type(error).__name__}: {error}".encode()


def derive_attributes(dataset: tf.data.Dataset, derive: Callable[[Attributes], Attributes]) -> tf.data.Dataset:
    """Replaces the attributes: what is scored may be called otherwise in the target's modality.

    `derive` does not see examples that a rule refused before.
    """

    def rewrite(filtered: bytes, attributes: bytes) -> tuple[bytes, bytes]:
        if filtered:
            return filtered, attributes
        try:
            return b"", json.dumps(derive(json.loads(attributes)), sort_keys=True).encode()
        except Exception as e:
            return _failure(getattr(derive, "__name__", "derive"), e), attributes

    @_plain
    def replaced(example: Example) -> Example:
        inputs = [_filtered(example), example["attributes"]]
        filtered, attributes = tf.numpy_function(rewrite, inputs, [tf.string, tf.string])
        return {
            **example,
            "attributes": tf.ensure_shape(attributes, []),
            "filtered": tf.ensure_shape(filtered, []),
        }

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
        # Keys come from outside too, names of files say: one that is not UTF-8 must not stop the job.
        return choose(variants, key.decode("utf-8", "backslashreplace")).encode()

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
            "filtered": _filtered(example),
        }

    return dataset.map(segments, num_parallel_calls=tf.data.AUTOTUNE)


def text_alone(dataset: tf.data.Dataset, *, field: str) -> tf.data.Dataset:
    """One field of text as a document of its own, which is trained."""

    @_plain
    def segments(example: Example) -> Example:
        return {
            "key": example["key"],
            "modality": tf.constant([TEXT]),
            "content": example[field][None],
            "role": tf.constant(["document"]),
            "loss": tf.constant([True]),
            "attributes": example["attributes"],
            "filtered": _filtered(example),
        }

    return dataset.map(segments, num_parallel_calls=tf.data.AUTOTUNE)


def interleaved(dataset: tf.data.Dataset, *, kind: str) -> tf.data.Dataset:
    """Documents (loss everywhere) or dialogues (loss on the assistant's turns) from one interleaved source.

    Examples of the other kind are marked as filtered by "kind".
    """

    @_plain
    def segments(example: Example) -> Example:
        role, before = example["role"], _filtered(example)
        other = tf.logical_and(tf.equal(before, ""), tf.not_equal(example["kind"], kind))
        return {
            "key": example["key"],
            "modality": example["modality"],
            "content": example["content"],
            "role": role,
            "loss": tf.ones_like(role, tf.bool) if kind == "document" else tf.equal(role, "assistant"),
            "attributes": example.get("attributes", tf.constant("{}")),
            "filtered": tf.where(other, "kind", before),
        }

    return dataset.map(segments, num_parallel_calls=tf.data.AUTOTUNE)
