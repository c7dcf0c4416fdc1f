"""Counts of a build for its manifest: what was read, what became of it and why, per source and language."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from hepta.corpus.cut import TEST, TRAIN, VAL, Decisions
from hepta.corpus.inputs import Found
from hepta.corpus.store import Store

STAGES = ("read", "quarantined", "dropped: language", "dropped: rules", "dropped: dedup", "kept")


def facts_of(
    store: Store, decisions: Decisions, quarantined: list[dict[str, Any]], read: int, found: Found
) -> dict[str, Any]:
    """Everything the report shows about a corpus, as JSON values."""
    sources, languages, columns = store.strings("source"), store.strings("lang"), store.numbers()
    chars, kept = columns["chars"], decisions.kept
    tally: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for row in range(store.size):
        stage = "kept" if kept[row] else f"dropped: {decisions.reasons[row][0].stage}"
        for name in ("read", stage):
            cell = tally[name, sources[row], languages[row]]
            cell[0] += 1
            cell[1] += int(chars[row])
    for fault in quarantined:
        for name in ("read", "quarantined"):
            tally[name, fault["source"], "?"][0] += 1
    by_stage = [
        {"stage": stage, "source": source, "lang": lang, "documents": cell[0], "characters": cell[1]}
        for (stage, source, lang), cell in sorted(tally.items(), key=lambda item: (STAGES.index(item[0][0]), item[0]))
    ]
    reasons = Counter(reason.rule for own in decisions.reasons.values() for reason in own)
    return {
        "read": read,
        "kept": int(kept.sum()),
        "dropped": int((~kept).sum()),
        "quarantined": len(quarantined),
        "characters": {
            "read": int(chars.sum()),
            "kept": int(chars[kept].sum()),
            "dropped": int(chars[~kept].sum()),
        },
        "bytes": {"read": int(columns["bytes"].sum()), "kept": int(columns["bytes"][kept].sum())},
        "files": len(found.files),
        "sources": sorted({file.source for file in found.files}),
        "by_stage_source_lang": by_stage,
        "reasons": dict(reasons.most_common()),
        "splits": {name: _split_facts(decisions.split == name, languages, columns) for name in (TRAIN, VAL, TEST)},
        "languages": dict(Counter(languages[kept].tolist()).most_common()),
        "scripts": dict(Counter(script for script in columns["script"][kept].tolist() if script).most_common()),
        "repaired": int(columns["repaired"].astype(bool).sum()),
        "duplicates": {
            "edges": len(decisions.edges.a),
            "crowded": decisions.edges.crowded,
            "clusters": sum(decisions.clusters.values()),
            "largest_cluster": max(decisions.clusters, default=0),
        },
        "warnings": [*found.notes, *decisions.warnings],
    }


def _split_facts(mine: np.ndarray, languages: np.ndarray, columns: dict[str, np.ndarray]) -> dict[str, Any]:
    def sums(mask: np.ndarray) -> dict[str, int]:
        chars, size = int(columns["chars"][mask].sum()), int(columns["bytes"][mask].sum())
        return {"documents": int(mask.sum()), "characters": chars, "bytes": size}

    by_language = {lang: sums(mine & (languages == lang)) for lang in sorted(set(languages[mine].tolist()))}
    return {**sums(mine), "by_language": by_language}
