"""All units' documents seen as one table in a fixed order: narrow columns in memory, texts read on demand."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from hepta.corpus.shingles import PERMUTATIONS
from hepta.corpus.signals import SIGNALS
from hepta.corpus.unit import ORDER, ROW_GROUP, UnitResult

NARROW = ["doc_id", "text_hash", "origin", "source", "lang", *SIGNALS, "signature"]


class Store:
    """Documents in order of (doc_id, text hash, origin), whichever unit, file or worker they came from."""

    def __init__(self, units: Sequence[UnitResult]) -> None:
        self._files = [path for unit in units for path in unit.paths]
        tables = []
        for number, path in enumerate(self._files):
            table = parquet.ParquetFile(path).read(columns=NARROW)
            place = pa.array(np.full(table.num_rows, number, np.int32))
            row = pa.array(np.arange(table.num_rows, dtype=np.int64))
            tables.append(table.append_column("unit", place).append_column("row", row))
        whole = pa.concat_tables(tables).sort_by(ORDER).combine_chunks()
        self.size: int = whole.num_rows
        self.unit, self.row = whole["unit"].to_numpy(), whole["row"].to_numpy()
        self.signatures = _signatures(whole["signature"])
        self.table = whole.drop_columns(["unit", "row", "signature"])

    def strings(self, name: str) -> np.ndarray:
        """A text column as an object array (N,)."""
        return self.table[name].to_numpy(zero_copy_only=False)

    def numbers(self) -> dict[str, np.ndarray]:
        """Signal name → values (N,), for all signals."""
        return {name: self.table[name].to_numpy(zero_copy_only=False) for name in SIGNALS}

    def texts(self, rows: np.ndarray) -> list[str]:
        """The texts of some documents, in the order asked for."""
        wanted: dict[tuple[int, int], list[int]] = defaultdict(list)
        for position, row in enumerate(rows.tolist()):
            wanted[int(self.unit[row]), int(self.row[row]) // ROW_GROUP].append(position)
        found: list[Any] = [None] * len(rows)
        for (unit, group), positions in sorted(wanted.items()):
            with parquet.ParquetFile(self._files[unit]) as file:
                column = file.read_row_group(group, columns=["text"])["text"]
            for position in positions:
                found[position] = column[int(self.row[rows[position]]) % ROW_GROUP].as_py()
        return found

    def content(self, low: int, high: int) -> tuple[pa.Array, pa.Array]:
        """``text`` and ``meta`` of the documents low ≤ i < high."""
        units, rows = self.unit[low:high], self.row[low:high]
        tables, places = [], []
        for unit in np.unique(units).tolist():
            mine = np.flatnonzero(units == unit)  # contiguous in the unit, which is sorted the same way
            first, last = int(rows[mine[0]]), int(rows[mine[-1]])
            groups = list(range(first // ROW_GROUP, last // ROW_GROUP + 1))
            with parquet.ParquetFile(self._files[unit]) as file:
                table = file.read_row_groups(groups, columns=["text", "meta"])
            tables.append(table.slice(first - groups[0] * ROW_GROUP, last - first + 1))
            places.append(mine)
        if not tables:
            empty = pa.array([], pa.string())
            return empty, empty
        back = np.argsort(np.concatenate(places), kind="stable")
        joined = pa.concat_tables(tables).take(pa.array(back))
        return joined["text"].combine_chunks(), joined["meta"].combine_chunks()


def _signatures(column: pa.ChunkedArray) -> np.ndarray:
    """(N, 128) uint32 from fixed-size binary values."""
    parts = [np.frombuffer(chunk.buffers()[1], np.uint8) for chunk in column.chunks if len(chunk)]
    if not parts:
        return np.zeros((0, PERMUTATIONS), np.uint32)
    width = PERMUTATIONS * 4
    sliced = [
        part[chunk.offset * width : (chunk.offset + len(chunk)) * width]
        for part, chunk in zip(parts, (chunk for chunk in column.chunks if len(chunk)), strict=True)
    ]
    return np.concatenate(sliced).view(np.uint32).reshape(-1, PERMUTATIONS)
