"""Readers: a piece of a file becomes records, and whatever cannot be read becomes a counted fault."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import xxhash

from hepta.corpus.config import CorpusConfig
from hepta.corpus.inputs import Piece, SourceFile
from hepta.corpus.pages import page_text
from hepta.corpus.streams import RECORD_LIMIT, DamagedFile, blocks, lines, whole

SEPARATOR = b"\x1f"
csv.field_size_limit(RECORD_LIMIT)


@dataclass(slots=True)
class Record:
    """One document as it was found."""

    doc_id: str
    source: str
    text: str
    origin: str  # file and byte offset, or row
    meta: str  # the record's other keys as JSON


@dataclass(slots=True)
class Fault:
    """One record, or the rest of a file, that could not be read."""

    source: str
    file: str
    offset: int  # byte offset (decompressed), or row of a Parquet or CSV file
    error: str
    line: int | None = None
    ends_file: bool = False  # the rest of the file is lost


class BadRecord(Exception):
    """This record is unusable; the message says why."""


def doc_id_of(source: str, key: bytes) -> str:
    """xxh3-128 of source name and native id (or raw bytes): survives resharding, renaming and order."""
    return xxhash.xxh3_128_hexdigest(source.encode() + SEPARATOR + key)


def read_piece(piece: Piece, config: CorpusConfig) -> Iterator[Record | Fault]:
    """Records and faults of one piece, in order."""
    file = piece.file
    readers = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet, "html": _html, "txt": _txt}
    reader = _txt_lines if file.format == "txt" and config.txt == "line" else readers[file.format]
    try:
        if file.format != "parquet":
            _refuse_binary(piece, config.encoding)
        yield from reader(piece, config)
    except (DamagedFile, OSError) as reason:
        if isinstance(reason, OSError) and reason.errno in (5, 28, 122):
            raise
        yield Fault(file.source, file.shown, getattr(reason, "offset", 0), str(reason), ends_file=True)


def _refuse_binary(piece: Piece, encoding: str) -> None:
    """Text has no NUL bytes; UTF-16 and UTF-32 do."""
    if piece.start or encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32")):
        return
    at = next(blocks(Path(piece.file.path)), b"")[:8192].find(b"\0")
    if at >= 0:
        raise DamagedFile(f"binary data (NUL byte at offset {at}), not text; for UTF-16 give encoding=utf-16")


def _record(file: SourceFile, text: Any, key: bytes, place: int | str, meta: dict[str, Any]) -> Record:
    if not isinstance(text, str):
        raise BadRecord(f"{file.text_column!r} holds {_kind(text)}, not text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord(f"lone surrogate at character {error.start}") from None
    shown = orjson.dumps(meta, default=str, option=orjson.OPT_NON_STR_KEYS).decode() if meta else ""
    return Record(doc_id_of(file.source, key), file.source, text, f"{file.shown}:{place}", shown)


def _kind(value: Any) -> str:
    return "nothing (null)" if value is None else f"a {type(value).__name__}"


def _decode(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        found = data[error.start : error.start + 4].hex(" ")
        raise BadRecord(f"not {encoding}: {error.reason} at byte {error.start} ({found})") from None


def _each_line(piece: Piece) -> Iterator[tuple[int, bytes | Fault]]:
    """Lines of a piece that are not blank; a damaged end becomes a fault placed behind the last whole line."""
    file = piece.file
    after = piece.start
    try:
        for offset, line in lines(Path(file.path), piece.start, piece.end):
            if line is None:
                error = f"a line of more than {RECORD_LIMIT:,} bytes"
                yield offset, Fault(file.source, file.shown, offset, error)
                continue
            after = offset + len(line) + 1
            if line.strip():
                yield offset, line.removesuffix(b"\r")
    except DamagedFile as reason:
        yield after, Fault(file.source, file.shown, after, str(reason), ends_file=True)


def _jsonl(piece: Piece, config: CorpusConfig) -> Iterator[Record | Fault]:
    file = piece.file
    for offset, line in _each_line(piece):
        if isinstance(line, Fault):
            yield line
            continue
        try:
            row = _parse_json(line, config.encoding)
            yield _from_row(file, config, row, line, offset)
        except BadRecord as reason:
            yield Fault(file.source, file.shown, offset, str(reason))


def _parse_json(line: bytes, encoding: str) -> dict[str, Any]:
    if encoding.lower() not in ("utf-8", "utf8"):
        line = _decode(line, encoding).encode("utf-8")
    try:
        row = orjson.loads(line)
    except ValueError:
        try:
            row = json.loads(_decode(line, "utf-8-sig"))  # allows NaN, a byte order mark, and says lone surrogates
        except ValueError as error:
            raise BadRecord(f"not JSON: {error}") from None
        except RecursionError:
            raise BadRecord("not JSON that can be read: nested too deep") from None
    if not isinstance(row, dict):
        raise BadRecord(f"not a JSON object but {_kind(row)}")
    return row


def _from_row(file: SourceFile, config: CorpusConfig, row: dict[str, Any], raw: bytes, place: int | str) -> Record:
    """A record from named values; ``raw`` identifies it where no id column is mapped."""
    if file.text_column not in row:
        raise BadRecord(_missing(file.text_column, list(row)))
    key = raw
    if config.id_column is not None:
        if row.get(config.id_column) is None:
            raise BadRecord(f"no id in {config.id_column!r}; found: {', '.join(map(str, row))}")
        key = str(row[config.id_column]).encode("utf-8", "surrogatepass")
    text = row[file.text_column]
    try:
        return _record(file, text, key, place, {k: v for k, v in row.items() if k != file.text_column})
    except (TypeError, orjson.JSONEncodeError) as error:
        raise BadRecord(f"its other values cannot be stored: {error}") from None


def _missing(column: str, seen: list[str]) -> str:
    shown = ", ".join(map(str, seen)) or "none"
    return f"no column {column!r}; columns seen: {shown}; choose one with text_column=NAME"


def _csv(piece: Piece, config: CorpusConfig) -> Iterator[Record | Fault]:
    file = piece.file
    damage: list[Fault] = []
    encoding = config.encoding if config.encoding.lower() not in ("utf-8", "utf8") else "utf-8-sig"

    def decoded() -> Iterator[str]:
        first = True
        for _, line in _each_line(piece):
            if isinstance(line, Fault):
                damage.append(line)
                continue
            yield line.decode(encoding if first else config.encoding, "surrogateescape") + "\n"
            first = False

    reader = csv.reader(decoded(), delimiter="\t" if ".tsv" in file.shown.lower() else ",", strict=True)
    header: list[str] | None = None
    while True:
        before = reader.line_num
        try:
            values = next(reader, None)
            if values is None:
                break
            if header is None:
                header = values
                if file.text_column not in header:
                    raise DamagedFile(_missing(file.text_column, header))
                continue
            if len(values) != len(header):
                raise BadRecord(f"{len(values)} fields where the header names {len(header)}")
            raw = SEPARATOR.join(value.encode("utf-8", "surrogateescape") for value in values)
            row = dict(zip(header, values, strict=True))
            if any(_escaped(value) for value in values):
                raise BadRecord(f"not {config.encoding}")
            yield _from_row(file, config, row, raw, before + 1)
        except (csv.Error, BadRecord) as reason:
            yield Fault(file.source, file.shown, before + 1, str(reason), line=before + 1)
    yield from damage


def _escaped(value: str) -> bool:
    return not value.isascii() and any("\udc80" <= char <= "\udcff" for char in value)


def _parquet(piece: Piece, config: CorpusConfig) -> Iterator[Record | Fault]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    file, row_number = piece.file, 0
    try:
        with parquet.ParquetFile(file.path) as table:
            names = table.schema_arrow.names
            if file.text_column not in names:
                raise DamagedFile(_missing(file.text_column, names))
            groups = range(piece.start, table.num_row_groups if piece.end is None else piece.end)
            row_number = sum(table.metadata.row_group(group).num_rows for group in range(piece.start))
            for group in groups:  # one by one: reading ahead into a damaged group would lose the one before
                for batch in table.iter_batches(batch_size=1024, row_groups=[group]):
                    for values in _batch_rows(batch):
                        yield _parquet_row(file, config, values, row_number)
                        row_number += 1
    except (pa.ArrowException, OSError) as reason:
        error = f"damaged Parquet: {str(reason).splitlines()[0]}"
        yield Fault(file.source, file.shown, row_number, error, ends_file=True)


def _batch_rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Rows of a batch; where a string is not UTF-8, its row is the error's text instead."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass
    for index in range(batch.num_rows):
        try:
            yield batch.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield f"not utf-8: {error.reason} at byte {error.start}"


def _parquet_row(file: SourceFile, config: CorpusConfig, row: dict[str, Any] | str, number: int) -> Record | Fault:
    try:
        if isinstance(row, str):
            raise BadRecord(row)
        raw = orjson.dumps(row, default=str, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
        return _from_row(file, config, row, raw, f"row {number}")
    except (BadRecord, TypeError) as reason:
        return Fault(file.source, file.shown, number, str(reason), line=number + 1)


def _txt(piece: Piece, config: CorpusConfig) -> Iterator[Record | Fault]:
    file = piece.file
    data = whole(Path(file.path), RECORD_LIMIT * 8)
    encoding = "utf-8-sig" if config.encoding.lower() in ("utf-8", "utf8") else config.encoding
    try:
        yield _record(file, _decode(data, encoding), data, 0, {})
    except BadRecord as reason:
        yield Fault(file.source, file.shown, 0, str(reason), ends_file=True)


def _txt_lines(piece: Piece, config: CorpusConfig) -> Iterator[Record | Fault]:
    file = piece.file
    for offset, line in _each_line(piece):
        if isinstance(line, Fault):
            yield line
            continue
        try:
            yield _record(file, _decode(line, config.encoding), line, offset, {})
        except BadRecord as reason:
            yield Fault(file.source, file.shown, offset, str(reason))


def _html(piece: Piece, config: CorpusConfig) -> Iterator[Record | Fault]:
    file = piece.file
    data = whole(Path(file.path), config.html.max_bytes)
    text = page_text(data, config.html.seconds)
    yield _record(file, text, data, 0, {})
