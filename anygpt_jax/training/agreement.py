"""What the processes of a job must agree on about checkpoints. All of them call these; one process alone passes through."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from anygpt_jax import multihost

SENTENCE = 400  # bytes of it that go to the others


def as_first_says(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Process 0's pairs, in every process."""
    if jax.process_count() == 1:
        return pairs
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(pairs))))
    own = np.array(pairs, np.int32).reshape(-1, 2) if multihost.leads() else np.zeros((count, 2), np.int32)
    rows = np.asarray(multihost_utils.broadcast_one_to_all(own)) if count else own
    return [(int(a), int(b)) for a, b in rows]


def from_all(sentences: list[str]) -> list[str]:
    """What all the processes found, the first sentence of each."""
    if jax.process_count() == 1:
        return sentences
    first = sentences[0].encode("ascii", "replace")[:SENTENCE].decode() if sentences else ""
    return [text for text in multihost.gathered(first, SENTENCE) if text]


def by_first(function: Callable[[], object]) -> None:
    """Calls it in process 0 while the others wait."""
    if multihost.leads():
        function()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoints:by_first")
