"""The examples of a held-out split: what is asked, what is scored against, and the tokens that ask it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio

from anygpt_jax.cache import CacheReader
from anygpt_jax.errors import UserError
from anygpt_jax.modalities.base import ModalityTokenizer
from anygpt_jax.templates import OPENING, TEXT
from anygpt_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Example:
    """`source` and `target` are a modality and its content (UTF-8 text or encoded media)."""

    key: str
    attributes: dict[str, Any]
    source: tuple[str, bytes]
    target: tuple[str, bytes] | None  # absent from pairs that have no truth but the attributes

    @classmethod
    def from_numpy(cls, task: seqio.Task, fields: Mapping[str, Any]) -> Example:
        """The human's last segment is the source, the assistant's last the target."""
        by_role: dict[str, tuple[str, bytes]] = {}
        for modality, content, role in zip(fields["modality"], fields["content"], fields["role"], strict=True):
            by_role[role.decode()] = (modality.decode(), bytes(content))
        if "human" not in by_role:
            raise UserError(f"Task {task.name} has an example without a human turn ({fields['key'].decode()}).")
        attributes = task.postprocess_fn(None, example=fields, is_target=True)
        return cls(fields["key"].decode(), attributes, by_role["human"], by_role.get("assistant"))

    def load_source(self, tokenizers: Mapping[str, ModalityTokenizer]) -> Any:
        return load_content(self.source, tokenizers)

    def load_target(self, tokenizers: Mapping[str, ModalityTokenizer]) -> Any:
        if self.target is None:
            raise ValueError(f"example {self.key} has no target")
        return load_content(self.target, tokenizers)


def load_content(content: tuple[str, bytes], tokenizers: Mapping[str, ModalityTokenizer]) -> Any:
    """The canonical media of encoded content."""
    modality, data = content
    return data.decode("utf-8") if modality == TEXT else tokenizers[modality].load(data)


def stable_order(key: str, salt: str = "") -> int:
    """A number that puts keys into an order that has nothing to do with their contents; also a seed."""
    return int.from_bytes(hashlib.sha256(f"{salt}/{key}".encode()).digest()[:4], "little")


def read_split(task_name: str, split: str) -> Iterator[Example]:
    """Every example of one split of a registered task that its rules keep, in the data's order."""
    task = seqio.get_mixture_or_task(task_name)
    for fields in task.get_dataset(None, split=split, shuffle=False).as_numpy_iterator():
        if not fields.get("filtered"):
            yield Example.from_numpy(task, fields)


def read_examples(task_name: str, split: str) -> list[Example]:
    """One split, in the stable order in which it is drawn from; UserError if there is nothing."""
    examples = sorted(read_split(task_name, split), key=lambda example: stable_order(example.key))
    if not examples:
        raise UserError(f"Task {task_name} has no examples in its split '{split}'; run `anygpt build-data` again.")
    return examples


def load_prompts(
    cache: pathlib.Path, task: str, split: str, examples: Sequence[Example], vocabulary: Vocabulary
) -> dict[str, np.ndarray]:
    """key -> int32[N] for every example that the cache holds: its tokens up to where the assistant speaks."""
    reader = CacheReader(cache, task, split)
    wanted = {example.key for example in examples}
    opening = vocabulary.marker(OPENING["assistant"])
    prompts = {}
    for i in range(len(reader)):
        record = reader[i]
        if record.key in wanted:
            asked = np.append(record.tokens, np.int32(opening))  # a pair without truth ends with the human's turn
            prompts[record.key] = asked[: int(np.argmax(asked == opening)) + 1]
    return prompts


def attributes_json(attributes: Mapping[str, Any]) -> str:
    """Without the notes of a tune, which are many."""
    return json.dumps({k: v for k, v in attributes.items() if k != "notes"}, sort_keys=True)
