"""Which split a thing belongs to, decided by a hash of the thing itself.

A held-out pair, sentence or melody is therefore held out everywhere: in every part of the data set, for
every seed and size.
"""

from __future__ import annotations

import hashlib

TRAIN, VALIDATION, TEST = "train", "validation", "test"
TEST_PERCENT, VALIDATION_PERCENT = 12, 6


def split_of(kind: str, identity: str) -> str:
    """Split of a thing: "train" (82 %), "validation" (6 %) or "test" (12 %)."""
    digest = hashlib.sha256(f"{kind}/{identity}".encode()).digest()
    bucket = int.from_bytes(digest[:8], "big") % 100
    if bucket < TEST_PERCENT:
        return TEST
    return VALIDATION if bucket < TEST_PERCENT + VALIDATION_PERCENT else TRAIN


def pair_split(object_: str, colour: str) -> str:
    """Split of every picture, and of every sentence about a picture, with this object on this colour."""
    return split_of("pair", f"{object_} on {colour}")


def objects_split(first: str, second: str) -> str:
    """Split of every scene of these two objects, and of every sentence about one, in whatever order they stand."""
    return split_of("objects", " and ".join(sorted((first, second))))
