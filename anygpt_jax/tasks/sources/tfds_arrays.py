"""TFDS builds in ArrayRecord files, which SeqIO's own TfdsDataSource refuses (it reads those in TFRecord files)."""

from __future__ import annotations

import functools
import glob
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import soundfile
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from anygpt_jax.errors import UserError
from anygpt_jax.tasks.sources.source import Example, File, MediaSource, Unit, Unreadable, cause, damaged


def tfds_arrays(build: str, splits: Sequence[str], fields: Mapping[str, str]) -> MediaSource:
    """`build` is the folder of one version, `data/my_photos/1.0.0`; `fields` gives the feature of every field.

    Images stay encoded as they were built, audio becomes 16-bit WAV. Other scalar features become attributes.
    """
    patterns = {split: f"{glob.escape(build)}/*-{split}.array_record*" for split in splits}
    return MediaSource(patterns, functools.partial(read, fields=fields), fields=tuple(fields), count=count)


def count(file: File) -> int:
    """Records, by the file's own index."""
    return len(ArrayRecordDataSource([str(file.path)]))


@functools.cache
def _features(folder: str) -> tuple[tfds.features.FeaturesDict, dict[str, Any]]:
    features = tfds.builder_from_directory(folder).info.features
    images = {name for name, feature in features.items() if isinstance(feature, tfds.features.Image)}
    return features, {name: tfds.decode.SkipDecoding() for name in images}


def read(file: File, fields: Mapping[str, str]) -> Iterator[Unit]:
    """A unit is one record. UserError for a feature that the build does not have."""
    features, _ = _features(str(file.path.parent))
    if missing := set(fields.values()) - set(features):
        raise UserError(f"it has no feature {', '.join(sorted(missing))}; its features are {', '.join(features)}")
    records = ArrayRecordDataSource([str(file.path)])
    for n in range(len(records)):
        yield functools.partial(_one, records, n, str(file.path.parent), fields)


def _one(records: ArrayRecordDataSource, n: int, folder: str, fields: Mapping[str, str]) -> Iterator[Example]:
    features, decoders = _features(folder)
    key = f"{n:08d}"
    try:
        values = features.deserialize_example_np(records[n], decoders=decoders)
    except Exception as e:
        yield damaged(key, f"its record cannot be read ({cause(e)})")
        return
    plain = {name: _plain(v) for name, v in values.items() if np.ndim(v) == 0 and name not in fields.values()}
    made = {field: _medium(features[name], values[name]) for field, name in fields.items()}
    yield {"key": key, **made, "attributes": {n: v for n, v in plain.items() if v is not None}}


def _plain(value: Any) -> Any:
    """A scalar as JSON has it; None for bytes that are no text."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return value.item() if isinstance(value, np.generic) else value


def _medium(feature: Any, value: Any) -> Any:
    if not isinstance(feature, tfds.features.Audio) or isinstance(value, bytes):
        return [v for v in value] if isinstance(value, np.ndarray) and value.ndim == 1 else value
    if not feature.sample_rate:
        return Unreadable("its audio has no sample rate in the features of the build")
    samples = np.asarray(value)
    if np.issubdtype(samples.dtype, np.integer):  # TFDS keeps 16-bit samples in 64-bit numbers
        samples = np.clip(samples, -(1 << 15), (1 << 15) - 1).astype(np.int16)
    out = io.BytesIO()
    soundfile.write(out, samples, feature.sample_rate, format="WAV", subtype="PCM_16")
    return out.getvalue()
