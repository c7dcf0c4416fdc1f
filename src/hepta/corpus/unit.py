"""The map stage: one work unit in, one sealed Parquet file of measured documents out."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as parquet
import xxhash

from hepta.corpus.config import CorpusConfig
from hepta.corpus.inputs import Piece
from hepta.corpus.read import Fault, Record, read_piece
from hepta.corpus.repair import repair
from hepta.corpus.shingles import PERMUTATIONS
from hepta.corpus.signals import SIGNALS, WHOLE, measure
from hepta.corpus.streams import lines
from hepta.stage import digest_json, disk_errors, write_atomic, xxh3_file

BATCH_CHARS, BATCH_DOCS = 1 << 20, 4096  # what is measured at once; results do not depend on it
FILE_CHARS = 64 << 20  # characters per Parquet file of a unit
ROW_GROUP = 1000


def _signal_type(name: str) -> pa.DataType:
    if name in WHOLE:
        return pa.int64()
    return {"script": pa.string(), "repaired": pa.bool_()}.get(name, pa.float64())


SIGNAL_FIELDS = [pa.field(name, _signal_type(name)) for name in SIGNALS]
SCHEMA = pa.schema([
    *(pa.field(name, pa.string()) for name in ("doc_id", "text_hash", "origin", "source", "lang", "text", "meta")),
    *SIGNAL_FIELDS,
    pa.field("signature", pa.binary(PERMUTATIONS * 4)),
])  # fmt: skip
ORDER = [("doc_id", "ascending"), ("text_hash", "ascending"), ("origin", "ascending")]


@dataclass(frozen=True)
class UnitResult:
    """What one unit held."""

    paths: list[str]  # its Parquet files
    read: int  # records met, readable or not
    quarantined: list[dict[str, Any]]
    damaged: list[str]  # files whose rest was lost
    files: list[str]  # files met


def write_table(table: pa.Table, path: Path, row_group: int = ROW_GROUP * 5) -> None:
    """Write Parquet durably under a temporary name, then rename it."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                parquet.write_table(table, file, compression="zstd", compression_level=1, row_group_size=row_group)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def unit_name(fingerprint: str, unit: list[Piece]) -> str:
    """Content address of a unit: the build's fingerprint and the pieces it reads."""
    return digest_json([fingerprint, [asdict(piece) for piece in unit]])[:24]


def finished_unit(folder: Path, name: str) -> UnitResult | None:
    """A unit that an earlier run sealed, checked byte for byte; None where there is none."""
    seal = folder / f"{name}.json"
    if not seal.is_file():
        return None
    try:
        values = orjson.loads(seal.read_bytes())
        values["paths"] = [str(folder / Path(path).name) for path in values["paths"]]
        whole = values.pop("xxh3") == [xxh3_file(Path(path)) for path in values["paths"]]
        return UnitResult(**values) if whole else None
    except (ValueError, KeyError, TypeError, OSError):
        return None


def run_unit(unit: list[Piece], config: CorpusConfig, folder: Path, name: str) -> UnitResult:
    """Read, repair and measure one unit; the seal is written last.

    Raises:
        MachineError: the disk is full.
    """
    faults: list[Fault] = []
    tables: list[pa.Table] = []
    paths: list[Path] = []
    read = chars = 0

    def flush() -> None:
        path = folder / f"{name}-{len(paths):04d}.parquet"
        write_table(pa.concat_tables([SCHEMA.empty_table(), *tables]).sort_by(ORDER), path, ROW_GROUP)
        paths.append(path)
        tables.clear()

    for records, bad, count in _batches(unit, config):
        read += count
        faults += bad
        if records:
            tables.append(_measured(records))
            chars += sum(len(record.text) for record in records)
        if chars >= FILE_CHARS:  # a packed file may be much larger inside
            flush()
            chars = 0
    if tables or not paths:
        flush()
    damaged = sorted({f"{fault.source}/{fault.file}" for fault in faults if fault.ends_file})
    files = sorted({f"{piece.file.source}/{piece.file.shown}" for piece in unit})
    quarantined = [_quarantine_row(fault, unit) for fault in faults]
    result = UnitResult([str(path) for path in paths], read, quarantined, damaged, files)
    write_atomic(folder / f"{name}.json", orjson.dumps({**asdict(result), "xxh3": [xxh3_file(path) for path in paths]}))
    return result


def _batches(unit: list[Piece], config: CorpusConfig) -> Iterator[tuple[list[Record], list[Fault], int]]:
    records: list[Record] = []
    faults: list[Fault] = []
    chars = 0
    for piece in unit:
        for item in read_piece(piece, config):
            if isinstance(item, Fault):
                faults.append(item)
                continue
            records.append(item)
            chars += len(item.text)
            if chars >= BATCH_CHARS or len(records) >= BATCH_DOCS:
                yield records, faults, len(records) + len(faults)
                records, faults, chars = [], [], 0
    yield records, faults, len(records) + len(faults)


def _measured(records: list[Record]) -> pa.Table:
    mended = [repair(record.text) for record in records]
    texts = [text for text, _ in mended]
    languages, signals, shingles = measure(texts, [changed for _, changed in mended])
    signatures = np.ascontiguousarray(shingles.signatures()).view(np.uint8).reshape(len(texts), PERMUTATIONS * 4)
    columns: dict[str, Any] = {
        "doc_id": [record.doc_id for record in records],
        "text_hash": [xxhash.xxh3_128_hexdigest(text.encode("utf-8")) for text in texts],
        "origin": [record.origin for record in records],
        "source": [record.source for record in records],
        "lang": languages,
        "text": texts,
        "meta": [record.meta for record in records],
        **{name: [row[name] for row in signals] for name in SIGNALS},
        "signature": [row.tobytes() for row in signatures],
    }
    return pa.table(columns, schema=SCHEMA)


def _quarantine_row(fault: Fault, unit: list[Piece]) -> dict[str, Any]:
    """A fault for quarantine.jsonl; the line number is counted only now, since faults are rare."""
    line = fault.line
    piece = next(piece for piece in unit if (piece.file.source, piece.file.shown) == (fault.source, fault.file))
    if line is None and piece.file.format in ("jsonl", "txt"):
        path = Path(piece.file.path)
        line = 1 + sum(1 for _ in lines(path, 0, fault.offset)) if fault.offset and not fault.ends_file else None
        line = 1 if fault.offset == 0 and not fault.ends_file else line
    return {"source": fault.source, "file": fault.file, "line": line, "offset": fault.offset, "error": fault.error}
