"""Twins: exact ones by hash, near ones as edges (a, b, jaccard) that true Jaccard has verified.

A collision of signatures only proposes a pair. What is dropped is decided elsewhere (``cut``), from edges alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hepta.corpus.config import DedupConfig
from hepta.corpus.shingles import PERMUTATIONS, jaccard, shingle

BUCKET = 50  # larger buckets compare each document with the bucket's leaders, not all pairs
MARGIN = 0.1  # edges down to threshold − MARGIN are stored, for later sweeps
DOUBT = 0.25  # a signature's estimate this far below the threshold (7 standard errors) needs no verifying
TEXTS_AT_ONCE = 2000


@dataclass(frozen=True)
class Edges:
    """Verified similar pairs: rows a < b in the walk's order, and their true Jaccard similarity."""

    a: np.ndarray
    b: np.ndarray
    jaccard: np.ndarray
    crowded: int = 0  # documents in oversized buckets, which were compared by finer bands and leaders


class _ShingleSets:
    """Shingle sets of documents, made when first asked for."""

    def __init__(self, texts: Callable[[np.ndarray], list[str]]) -> None:
        self._texts = texts
        self._sets: dict[int, np.ndarray] = {}

    def need(self, rows: np.ndarray) -> None:
        missing = np.array([row for row in rows.tolist() if row not in self._sets], np.int64)
        for begin in range(0, len(missing), TEXTS_AT_ONCE):
            chosen = missing[begin : begin + TEXTS_AT_ONCE]
            shingles = shingle(self._texts(chosen))
            for index, row in enumerate(chosen.tolist()):
                self._sets[row] = shingles.set_of(index)

    def jaccard(self, a: int, b: int) -> float:
        return jaccard(self._sets[a], self._sets[b])


def find_edges(
    signatures: np.ndarray,
    candidates: np.ndarray,
    rank: np.ndarray,
    config: DedupConfig,
    texts: Callable[[np.ndarray], list[str]],
) -> Edges:
    """Verified near-duplicate edges among ``candidates``.

    Args:
        signatures: MinHash signatures of all documents (N, 128) uint32.
        candidates: rows to compare, one per distinct text.
        rank: place of each row in the walk's total order (N,).
        config: threshold, bands and rows.
        texts: reads the texts of given rows.
    """
    rows = candidates[np.argsort(rank[candidates], kind="stable")]
    sets = _ShingleSets(texts)
    floor = config.threshold - MARGIN
    pairs, crowds = _collisions(signatures, rows, config.bands, config.rows)
    crowd = rows[np.isin(rows, np.concatenate(crowds))] if crowds else rows[:0]
    if crowds:
        finer = finer_rows(config)
        more, crowds = _collisions(signatures, crowd, PERMUTATIONS // finer, finer)
        pairs = np.unique(np.concatenate((pairs, more)), axis=0)
    least = config.threshold - DOUBT
    likely = _estimates(signatures, pairs) >= least
    pairs = pairs[likely]
    sets.need(np.unique(pairs))
    found = {(a, b): sets.jaccard(a, b) for a, b in pairs.tolist()}
    for bucket in crowds:
        _compare_with_leaders(signatures, bucket, config.threshold, least, sets, found)
    edges = sorted((a, b, value) for (a, b), value in found.items() if value >= floor)
    if not edges:
        return Edges(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), len(crowd))
    a, b, value = zip(*edges, strict=True)
    return Edges(np.array(a, np.int64), np.array(b, np.int64), np.array(value), len(crowd))


def finer_rows(config: DedupConfig) -> int:
    """Rows per band for what crowds into one bucket (texts from a template): as many as keep the recall at τ ≥ 0.94.

    With τ = 0.8 that is 16 bands of 8 rows: a pair at τ is found with 0.947, one at 0.5 is proposed with 0.06.
    """
    tau = config.threshold
    good = [rows for rows in range(1, 33) if 1 - (1 - tau**rows) ** (PERMUTATIONS // rows) >= 0.94]
    return max([config.rows, *good])


def _collisions(
    signatures: np.ndarray, rows: np.ndarray, bands: int, width: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Pairs (P, 2) that share a band, and the buckets too large for all pairs; earlier in rank comes first."""
    pairs: list[np.ndarray] = []
    crowds: dict[bytes, np.ndarray] = {}
    for band in range(bands):
        part = np.ascontiguousarray(signatures[rows, band * width : (band + 1) * width])
        keys = part.view(np.dtype((np.void, part.shape[1] * 4))).ravel()
        order = np.argsort(keys, kind="stable")  # stable: rank order inside a bucket
        keys = keys[order]
        bounds = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.zeros(0, np.int64)
        sizes = np.diff(np.append(bounds, len(keys)))
        for begin, size in zip(bounds[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
            bucket = rows[order[begin : begin + size]]
            if size > BUCKET:
                crowds[bucket.tobytes()] = bucket
            else:
                first, second = np.triu_indices(size, 1)
                pairs.append(np.stack((bucket[first], bucket[second]), 1))
    joined = np.unique(np.concatenate(pairs), axis=0) if pairs else np.zeros((0, 2), np.int64)
    return joined, list(crowds.values())


def _estimates(signatures: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Share of equal signature values per pair."""
    found = np.zeros(len(pairs))
    for begin in range(0, len(pairs), 65536):
        part = pairs[begin : begin + 65536]
        found[begin : begin + 65536] = (signatures[part[:, 0]] == signatures[part[:, 1]]).mean(1)
    return found


def _compare_with_leaders(
    signatures: np.ndarray,
    crowd: np.ndarray,
    threshold: float,
    least: float,
    sets: _ShingleSets,
    found: dict[tuple[int, int], float],
) -> None:
    """Walk an oversized bucket in rank order; a document like no leader becomes one."""
    leaders: list[int] = []
    for row in crowd.tolist():
        follows = False
        if leaders:
            alike = (signatures[np.array(leaders)] == signatures[row]).mean(1)
            near = [leaders[i] for i in np.flatnonzero(alike >= least).tolist()]
            sets.need(np.array([row, *near]))
            for leader in near:
                value = found.setdefault((leader, row), sets.jaccard(leader, row))
                follows |= value >= threshold
        if not follows:
            leaders.append(row)
