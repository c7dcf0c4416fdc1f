"""An order read around ranges of sequences that a run leaves out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Ranges = list[list[int]]  # [first, end) of an order's own numbers, ascending, apart from each other


def merged(ranges: Iterable[Sequence[int]]) -> Ranges:
    """The same sequences as ranges that are ascending and do not touch."""
    result: Ranges = []
    for first, end in sorted((list(part) for part in ranges), key=lambda part: part[0]):
        if result and first <= result[-1][1]:
            result[-1][1] = max(result[-1][1], end)
        else:
            result.append([first, end])
    return result


def place_around(n: int, left_out: Ranges) -> int:
    """The order's own number of what a run that leaves out these ranges reads as its n-th sequence."""
    for first, end in left_out:
        if n < first:
            break
        n += end - first
    return n


class Around:
    """An ``Order`` whose n-th sequence is the n-th of those that stay; no batch may lie across a range.

    Args:
        order: what is read.
        left_out: whole steps, so that a batch, which lies inside one, never meets a gap.
    """

    def __init__(self, order: Any, left_out: Ranges) -> None:
        self.order, self.left_out = order, left_out
        self.sequences_per_epoch, self.digest = order.sequences_per_epoch, order.digest

    def place(self, n: int) -> int:
        """The order's own number of the n-th sequence."""
        return place_around(n, self.left_out)

    def batch(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Sequences [start, start + count)."""
        return self.order.batch(self.place(start), count)

    def count_tokens(self, first: int, batches: Sequence[Mapping[str, Any]]) -> int:
        """Real tokens of batches that begin with sequence ``first``."""
        return self.order.count_tokens(self.place(first), batches)

    def where(self, n: int) -> list[str]:
        """Names of what the n-th sequence holds."""
        return self.order.where(self.place(n))

    def languages(self, n: int) -> list[str]:
        """Language of each segment of the n-th sequence."""
        return self.order.languages(self.place(n))

    def sources(self, n: int) -> list[str]:
        """Source of each segment of the n-th sequence."""
        return self.order.sources(self.place(n))
