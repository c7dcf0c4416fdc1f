"""Ask a finished corpus: what happened to how much (``stats``), and to one document (``explain``)."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from hepta.config import HeptaError
from hepta.corpus.facts import STAGES
from hepta.corpus.rules import RULES, threshold_of
from hepta.stage import read_manifest

SHOWN = 160  # characters of a text that are printed


@dataclass(frozen=True)
class Check:
    """One rule as it judged one document."""

    rule: str
    value: float
    threshold: float
    passed: bool
    judged: bool  # False: the document is too short for this rule


@dataclass(frozen=True)
class Explanation:
    """Why one document was kept or dropped."""

    doc_id: str
    kept: bool
    source: str
    lang: str
    split: str
    origin: str
    text: str  # its beginning
    reasons: list[dict[str, Any]]
    checks: list[Check]
    twin: str | None = None
    twin_text: str | None = None
    likenesses: list[dict[str, Any]] = field(default_factory=list)  # its edges: other doc_id, jaccard

    def __str__(self) -> str:
        fate = f"kept, in split {self.split}" if self.kept else "dropped"
        lines = [f"{self.doc_id}  {fate}", f"  source {self.source}, language {self.lang}, from {self.origin}"]
        lines.append(f"  text: {self.text}")
        for reason in self.reasons:
            value, least = reason["value"], reason["threshold"]
            lines.append(f"  dropped by {reason['stage']}: {reason['rule']} is {value:g}, threshold {least:g}")
        if self.twin:
            lines += [f"  kept in its place: {self.twin}", f"  its text: {self.twin_text}"]
        lines += [f"  likeness {edge['jaccard']:.3f} to {edge['doc_id']}" for edge in self.likenesses]
        for check in self.checks:
            mark = "ok  " if check.passed else "FAIL"
            note = "" if check.judged else "  (not judged: too short)"
            lines.append(f"  {mark} {check.rule:<28} {check.value:>9g}   threshold {check.threshold:g}{note}")
        return "\n".join(lines)


def manifest_of(directory: Path) -> dict[str, Any]:
    """The manifest of a finished corpus.

    Raises:
        HeptaError: there is none.
    """
    manifest = read_manifest(directory) if directory.is_dir() else None
    if manifest is None or manifest.get("verb") != "corpus":
        raise HeptaError(f"{directory}: no finished corpus here; make one with hepta corpus build")
    return manifest


def explain(directory: Path, doc_id: str) -> list[Explanation]:
    """What happened to the documents whose id begins with ``doc_id``; several where a record stood twice.

    Raises:
        HeptaError: no corpus, no such document, or an id too short to name one.
    """
    manifest = manifest_of(directory)
    wanted = doc_id.strip().lower()
    dropped = list(_rows(directory / "dropped", wanted))
    kept = list(_rows(directory / "kept", wanted))
    ids = sorted({row["doc_id"] for row in kept + dropped})
    if not ids:
        raise HeptaError(f"{directory}: no document with id {doc_id!r}; ids are 32 hex digits, see kept/ and dropped/")
    if len(ids) > 1:
        raise HeptaError(f"{directory}: {len(ids)} documents begin with {doc_id!r}; the first is {ids[0]}")
    signals = next(_rows(directory / "signals", ids[0]))
    edges = _edges(directory, ids[0])
    rules = manifest["identity"]["rules"]
    return [_explain_row(directory, row, row in kept, signals, rules, edges) for row in kept + dropped]


def _explain_row(
    directory: Path, row: dict[str, Any], kept: bool, signals: dict[str, Any], rules: dict[str, Any], edges: list[Any]
) -> Explanation:
    twin = row.get("twin")
    twin_text = next((other["text"] for other in _rows(directory / "kept", twin)), None) if twin else None
    return Explanation(
        doc_id=row["doc_id"],
        kept=kept,
        source=row["source"],
        lang=row["lang"],
        split=row["split"],
        origin=row["origin"],
        text=_start(row["text"]),
        reasons=row.get("reasons") or [],
        checks=list(_checks(rules, row["lang"], signals)) if rules["enabled"] else [],
        twin=twin,
        twin_text=_start(twin_text) if twin_text else None,
        likenesses=edges,
    )


def _checks(rules: dict[str, Any], lang: str, signals: dict[str, Any]) -> Iterator[Check]:
    for rule in RULES:
        threshold = threshold_of(rules, rule.name, lang)
        if threshold is not None:
            value = float(signals[rule.signal])
            yield Check(rule.name, value, threshold, rule.passes(signals, threshold), rule.applies(signals))


def _start(text: str) -> str:
    shown = " ".join(text[: SHOWN * 2].split())
    return shown if len(shown) <= SHOWN else shown[:SHOWN] + "…"


def _rows(folder: Path, prefix: str) -> Iterator[dict[str, Any]]:
    """Rows whose doc_id begins with ``prefix``; parts and row groups are skipped by their statistics."""
    low, high = prefix, prefix + "~"
    for part in sorted(folder.glob("part-*.parquet")):
        table: pa.Table = parquet.read_table(part, filters=[("doc_id", ">=", low), ("doc_id", "<", high)])
        yield from table.to_pylist()


def _edges(directory: Path, doc_id: str) -> list[dict[str, Any]]:
    found = []
    for part in sorted((directory / "edges").glob("part-*.parquet")):
        mine = (compute.field("a") == doc_id) | (compute.field("b") == doc_id)
        for row in parquet.read_table(part, filters=mine).to_pylist():
            found.append({"doc_id": row["b"] if row["a"] == doc_id else row["a"], "jaccard": row["jaccard"]})
    return sorted(found, key=lambda edge: (-edge["jaccard"], edge["doc_id"]))


def explanations_as_json(found: list[Explanation]) -> dict[str, Any]:
    """One JSON object for all rows of one doc_id."""
    return {"doc_id": found[0].doc_id, "rows": [asdict(one) for one in found]}


def stats(directory: Path) -> dict[str, Any]:
    """The facts of a finished corpus."""
    return manifest_of(directory)["facts"]


def render_facts(output: str, facts: dict[str, Any]) -> str:
    """Facts as tables for people."""
    lines = [
        f"{output}: read {facts['read']:,} = kept {facts['kept']:,} + dropped {facts['dropped']:,} "
        f"+ quarantined {facts['quarantined']:,}",
        "",
        f"{'stage':<20} {'source':<16} {'lang':<5} {'documents':>12} {'characters':>16}",
    ]
    rows = facts["by_stage_source_lang"]
    rows = sorted(rows, key=lambda row: (STAGES.index(row["stage"]), row["source"], row["lang"]))
    for row in rows:
        cells = f"{row['stage']:<20} {row['source']:<16} {row['lang']:<5}"
        lines.append(f"{cells} {row['documents']:>12,} {row['characters']:>16,}")
    if facts["reasons"]:
        lines += ["", "dropped because (a document may fail several rules):"]
        lines += [f"  {rule:<28} {count:>10,}" for rule, count in facts["reasons"].items()]
    lines += ["", f"{'split':<6} {'lang':<5} {'documents':>12} {'characters':>16}"]
    for split, own in facts["splits"].items():
        for lang, cell in own["by_language"].items():
            lines.append(f"{split:<6} {lang:<5} {cell['documents']:>12,} {cell['characters']:>16,}")
    return "\n".join([*lines, *(f"note: {warning}" for warning in facts["warnings"])])
