"""The examples of a held-out split: what is asked, what is scored against, and the tokens that ask it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import seqio

from anygpt_jax.cache import CacheReader
from anygpt_jax.errors import UserError
from anygpt_jax.modalities.base import ModalityTokenizer
from anygpt_jax.templates import OPENING, TEXT
from anygpt_jax.vocabulary import Vocabulary

Content = tuple[str, bytes]  # a modality, and UTF-8 text or encoded media


class Part(NamedTuple):
    """A segment of a turn as the data have it."""

    role: str
    modality: str
    data: bytes


@dataclasses.dataclass(frozen=True)
class Example:
    """`source` is the last segment that the human says, `target` the last one of what is answered."""

    key: str
    attributes: dict[str, Any]
    source: Content
    target: Content | None  # absent from pairs that have no truth but the attributes
    earlier: tuple[Part, ...] = ()  # before the source: the rest of its turn, and the turns before
    lead: tuple[Content, ...] = ()  # of the answer, what comes before the target

    @classmethod
    def from_numpy(cls, task: seqio.Task, fields: Mapping[str, Any]) -> Example:
        """The last human turn that is answered, or the last of all where none is; what follows its answer is left out."""
        parts = [
            Part(role.decode(), modality.decode(), bytes(content))
            for modality, content, role in zip(fields["modality"], fields["content"], fields["role"], strict=True)
        ]
        human = [i for i, part in enumerate(parts) if part.role == "human"]
        if not human:
            raise UserError(f"Task {task.name} has an example without a human turn ({fields['key'].decode()}).")
        answered = [i for i in human if i + 1 < len(parts) and parts[i + 1].role == "assistant"]
        last = (answered or human)[-1]
        answer = [p[1:] for p in itertools.takewhile(lambda part: part.role == "assistant", parts[last + 1 :])]
        return cls(
            key=fields["key"].decode(),
            attributes=task.postprocess_fn(None, example=fields, is_target=True),
            source=parts[last][1:],
            target=answer[-1] if answer else None,
            earlier=tuple(parts[:last]),
            lead=tuple(answer[:-1]),
        )

    @property
    def history(self) -> tuple[Part, ...]:
        """All that was said before the answer."""
        return (*self.earlier, Part("human", *self.source))

    @property
    def answer(self) -> tuple[Content, ...]:
        """All that is answered, the target last; nothing without a target."""
        return (*self.lead, self.target) if self.target else ()

    def load_source(self, tokenizers: Mapping[str, ModalityTokenizer]) -> Any:
        """A str, or what the modality's tokenizer reads: uint8[H, W, 3] of a picture, `Audio` of sound."""
        return load_content(self.source, tokenizers)

    def load_target(self, tokenizers: Mapping[str, ModalityTokenizer]) -> Any:
        """As `load_source`; ValueError without a target."""
        if self.target is None:
            raise ValueError(f"example {self.key} has no target")
        return load_content(self.target, tokenizers)


def load_content(content: Content, tokenizers: Mapping[str, ModalityTokenizer]) -> Any:
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
