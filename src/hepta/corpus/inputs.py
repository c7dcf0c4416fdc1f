"""From ``[NAME=]PATH`` words to sources, files and work units of even size."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepta.config import HeptaError
from hepta.console import say
from hepta.stage import read_json, read_manifest

FORMATS = {
    ".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".html": "html", ".htm": "html",
}  # fmt: skip
PACKED = (".gz", ".zst")
UNNAMED = "text"  # source of files given without a name, so that renaming or splitting them changes no doc_id
UNIT_BYTES = (1 << 20, 64 << 20)  # least and most bytes of a work unit
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


@dataclass(frozen=True)
class SourceFile:
    """One file of one source."""

    source: str
    path: str
    shown: str  # relative to the input that named it, for origins and messages
    format: str
    size: int
    text_column: str


@dataclass(frozen=True)
class Piece:
    """A file or a range of it: bytes of lines, or row groups of Parquet. ``end`` None: to the end."""

    file: SourceFile
    start: int = 0
    end: int | None = None
    size: int = 0


@dataclass(frozen=True)
class Found:
    """What the inputs hold."""

    files: list[SourceFile]
    notes: list[str]  # what was passed over and why; part of the report


def format_of(path: Path) -> str | None:
    """The reader for a file name (``a.jsonl.gz`` → ``jsonl``), or None."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    suffix = Path(name).suffix
    kind = FORMATS.get(suffix)
    return None if kind == "parquet" and path.suffix.lower() in PACKED else kind


def find_files(inputs: list[str], text_column: str) -> Found:
    """Resolve the inputs.

    Raises:
        HeptaError: a path that is not there, an empty folder, a binary file, a name that cannot be a source.
    """
    files: list[SourceFile] = []
    notes: list[str] = []
    for word in inputs:
        name, path = _split_name(word)
        if not path.exists():
            raise HeptaError(f"{path}: no such file or folder; --input wants [NAME=]PATH")
        if path.is_file():
            files.append(_single_file(name or UNNAMED, path, text_column))
        else:
            files += _folder(name, path, text_column, notes)
    files.sort(key=lambda file: (file.source, file.shown, file.path))
    for note in notes:
        say(f"note: {note}")
    return Found(files, notes)


def _split_name(word: str) -> tuple[str | None, Path]:
    name, equals, rest = word.partition("=")
    if not equals or Path(word).exists():
        return None, Path(word)
    if not _NAME.match(name):
        raise HeptaError(f"input {word!r}: the name before = may hold letters, digits, dots, dashes, underscores")
    return name, Path(rest)


def _single_file(source: str, path: Path, text_column: str) -> SourceFile:
    kind = format_of(path)
    if kind is None:
        with path.open("rb") as file:
            head = file.read(8192)
        if path.suffix.lower() in PACKED or b"\0" in head or path.suffix:
            known = ", ".join(FORMATS)
            what = "binary data" if b"\0" in head else "of a type that is not read"
            raise HeptaError(f"{path}: {what}; known are {known}, plain or with .gz or .zst")
        kind = "txt"
    return SourceFile(source, str(path), path.name, kind, path.stat().st_size, text_column)


def _folder(name: str | None, path: Path, text_column: str, notes: list[str]) -> list[SourceFile]:
    manifest = read_manifest(path)
    verb = manifest.get("verb") if manifest else None
    if verb == "fetch" and name is None:
        return _fetched(path, (manifest or {})["facts"]["names"], text_column, notes)
    if verb not in (None, "fetch"):
        raise HeptaError(f"{path}: is the output of hepta {verb}; corpus build wants raw text")
    source, column = name or UNNAMED, text_column
    if (path / "SOURCE.json").is_file():  # one data set of a fetch output
        facts = read_json(path / "SOURCE.json")
        source, column = name or facts["name"], facts.get("text_key") or text_column
    files, skipped = [], Counter()
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if not file.is_file() or any(part.startswith(".") for part in inside.parts) or file.name == "SOURCE.json":
            continue
        kind = format_of(file)
        if kind is None:
            skipped[file.suffix or "without suffix"] += 1
        else:
            files.append(SourceFile(source, str(file), inside.as_posix(), kind, file.stat().st_size, column))
    seen = ", ".join(f"{count} × {suffix}" for suffix, count in sorted(skipped.items()))
    if not files:
        known = ", ".join(FORMATS)
        raise HeptaError(f"{path}: nothing to read in this folder (found: {seen or 'no files'}); known are {known}")
    if seen:
        notes.append(f"{path}: files of other types were passed over: {seen}")
    return files


def _fetched(path: Path, names: dict[str, Any], text_column: str, notes: list[str]) -> list[SourceFile]:
    files: list[SourceFile] = []
    for name, facts in sorted(names.items()):
        if facts.get("kind") == "text":
            files += _folder(name, path / name, text_column, notes)
        else:
            notes.append(f"{name}: holds {facts.get('kind')}, not documents; passed over (name its folder to read it)")
    if not files:
        raise HeptaError(f"{path}: holds no documents, only {', '.join(sorted(names))}")
    return files


def plan_units(files: list[SourceFile], txt_lines: bool) -> list[list[Piece]]:
    """Group small files and cut large ones so that units are even; independent of the number of workers."""
    total = sum(file.size for file in files)
    target = min(max(total // 64, UNIT_BYTES[0]), UNIT_BYTES[1])
    units: list[list[Piece]] = []
    room = 0
    for file in files:
        for piece in _cut_file(file, target, txt_lines):
            if not units or room < piece.size:
                units.append([])
                room = target
            units[-1].append(piece)
            room -= piece.size
    return units


def _cut_file(file: SourceFile, target: int, txt_lines: bool) -> list[Piece]:
    packed = Path(file.path).suffix.lower() in PACKED
    by_lines = file.format == "jsonl" or (file.format == "txt" and txt_lines)
    if file.size <= target or packed or not (by_lines or file.format == "parquet"):
        return [Piece(file, size=file.size)]
    if by_lines:
        starts = range(0, file.size, target)
        return [Piece(file, start, min(start + target, file.size), min(target, file.size - start)) for start in starts]
    return _cut_parquet(file, target)


def _cut_parquet(file: SourceFile, target: int) -> list[Piece]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        meta = parquet.read_metadata(file.path)
    except (pa.ArrowException, OSError):
        return [Piece(file, size=file.size)]  # the reader will say what is wrong with it
    pieces, start, size = [], 0, 0
    scale = file.size / max(sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)), 1)
    for group in range(meta.num_row_groups):
        size += int(meta.row_group(group).total_byte_size * scale)
        if size >= target or group == meta.num_row_groups - 1:
            pieces.append(Piece(file, start, group + 1, size))
            start, size = group + 1, 0
    return pieces or [Piece(file, size=file.size)]
