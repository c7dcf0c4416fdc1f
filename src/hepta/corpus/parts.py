"""Write kept, dropped and signals as Parquet parts cut by doc_id, so that files never depend on how the input lay."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from hepta.corpus.cut import Decisions
from hepta.corpus.signals import SIGNALS
from hepta.corpus.store import Store
from hepta.corpus.unit import SIGNAL_FIELDS, write_table
from hepta.stage import atomic_directory

PART_BYTES = 128 << 20  # of text per part
REASON = pa.struct({"stage": pa.string(), "rule": pa.string(), "value": pa.float64(), "threshold": pa.float64()})
COMMON = [pa.field(name, pa.string()) for name in ("doc_id", "text", "source", "lang", "split", "origin", "meta")]
KEPT = pa.schema(COMMON)
DROPPED = pa.schema([*COMMON, pa.field("reasons", pa.list_(REASON)), pa.field("twin", pa.string())])
MEASURED = pa.schema([*(pa.field(name, pa.string()) for name in ("doc_id", "source", "lang")), *SIGNAL_FIELDS])
EDGES = pa.schema([("a", pa.string()), ("b", pa.string()), ("jaccard", pa.float64())])


def part_bounds(doc_ids: np.ndarray, total_bytes: int) -> list[tuple[int, int]]:
    """Row ranges of the parts: equal shares of the doc_id space, as many as the bytes of text ask for."""
    count = max(1, -(-total_bytes // PART_BYTES))
    edges = [format(((1 << 128) * part) // count, "032x") for part in range(1, count)]
    cuts = [0, *np.searchsorted(doc_ids, edges).tolist(), len(doc_ids)] if edges else [0, len(doc_ids)]
    return list(pairwise(cuts))


def write_parts(store: Store, decisions: Decisions, output: Path) -> dict[str, int]:
    """Write ``kept/``, ``dropped/``, ``signals/`` and ``edges/``; returns the rows that lie in each afterwards."""
    doc_ids = store.strings("doc_id")
    bounds = part_bounds(doc_ids.astype("U32"), int(store.numbers()["bytes"].sum()))
    folders = ("kept", "dropped", "signals", "edges")
    with (
        atomic_directory(output / "kept") as kept,
        atomic_directory(output / "dropped") as dropped,
        atomic_directory(output / "signals") as signals,
        atomic_directory(output / "edges") as edges,
    ):
        for number, (low, high) in enumerate(bounds):
            name = f"part-{number:05d}.parquet"
            table = _common(store, decisions, low, high)
            mask = pa.array(decisions.kept[low:high])
            write_table(table.filter(mask), kept / name)
            write_table(_dropped(table, decisions, doc_ids, low, high), dropped / name)
            measured = store.table.slice(low, high - low).select(["doc_id", "source", "lang", *SIGNALS])
            write_table(measured.cast(MEASURED), signals / name)
        write_table(_edges(decisions, doc_ids), edges / "part-00000.parquet")
    return {folder: _rows_in(output / folder) for folder in folders}


def _common(store: Store, decisions: Decisions, low: int, high: int) -> pa.Table:
    narrow = store.table.slice(low, high - low)
    text, meta = store.content(low, high)
    columns = {
        "doc_id": narrow["doc_id"], "text": text, "source": narrow["source"], "lang": narrow["lang"],
        "split": pa.array(decisions.split[low:high], pa.string()), "origin": narrow["origin"], "meta": meta,
    }  # fmt: skip
    return pa.table(columns, schema=KEPT)


def _dropped(table: pa.Table, decisions: Decisions, doc_ids: np.ndarray, low: int, high: int) -> pa.Table:
    rows = np.flatnonzero(~decisions.kept[low:high])
    reasons: list[list[dict[str, Any]]] = []
    twins: list[str | None] = []
    for row in (rows + low).tolist():
        reasons.append([vars(reason) for reason in decisions.reasons[row]])
        twins.append(doc_ids[decisions.twin[row]] if row in decisions.twin else None)
    chosen = table.take(pa.array(rows))
    extra = [pa.array(reasons, pa.list_(REASON)), pa.array(twins, pa.string())]
    return pa.Table.from_arrays([*chosen.columns, *extra], schema=DROPPED)


def _edges(decisions: Decisions, doc_ids: np.ndarray) -> pa.Table:
    found = decisions.edges
    pairs = sorted(
        (*sorted((doc_ids[a], doc_ids[b])), value)
        for a, b, value in zip(found.a.tolist(), found.b.tolist(), found.jaccard.tolist(), strict=True)
    )
    columns = list(zip(*pairs, strict=True)) if pairs else [(), (), ()]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, EDGES, strict=True)], schema=EDGES)


def _rows_in(folder: Path) -> int:
    """Rows that really lie on disk, for the invariant."""
    return sum(parquet.read_metadata(part).num_rows for part in sorted(folder.glob("part-*.parquet")))
