"""``cut`` alone decides: rules first, then a walk in a fixed total order that keeps the best of each set of twins."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import xxhash

from hepta.corpus.config import CorpusConfig, DedupConfig, SplitConfig
from hepta.corpus.duplicates import Edges, find_edges
from hepta.corpus.rules import Reason, judge

TRAIN, VAL, TEST = "train", "val", "test"
RELIABLE = 10  # a language with this many times min_documents is promised min_documents in val and test


@dataclass
class Decisions:
    """What becomes of each document (N rows), and why."""

    kept: np.ndarray  # bool
    split: np.ndarray  # object array of train, val, test; "" where dropped
    reasons: dict[int, list[Reason]]  # rows that are dropped
    twin: dict[int, int]  # dropped duplicate → row that was kept in its place
    edges: Edges
    clusters: Counter[int] = field(default_factory=Counter)  # size → how many clusters of distinct twins
    warnings: list[str] = field(default_factory=list)


def cut(
    config: CorpusConfig,
    doc_ids: np.ndarray,
    hashes: np.ndarray,
    languages: np.ndarray,
    columns: dict[str, np.ndarray],
    signatures: np.ndarray,
    texts: Callable[[np.ndarray], list[str]],
) -> Decisions:
    """Decide on every document.

    Args:
        config: thresholds and splits.
        doc_ids, hashes, languages: per document (N,), rows in order of (doc_id, hash, origin).
        columns: signal name → values (N,).
        signatures: MinHash (N, 128).
        texts: reads the texts of given rows.
    """
    reasons = judge(config.rules, languages, columns)
    if config.languages:
        for row in np.flatnonzero(~np.isin(languages, config.languages)).tolist():
            reasons.setdefault(row, []).insert(0, Reason("language", "languages", 0.0, 1.0))
    passed = np.ones(len(doc_ids), bool)
    passed[list(reasons)] = False
    rank = total_order(columns["quality"], columns["chars"])
    twin: dict[int, int] = {}
    first_of_id = _firsts(doc_ids, passed, rank)
    for row, first in first_of_id.items():
        reasons[row], twin[row] = [Reason("dedup", "same_record", 1.0, 1.0)], first
        passed[row] = False
    exact = _firsts(hashes, passed, rank)
    candidates = np.flatnonzero(passed)
    candidates = candidates[~np.isin(candidates, list(exact))]
    edges = find_edges(signatures, candidates, rank, config.dedup, texts)
    warnings: list[str] = []
    if config.dedup.enabled:
        walk(candidates, rank, exact, edges, config.dedup.threshold, passed, reasons, twin)
    roots = components(len(doc_ids), edges, config.dedup.threshold, {**exact, **first_of_id})
    giants, clusters = _giants(candidates, roots, config.dedup, doc_ids, warnings)
    split = assign_splits(config.split, doc_ids, languages, passed, roots, giants, columns["chars"], warnings)
    if len(passed) and not passed.any():
        warnings.append("every document was dropped; hepta corpus stats shows by which rules")
    for row in list(twin):  # a twin's keeper may itself have been dropped for a better one
        while twin[row] in twin:
            twin[row] = twin[twin[row]]
    return Decisions(passed, split, reasons, twin, edges, clusters, warnings)


def total_order(quality: np.ndarray, chars: np.ndarray) -> np.ndarray:
    """Rank of each row: better quality first, then longer, then smaller doc_id (rows come in that order)."""
    order = np.lexsort((np.arange(len(quality)), -chars, -quality))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _firsts(keys: np.ndarray, passed: np.ndarray, rank: np.ndarray) -> dict[int, int]:
    """Rows that repeat a key → the row of that key that ranks first."""
    rows = np.flatnonzero(passed)
    rows = rows[np.argsort(rank[rows], kind="stable")]
    seen: dict[str, int] = {}
    again: dict[int, int] = {}
    for row in rows.tolist():
        first = seen.setdefault(str(keys[row]), row)
        if first != row:
            again[row] = first
    return again


def walk(
    candidates: np.ndarray,
    rank: np.ndarray,
    exact: dict[int, int],
    edges: Edges,
    threshold: float,
    passed: np.ndarray,
    reasons: dict[int, list[Reason]],
    twin: dict[int, int],
) -> None:
    """Drop a document iff it has an edge ≥ threshold to one already kept; changes the last three arguments."""
    neighbours: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for a, b, value in zip(edges.a.tolist(), edges.b.tolist(), edges.jaccard.tolist(), strict=True):
        if value >= threshold:
            neighbours[a].append((value, b))
            neighbours[b].append((value, a))
    kept: set[int] = set()
    for row in candidates[np.argsort(rank[candidates], kind="stable")].tolist():
        keepers = [(-value, rank[other], other) for value, other in neighbours[row] if other in kept]
        if keepers:
            value, _, keeper = min(keepers)
            reasons[row], twin[row] = [Reason("dedup", "near_duplicate", round(-value, 4), threshold)], keeper
            passed[row] = False
        else:
            kept.add(row)
    for row, first in exact.items():
        passed[row] = False
        twin[row] = twin.get(first, first)
        reasons[row] = reasons.get(first) or [Reason("dedup", "exact_duplicate", 1.0, threshold)]


def components(size: int, edges: Edges, threshold: float, same: dict[int, int]) -> np.ndarray:
    """The smallest row of each row's twin cluster: its smallest doc_id, since rows lie in that order."""
    root = np.arange(size)

    def find(row: int) -> int:
        while root[row] != row:
            root[row] = root[root[row]]
            row = int(root[row])
        return row

    near = edges.jaccard >= threshold
    pairs = list(zip(edges.a[near].tolist(), edges.b[near].tolist(), strict=True)) + list(same.items())
    for a, b in pairs:
        low, high = sorted((find(a), find(b)))
        root[high] = low
    for row in range(size):
        root[row] = find(row)
    return root


def _giants(
    candidates: np.ndarray, roots: np.ndarray, config: DedupConfig, doc_ids: np.ndarray, warnings: list[str]
) -> tuple[set[int], Counter[int]]:
    """Clusters of more than ``max_cluster`` distinct documents: a chain of likenesses, reported and kept in train."""
    sizes = Counter(roots[candidates].tolist())
    giants = {root for root, count in sizes.items() if count > config.max_cluster}
    for root in sorted(giants, key=lambda root: (-sizes[root], root))[:5]:
        warnings.append(
            f"giant cluster: {sizes[root]} distinct documents are linked by likeness (smallest id {doc_ids[root]}); "
            "each drop is still justified by its own keeper, and the cluster stays in train"
        )
    return giants, Counter(count for count in sizes.values() if count > 1)


def assign_splits(
    config: SplitConfig,
    doc_ids: np.ndarray,
    languages: np.ndarray,
    kept: np.ndarray,
    roots: np.ndarray,
    giants: set[int],
    chars: np.ndarray,
    warnings: list[str],
) -> np.ndarray:
    """train, val or test per kept document from a hash of its cluster, topped up where a language has too few."""
    split = np.full(len(doc_ids), "", object)
    rows = np.flatnonzero(kept)
    members: dict[int, list[int]] = defaultdict(list)
    for row in rows.tolist():
        members[int(roots[row])].append(row)
    draw = {root: xxhash.xxh3_64_intdigest(doc_ids[root].encode()) / 2**64 for root in members}
    for root, own in members.items():
        place = VAL if draw[root] < config.val else TEST if draw[root] < config.val + config.test else TRAIN
        split[own] = TRAIN if root in giants else place
    waiting = sorted((root for root in members if root not in giants), key=lambda root: (draw[root], root))
    for lang, count in sorted(Counter(languages[rows].tolist()).items()):
        for place, share in ((VAL, config.val), (TEST, config.test)):
            mine = (languages == lang) & kept
            missing = config.min_documents - int((mine & (split == place)).sum())
            if share == 0 or missing <= 0:
                continue
            if count >= RELIABLE * config.min_documents:
                _top_up(place, missing, lang, languages, waiting, members, split)
            elif chars[mine].sum() * 100 >= chars[rows].sum():
                warnings.append(f"{lang}: {count} documents are too few for {config.min_documents} in {place}")
    return split


def _top_up(
    place: str,
    missing: int,
    lang: str,
    languages: np.ndarray,
    waiting: list[int],
    members: dict[int, list[int]],
    split: np.ndarray,
) -> None:
    """Move the next clusters in hash order from train, until ``missing`` documents of ``lang`` have come."""
    for root in waiting:
        own = members[root]
        gained = sum(languages[row] == lang for row in own)
        if missing > 0 and gained and split[own[0]] == TRAIN:
            split[own] = place
            missing -= gained
