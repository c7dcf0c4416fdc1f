"""What a run's last evaluation says of each held-out document: ``RUN/held_out.parquet``, for comparing runs."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hepta.stage import write_atomic
from hepta.training.evaluate import Scores

HELD_OUT = "held_out.parquet"


def write_documents(run: Path, scores: Scores) -> None:
    """Write a row per document: its name, source, language, nats, supervised tokens, and the UTF-8 bytes they spell."""
    rows = [
        (*names, sums.nats, sums.tokens, sums.bytes)
        for names, sums in sorted((scores.by_document or {}).items())
        if sums.tokens
    ]
    columns = zip(*rows, strict=True) if rows else [[] for _ in SCHEMA]
    buffer = io.BytesIO()
    pq.write_table(pa.table([list(column) for column in columns], schema=SCHEMA), buffer)
    write_atomic(run / HELD_OUT, buffer.getvalue())


SCHEMA = pa.schema([
    ("document", pa.string()), ("source", pa.string()), ("lang", pa.string()), ("nats", pa.float64()),
    ("tokens", pa.int64()), ("bytes", pa.int64()),
])  # fmt: skip


def read_documents(run: Path) -> dict[str, tuple[float, int, int]]:
    """Of each held-out document: nats, tokens, bytes; empty where the run scored none by document."""
    path = run / HELD_OUT
    if not path.is_file():
        return {}
    table = pq.read_table(path, schema=SCHEMA).to_pydict()
    found: dict[str, tuple[float, int, int]] = {}
    columns = (table[key] for key in ("document", "nats", "tokens", "bytes"))
    for name, nats, tokens, size in zip(*columns, strict=True):
        before = found.get(name, (0.0, 0, 0))
        found[name] = (before[0] + nats, before[1] + tokens, before[2] + size)
    return found
