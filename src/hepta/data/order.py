"""The order of data: the n-th sequence of a run is a pure function of (shards, plan, mix, seed, n).

Every source is one long stream of documents, cut into windows of T tokens; windows of a source are permuted by
a keyed bijection in each epoch. Sources are mixed by largest deficit: each block of sequences holds of every
source what its weight still owes it, and a keyed shuffle spreads them inside the block. So the state of a
reader is one number, resuming is exact, and ``where(n)`` names the documents of any step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hepta.config import HeptaError
from hepta.data.permutation import key_of, permute, shuffled
from hepta.data.shards import Stream, open_streams, read_tokens_manifest
from hepta.stage import digest_json

IGNORE = -100  # label of a position that is not supervised
BLOCK = 1024  # sequences inside which sources are shuffled and their counts follow the weights
VERSION = 1


@dataclass(frozen=True)
class Packed:
    """One sequence of T tokens.

    Attributes:
        input_ids: (T,) int64.
        labels: (T,) int64, already shifted: the next token, ``IGNORE`` where none is to be predicted.
        segment_ids: (T,) int64 from 0; tokens see their own segment only; padding has one of its own.
        positions: (T,) int64, restarting in each segment.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray


class Order(Protocol):
    """What training reads: any range of sequences, by number."""

    sequences_per_epoch: int
    digest: str

    def count_tokens(self, first: int, batches: Sequence[Mapping[str, Any]]) -> int:
        """Real tokens, padding left out, of batches that begin with sequence ``first``."""
        ...

    def batch(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Sequences [start, start + count), each value (count, T)."""
        ...

    def where(self, n: int) -> list[str]:
        """Names of what the n-th sequence holds, one for each segment."""
        ...

    def languages(self, n: int) -> list[str]:
        """Language of each segment of the n-th sequence."""
        ...

    def sources(self, n: int) -> list[str]:
        """Source of each segment of the n-th sequence, as whoever made the data named it."""
        ...


class Segmented:
    """Counts the real tokens of an order whose batches say by ``segment_ids`` what belongs together.

    Attributes:
        source_names: sources that ``sources`` may name; none where an order tells none apart.
    """

    source_names: Sequence[str] = ()

    def languages(self, n: int) -> list[str]:
        """Language of each segment of the n-th sequence."""
        raise NotImplementedError

    def sources(self, n: int) -> list[str]:
        """Source of each segment of the n-th sequence; one without a name where an order tells none apart."""
        return [""] * len(self.languages(n))

    def count_tokens(self, first: int, batches: Sequence[Mapping[str, Any]]) -> int:
        """Tokens of batches that begin with sequence ``first``; padding, the segment after the last, is not counted."""
        segments = [row for batch in batches for row in batch["segment_ids"]]
        return sum(int((row < len(self.languages(n))).sum()) for n, row in enumerate(segments, first))


def stack(sequences: list[Packed]) -> dict[str, np.ndarray]:
    """Sequences as one batch: input_ids, labels, segment_ids, positions, each (B, T)."""
    names = ("input_ids", "labels", "segment_ids", "positions")
    return {name: np.stack([getattr(sequence, name) for sequence in sequences]) for name in names}


def restarted_positions(segment_ids: np.ndarray) -> np.ndarray:
    """Positions (T,) that begin at 0 in each segment; segments are runs of equal numbers."""
    places = np.arange(len(segment_ids))
    first = np.concatenate([[True], segment_ids[1:] != segment_ids[:-1]])
    return places - np.maximum.accumulate(np.where(first, places, 0))


class TokenOrder(Segmented):
    """Windows over token shards, in the order a run reads them.

    Args:
        tokens_dir: made by ``hepta tokens build``.
        split: train, val or test.
        sequence_length: T.
        seed: of the shuffle.
        document_mask: tokens see their own document only, and no document predicts the next one's first token.
        mix: source → weight; by default each source's share of tokens, so that an epoch reads every window once.

    Attributes:
        sequences_per_epoch: windows of all sources.
        waste: tokens of an epoch that are padded, masked (not supervised) or cropped (never).

    Raises:
        HeptaError: no shards, an empty split, a mix that does not fit the sources.
    """

    def __init__(
        self,
        tokens_dir: Path | str,
        split: str = "train",
        sequence_length: int = 512,
        seed: int = 0,
        document_mask: bool = True,
        mix: Mapping[str, float] | None = None,
    ) -> None:
        self.directory, self.split, self.T, self.seed = Path(tokens_dir), split, sequence_length, seed
        self.document_mask = document_mask
        manifest = read_tokens_manifest(self.directory)
        self.streams = open_streams(self.directory, split)
        if not self.streams:
            raise HeptaError(f"{self.directory}: split {split!r} holds no tokens; give the corpus more documents")
        self.source_names = [stream.name for stream in self.streams]
        self.pad_id: int = manifest["facts"]["document_policy"]["eos_id"]
        self._windows = [-(-stream.total // self.T) for stream in self.streams]
        self.sequences_per_epoch = sum(self._windows)
        self._allotted = self._allot(mix)
        self._block = max(BLOCK, self.sequences_per_epoch >> 16)
        self._before = _counts_before_blocks(self._allotted, self._block)
        self.digest = digest_json([
            VERSION, manifest["digest"], split, self.T, seed, document_mask, self._allotted, self._block
        ])  # fmt: skip
        self._places = lru_cache(maxsize=4)(self._shuffle_block)

    def get(self, n: int) -> Packed:
        """The n-th sequence."""
        stream, window = self._find(n)
        start = window * self.T
        tokens = stream.read(start, start + self.T + 1)
        length = min(self.T, stream.total - start)
        ids = np.full(self.T, self.pad_id, np.int64)
        labels = np.full(self.T, IGNORE, np.int64)
        ids[:length] = tokens[:length]
        labels[: len(tokens) - 1] = tokens[1:]
        segments = np.zeros(self.T, np.int64)
        if self.document_mask:
            first, last = np.searchsorted(stream.ends, [start, start + length], side="right")
            ends = stream.ends[first:last] - start  # a document's end: one past its last token
            labels[ends - 1] = IGNORE
            segments[ends[ends < length]] = 1
            segments = np.cumsum(segments)
        segments[length:] = segments[length - 1] + 1
        return Packed(ids, labels, segments, restarted_positions(segments))

    def batch(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Sequences [start, start + count): input_ids, labels, segment_ids, positions, each (count, T)."""
        return stack([self.get(n) for n in range(start, start + count)])

    def where(self, n: int) -> list[str]:
        """``source/doc_id`` of each document in the n-th sequence, in order."""
        stream, first, last = self._documents(n)
        return [f"{stream.name}/{doc_id}" for doc_id in stream.documents[0][first:last]]

    def sources(self, n: int) -> list[str]:
        """Source of each segment of the n-th sequence; a window never holds two."""
        stream, first, last = self._documents(n)
        return [stream.name] * (last - first if self.document_mask else 1)

    def languages(self, n: int) -> list[str]:
        """Language of each segment of the n-th sequence (of its first document without a document mask)."""
        stream, first, last = self._documents(n)
        languages = stream.documents[1][first:last]
        return languages if self.document_mask else languages[:1]

    @property
    def waste(self) -> dict[str, int]:
        """Tokens of one epoch over all windows: read, padded, cropped, and those that predict nothing."""
        tokens = sum(stream.total for stream in self.streams)
        masked = sum(len(stream.ends) for stream in self.streams) if self.document_mask else len(self.streams)
        return {
            "windows": sum(self._windows), "tokens": tokens, "padded": sum(self._windows) * self.T - tokens,
            "cropped": 0, "masked": masked, "supervised": tokens - masked,
        }  # fmt: skip

    def _documents(self, n: int) -> tuple[Stream, int, int]:
        stream, window = self._find(n)
        start, stop = window * self.T, min((window + 1) * self.T, stream.total)
        first = int(np.searchsorted(stream.ends, start, side="right"))
        return stream, first, int(np.searchsorted(stream.ends, stop, side="left")) + 1

    def _find(self, n: int) -> tuple[Stream, int]:
        """The stream and the window that the n-th sequence is."""
        epoch, place = divmod(n, self.sequences_per_epoch)
        block, place = divmod(place, self._block)
        source, rank = (int(column[place]) for column in self._places(epoch, block))
        drawn = epoch * self._allotted[source] + int(self._before[block, source]) + rank
        passes, drawn = divmod(drawn, self._windows[source])
        stream = self.streams[source]
        return stream, permute(drawn, self._windows[source], key_of("window", self.seed, stream.name, passes))

    def _shuffle_block(self, epoch: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each place of a block: its source, and which one of that source's in the block it is."""
        counts = self._before[block + 1] - self._before[block]
        sources = np.repeat(np.arange(len(counts)), counts)
        sources = sources[shuffled(len(sources), key_of("block", self.seed, epoch, block))]
        ranks = np.empty_like(sources)
        for source, count in enumerate(counts):
            ranks[sources == source] = np.arange(count)
        return sources, ranks

    def _allot(self, mix: Mapping[str, float] | None) -> list[int]:
        """Sequences of an epoch that each source gives."""
        if mix is None:
            return list(self._windows)
        names = [stream.name for stream in self.streams]
        if set(mix) != set(names) or min(mix.values()) < 0 or sum(mix.values()) <= 0:
            raise HeptaError(f"mix: expected a weight of 0 or more for each of {', '.join(names)}; found {dict(mix)}")
        shares = np.array([mix[name] for name in names], dtype=np.float64)
        wanted = shares / shares.sum() * self.sequences_per_epoch
        counts = np.floor(wanted).astype(np.int64)
        most_owed = np.argsort(counts - wanted, kind="stable")[: self.sequences_per_epoch - int(counts.sum())]
        counts[most_owed] += 1
        return [int(count) for count in counts]


def _counts_before_blocks(allotted: list[int], block: int) -> np.ndarray:
    """How many of each source come before each block (blocks + 1, sources), by largest deficit.

    In whole numbers, so that it is the same on every machine: after n of N sequences source s is owed
    ``allotted[s] * n / N``; each block takes what is owed rounded down, then one each for those owed most.
    """
    total = sum(allotted)
    rows = [[0] * len(allotted)]
    for end in [*range(block, total, block), total]:
        taken = list(rows[-1])
        owed = [a * end - c * total for a, c in zip(allotted, taken, strict=True)]  # in units of 1 / total
        taken = [c + max(o, 0) // total for c, o in zip(taken, owed, strict=True)]
        rest = [a * end - c * total for a, c in zip(allotted, taken, strict=True)]
        for source in sorted(range(len(allotted)), key=lambda s: (-rest[s], s))[: end - sum(taken)]:
            taken[source] += 1
        rows.append(taken)
    return np.array(rows, dtype=np.int64)


def describe(order: Any) -> dict[str, Any]:
    """What a run records of its order of data: sequences, digest, waste or report."""
    extra = order.waste if hasattr(order, "waste") else order.report
    return {"sequences_per_epoch": order.sequences_per_epoch, "digest": order.digest, "data": extra}
