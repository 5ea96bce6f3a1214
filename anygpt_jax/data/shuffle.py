"""Random orders that are computed an element at a time: whole arrays at once, no state, the same on every version.

NumPy does not promise the streams of its generators across versions (its NEP 19), and an order of 10^8 records
should not be held in memory; so the orders come from integer hashes.
"""

from __future__ import annotations

import zlib

import numpy as np
from jaxtyping import Int, UInt64

ROUNDS = 10
MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: UInt64[np.ndarray, "*n"]) -> UInt64[np.ndarray, "*n"]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every bit of the input moves every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key(*parts: int | str) -> int:
    """64 bits of a seed and whatever else an order depends on."""
    found = np.zeros(1, np.uint64)
    for part in parts:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else part
        found = mix((found + np.uint64(GOLDEN)) ^ mix(np.array([number & MASK], np.uint64)))
    return int(found[0])


def hashes(i: Int[np.ndarray, " n"], seed: int) -> UInt64[np.ndarray, " n"]:
    """64 random bits of each number; argsort of them is a random order."""
    return mix(mix(i.astype(np.uint64) + np.uint64(GOLDEN)) ^ np.uint64(seed))


def permute(i: Int[np.ndarray, " m"], n: int, seed: int | UInt64[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
    """Where a random permutation of range(n), chosen by `seed` (of all or of each), puts each of i: int64.

    A Feistel network over the least power of two that holds n; what falls outside goes through it again until
    it falls inside (cycle walking: Black and Rogaway, 2002), less than twice on average.
    """
    bits = max(2, (n - 1).bit_length())
    low, high = np.uint64(bits // 2), np.uint64(bits - bits // 2)
    low_mask, high_mask = (np.uint64((1 << int(b)) - 1) for b in (low, high))
    rounds = np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    seeds = np.atleast_1d(np.asarray(seed, np.uint64))

    def once(x: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        a, b = x >> low, x & low_mask
        for r in range(0, ROUNDS, 2):
            a = a ^ (mix(b ^ mix(rounds[r] ^ seeds)) & high_mask)
            b = b ^ (mix(a ^ mix(rounds[r + 1] ^ seeds)) & low_mask)
        return a << low | b

    found = once(i.astype(np.uint64), seeds)
    outside = np.flatnonzero(found >= n)
    while len(outside):
        found[outside] = once(found[outside], seeds if len(seeds) == 1 else seeds[outside])
        outside = outside[found[outside] >= n]
    return found.astype(np.int64)
