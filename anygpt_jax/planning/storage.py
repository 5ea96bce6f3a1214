"""How large a checkpoint is, and how long it takes to write and to read: from shapes, and stated bandwidths."""

from __future__ import annotations

import dataclasses

# Assumptions, bytes/s of one host. PCIe is a copy of the state out of all its chips; storage is a bucket over a network of 100
# to 200 Gbit/s, of which nothing was measured here.
TO_HOST = 16e9
STORAGE = 1e9


@dataclasses.dataclass(frozen=True)
class Saving:
    """Seconds, with all hosts of all slices at work. Bytes are those of the whole state before compression."""

    bytes: int
    bytes_a_host: float
    stall: float  # the step waits for the copy to the host
    write: float  # in the background
    read: float  # at the start, every byte verified from the same reading


def saving(state_bytes: int, hosts: int, slices: int, storage: float = STORAGE) -> Saving:
    """Each slice has the whole state. One slice writes it, all of them read it."""
    share = state_bytes / (hosts // slices)
    return Saving(state_bytes, share, share / TO_HOST, share / storage, share / storage)
