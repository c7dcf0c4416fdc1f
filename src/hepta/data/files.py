"""Files of rows people have (JSON Lines, JSON arrays, CSV, Parquet) as objects, and an account of bad rows.

A bad row is dropped and counted, or ends the reading, as the policy says; nothing is repaired silently.
"""

import csv
import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import zstandard

from hepta.config import HeptaError
from hepta.console import say
from hepta.stage import MANIFEST

Policy = Literal["drop", "error"]
Row = dict[str, Any]
JSON_SUFFIXES = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")
TABLE_SUFFIXES = (*JSON_SUFFIXES, ".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst")
EXAMPLE_ROWS = 5  # row numbers kept per reason in the report
LONGEST_CELL = 64 << 20
FOREIGN_SHARE = 0.02  # of the bytes above 127: with more of them wrong as UTF-8, a file is in another encoding


class RowError(Exception):
    """A row that is no use; the message says why."""


@dataclass
class RowFaults:
    """Counts of dropped rows by reason, with the first few of them."""

    policy: Policy
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, file: Path, row: int, reason: str) -> None:
        """Count a bad row; what stands before the colon of ``reason`` is its kind.

        Raises:
            HeptaError: the policy is ``error``.
        """
        if self.policy == "error":
            raise HeptaError(f"{file}: row {row}: {reason}; mend the row or set bad_rows=drop")
        kind = reason.partition(":")[0]
        self.counts[kind] += 1
        if len(self.examples[kind]) < EXAMPLE_ROWS:
            self.examples[kind].append(f"{file.name} row {row}: {reason}")

    @property
    def first(self) -> str:
        """The first bad row, in words."""
        return next((examples[0] for examples in self.examples.values()), "the files are empty")

    def told(self, read: int) -> str:
        """One line: how many rows were dropped, by kind, with an example row of each."""
        kinds = "; ".join(f"{count} {kind} ({self.examples[kind][0]})" for kind, count in self.counts.most_common())
        return f"dropped {sum(self.counts.values())} of {read} rows: {kinds}"


def find_files(entry: Path | str, suffixes: Sequence[str], what: str) -> list[tuple[Path, str]]:
    """(file, source name) of a file, a folder of files, or ``NAME=PATH`` of either.

    Raises:
        HeptaError: nothing there, a file of another format, or a folder without such files.
    """
    name, equals, rest = str(entry).partition("=")
    named = bool(equals) and not Path(entry).exists()
    path = Path(rest if named else entry)
    shown = ", ".join(suffixes[:3] if suffixes is JSON_SUFFIXES else (".csv", ".tsv", ".jsonl", ".json"))
    if path.is_file():
        if not path.name.lower().endswith(TABLE_SUFFIXES):
            formats = ", ".join(suffix for suffix in TABLE_SUFFIXES if suffix.count(".") == 1)
            found_suffix = path.suffix or "a file without suffix"
            raise HeptaError(f"{path}: {found_suffix} is no format of {what}; {formats} are, also as .gz or .zst")
        found = [path]
    elif path.is_dir():
        found = sorted(f for f in path.rglob("*") if _is_data(f, path, suffixes))
    else:
        raise HeptaError(f"{path}: no such file or directory; give a {shown} file of {what}")
    if not found:
        raise HeptaError(f"{path}: holds no {shown} file of {what}")
    return [(file, name if named else file.name.partition(".")[0]) for file in found]


def _is_data(file: Path, root: Path, suffixes: Sequence[str]) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.is_file() and file.name.endswith(tuple(suffixes)) and not hidden and file.name not in (
        MANIFEST, "SOURCE.json",
    )  # fmt: skip


def read_rows(file: Path, faults: RowFaults) -> Iterator[tuple[int, Row | None]]:
    """(row number, row) of a file; None for a row that was dropped already.

    Rows are numbered from 1: lines of JSON Lines, elements of an array or of Parquet, and rows of a CSV file as a
    spreadsheet counts them (the header is row 1).

    Raises:
        HeptaError: the file cannot be read, is no array of rows, or is a CSV file without a header.
    """
    suffix = next(
        (s for s in file.suffixes if s.lower() in (".csv", ".tsv", ".jsonl", ".json", ".parquet")), ""
    ).lower()
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as parquet

            batches = parquet.ParquetFile(file).iter_batches(1024)
            values: Iterator[Any] = (row for batch in batches for row in batch.to_pylist())
        elif suffix in (".csv", ".tsv"):
            yield from _csv_rows(read_text(file), file, faults)
            return
        elif suffix == ".jsonl":
            yield from _json_lines(read_text(file), file, faults)
            return
        else:
            loaded = json.loads(read_text(file))
            if not isinstance(loaded, list):
                raise HeptaError(f"{file}: expected a JSON array of rows, found a {type(loaded).__name__}")
            values = iter(loaded)
        for row, value in enumerate(values, 1):
            yield row, _as_object(value, file, row, faults)
    except (
        OSError,
        EOFError,
        ValueError,
        ImportError,
        zstandard.ZstdError,
    ) as error:  # pyarrow's are OSError and ValueError
        raise HeptaError(f"{file}: cannot be read: {error}") from None


def read_text(file: Path) -> str:
    """A text file as a string: UTF-8 (with or without BOM), UTF-16 with BOM, or GB18030, which is said on stderr.

    Bytes of a UTF-8 file that are none become lone surrogates, which ``broken_text`` finds.
    """
    raw = file.read_bytes()
    if file.name.endswith(".gz"):
        raw = gzip.decompress(raw)
    elif file.name.endswith(".zst"):
        raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16")
    text = raw.decode("utf-8-sig", "surrogateescape")
    wrong = sum("\udc80" <= char <= "\udcff" for char in text) if not text.isascii() and broken_text(text) else 0
    if wrong > FOREIGN_SHARE * sum(byte > 127 for byte in raw):
        try:
            chinese = raw.decode("gb18030")
        except UnicodeDecodeError:
            return text
        say(f"{file}: is not UTF-8; read as GB18030")
        return chinese
    return text


def broken_text(text: str) -> bool:
    """Whether a text holds bytes that were not UTF-8 (or a lone surrogate, which no file can hold)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _json_lines(text: str, file: Path, faults: RowFaults) -> Iterator[tuple[int, Row | None]]:
    for row, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            faults.add(file, row, f"not JSON: {error}")
            yield row, None
            continue
        yield row, _as_object(value, file, row, faults)


def _as_object(value: Any, file: Path, row: int, faults: RowFaults) -> Row | None:
    if isinstance(value, dict):
        return value
    faults.add(file, row, f"not an object: found a {type(value).__name__}")
    return None


def _csv_rows(text: str, file: Path, faults: RowFaults) -> Iterator[tuple[int, Row | None]]:
    """Rows of a comma, semicolon or tab separated file; the delimiter is what cuts the header into most columns."""
    csv.field_size_limit(LONGEST_CELL)
    lines = [f"{line}\n" for line in text.rstrip("\r\n").split("\n" if "\n" in text else "\r")]  # \r: an old Mac's
    cuts = {mark: next(csv.reader(lines, delimiter=mark), []) for mark in ",;\t"}
    delimiter = max(cuts, key=lambda mark: len(cuts[mark]))
    header = [name.strip() or f"column {place}" for place, name in enumerate(cuts[delimiter], 1)]
    if not any(name.strip() for name in cuts[delimiter]):
        raise HeptaError(f"{file}: row 1 is empty; it must name the columns")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise HeptaError(f"{file}: row 1 names column {twice!r} twice; give each column its own name")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    next(reader)
    row = 1
    while True:
        row, before = row + 1, reader.line_num
        try:
            cells = next(reader, None)
        except csv.Error as error:
            faults.add(file, row, _csv_fault(str(error), reader.line_num - before))
            yield row, None
            continue
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        while len(cells) > len(header) and not cells[-1].strip():
            cells.pop()
        if len(cells) > len(header):
            fault = f"{len(cells)} cells where the header names {len(header)}; a text with {delimiter!r} needs quotes"
            faults.add(file, row, f"too many cells: {fault}")
            yield row, None
            continue
        yield row, dict(zip(header, cells, strict=False))


def _csv_fault(error: str, lines: int) -> str:
    if "unexpected end of data" in error:
        return f"not CSV: a quote opened here is never closed, so {lines} lines to the end of the file are lost"
    return f"not CSV: {error}"
