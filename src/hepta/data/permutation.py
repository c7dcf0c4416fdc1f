"""Keyed bijections: a shuffle of n items where any place can be asked for without storing the rest."""

import numpy as np
import xxhash

MASK = (1 << 64) - 1
ROUNDS = 6


def key_of(*parts: object) -> int:
    """A 64-bit key from the words and numbers given."""
    return xxhash.xxh3_64_intdigest("\x00".join(map(str, parts)).encode())


def mix(value: int) -> int:
    """SplitMix64's finaliser: a good 64-bit hash of a 64-bit number."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def permute(place: int, count: int, key: int) -> int:
    """Which of ``count`` items stands at ``place``: a Feistel network, walked until it lands inside.

    Args:
        place: in [0, count).
        count: items; the network works on the next power of four and skips what lies beyond.
        key: another key is another order.
    """
    if not 0 <= place < count:
        raise IndexError(f"place {place} lies outside {count} items")
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = place >> half, place & low
        for turn in range(ROUNDS):
            left, right = right, left ^ (mix(key ^ mix((turn << 48) ^ right)) & low)
        place = (left << half) | right
        if place < count:
            return place


def shuffled(count: int, key: int) -> np.ndarray:
    """All ``count`` numbers in a keyed order (count,) int64; for blocks that are read whole."""
    with np.errstate(over="ignore"):
        value = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value ^= value >> np.uint64(31)
    return np.argsort(value, kind="stable")
