"""Read documents back: from a finished corpus directory, or from plain .txt and .jsonl files."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from hepta.config import HeptaError
from hepta.stage import UNFINISHED, read_manifest

SPLITS = ("train", "val", "test")
PLAIN = (".txt", ".jsonl")
_HAN, _KANA, _LATIN = re.compile("[\u3400-\u9fff]+"), re.compile("[\u3040-\u30ff]+"), re.compile("[A-Za-z]+")


@dataclass(frozen=True, slots=True)
class Document:
    """One document; ``lang`` is an ISO 639-1 code, or ``und`` where nothing is known."""

    doc_id: str  # 32 hex digits
    text: str
    source: str  # logical name of where it came from
    lang: str
    split: str  # train, val or test; "" for plain files


def iter_documents(path: Path | str, split: str | None = None) -> Iterator[Document]:
    """Documents in a fixed order: by doc_id in a corpus, by file name and row in plain files.

    Args:
        path: a directory made by ``hepta corpus build``; or a .txt file (one document), a .jsonl file
            (one document a row, key ``text``), or a folder of such files.
        split: only this split (train, val, test); None for all. Plain files have no splits, so it is ignored.

    Raises:
        HeptaError: nothing there, an unfinished corpus, an unknown split, a broken row (file and line).
    """
    path = Path(path)
    if split is not None and split not in SPLITS:
        raise HeptaError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    if not path.exists():
        raise HeptaError(f"{path}: no such file or directory; give a corpus directory or a .txt or .jsonl file")
    if is_corpus(path):
        return _from_corpus(path, split)
    return _from_plain(path)


def is_corpus(path: Path) -> bool:
    """Whether a finished corpus lies at ``path``; an unfinished one is an error."""
    if not path.is_dir():
        return False
    manifest = read_manifest(path)
    if manifest is None and (path / UNFINISHED).exists():
        raise HeptaError(f"{path}: this stage was not finished; repeat its command first")
    return manifest is not None and manifest.get("verb") == "corpus"


def _from_corpus(path: Path, split: str | None) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    columns = ["doc_id", "text", "source", "lang", "split"]
    for part in sorted((path / "kept").glob("part-*.parquet")):
        try:
            for batch in parquet.ParquetFile(part).iter_batches(batch_size=4096, columns=columns):
                for row in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                    if split is None or row[4] == split:
                        yield Document(*row)
        except pa.ArrowException as error:
            raise HeptaError(f"{part}: not readable as Parquet ({error}); build again with --fresh") from None


def _from_plain(path: Path) -> Iterator[Document]:
    if path.is_file():
        files = [path]
        if path.suffix not in PLAIN:
            raise HeptaError(f"{path}: expected a corpus, a .txt or .jsonl file; others go through hepta corpus build")
    else:
        files = sorted(f for f in path.rglob("*") if f.suffix in PLAIN and f.is_file() and not f.name.startswith("."))
        if not files:
            raise HeptaError(f"{path}: neither a corpus (no manifest.json) nor a folder with .txt or .jsonl files")
    for file in files:
        yield from _from_file(file)


def _from_file(file: Path) -> Iterator[Document]:
    try:
        if file.suffix == ".txt":
            yield _document(file.read_text(encoding="utf-8"), file.stem)
            return
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _document(_text_of(line, file, number), file.stem)
    except UnicodeDecodeError as error:
        raise HeptaError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _text_of(line: str, file: Path, number: int) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise HeptaError(f"{file}: line {number}: not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        seen = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise HeptaError(f"{file}: line {number}: no key 'text' holding a string; found: {seen}")
    return row["text"]


def _document(text: str, source: str) -> Document:
    data = text.encode("utf-8", "surrogatepass")
    return Document(xxhash.xxh3_128_hexdigest(data), text, source, language_by_script(text), "")


def language_by_script(text: str) -> str:
    """A guess from the letters, for files no build has seen: zh, ja, ``en`` for any Latin script, else ``und``."""
    sample = text[:4000]
    han, kana, latin = (sum(map(len, letters.findall(sample))) for letters in (_HAN, _KANA, _LATIN))
    if kana * 5 > han + kana > 0:
        return "ja"
    if han * 3 > latin:
        return "zh"
    return "en" if latin else "und"
