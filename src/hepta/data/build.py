"""Documents to token shards: encode in threads, then write each shard sorted by document id.

The result does not depend on the order of documents or on the number of workers: a document's shard is a
hash of its id, and within a shard documents lie in order of their ids.
"""

import os
import shutil
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xxhash

from hepta.catalog.documents import Document, iter_documents
from hepta.config import HeptaError
from hepta.console import progress, say
from hepta.data.config import TokensConfig
from hepta.data.shards import DOCS, IDX_DTYPE, SPLITS, TOKENIZER, pack_ids, token_dtype
from hepta.stage import claim, digest_json, disk_errors, write_atomic, xxh3_file
from hepta.tokenizer.load import Tokenizer, load_tokenizer

VERSION = 1
CHUNK_BYTES = 1 << 19  # text that one encoding task holds: large enough that threads rarely meet
UNFINISHED = ".building"
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class TokensResult:
    """What a build left; the same under ``facts`` in its manifest.

    Attributes:
        splits: split → documents, tokens, bytes of text.
        by_language, by_source: split → language or source → the same.
        empty: documents without text, which produce nothing.
        files: path → xxh3-128 of each shard file.
    """

    output: str
    dtype: str
    vocab_size: int
    padded_size: int
    tokenizer_sha256: str
    document_policy: dict[str, Any]
    splits: dict[str, dict[str, int]]
    by_language: dict[str, dict[str, dict[str, int]]]
    by_source: dict[str, dict[str, dict[str, int]]]
    empty: int
    files: dict[str, str]


@dataclass(slots=True)
class _Row:
    """One document as it will stand in ``docs.parquet``."""

    doc_id: str
    source: str
    lang: str
    split: str
    shard: int
    start: int
    tokens: int
    bytes: int


def build_tokens(config: TokensConfig) -> TokensResult:
    """Encode every document as ``[bos] ids [eos]`` and write shards, index, documents and manifest.

    Raises:
        HeptaError: no documents, an unusable tokenizer, a source name that cannot be a folder.
    """
    stage = claim(config, "tokens", VERSION)
    if stage.manifest is not None and stage.state == "done":
        say(f"{config.output}: tokens already done")
        return TokensResult(**{**stage.manifest["facts"], "output": str(config.output)})
    tokenizer = load_tokenizer(config.tokenizer)
    _clear(config.output)
    building = config.output / UNFINISHED
    with disk_errors(config.output):
        rows, empty = _encode_all(config, tokenizer, building)
        if not rows:
            raise HeptaError(f"{config.input}: no documents with text to encode ({empty} empty ones)")
        files = _sort_shards(building, rows, token_dtype(tokenizer.padded_size))
        _write_documents(building / DOCS, rows)
        tokenizer.copy_to(building / TOKENIZER)
        for part in sorted(building.iterdir()):
            part.rename(config.output / part.name)
        building.rmdir()
    result = _summary(config, tokenizer, rows, empty, files)
    digest = digest_json([result.tokenizer_sha256, result.document_policy, result.dtype, files])
    stage.finish(digest, asdict(result))
    return result


def shard_of(doc_id: str, shards: int) -> int:
    """The shard of a document: a hash of its id, so that removing it touches one shard only."""
    return xxhash.xxh3_64_intdigest(doc_id.encode()) % shards


def split_of(document: Document, holdout: float) -> str:
    """The corpus' split; documents of plain files are spread by a hash of their id."""
    if document.split:
        return document.split
    place = xxhash.xxh3_64_intdigest(b"split:" + document.doc_id.encode()) / 2**64
    return "val" if place < holdout else "test" if place < 2 * holdout else "train"


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """``[bos] ids [eos]`` of each text (n,) uint32; an empty document gives nothing (trap K4)."""
    bos, eos = np.array([tokenizer.bos_id], np.uint32), np.array([tokenizer.eos_id], np.uint32)
    nothing = np.zeros(0, np.uint32)
    encoded = tokenizer.encode_arrays(texts)
    return [np.concatenate((bos, ids, eos)) if text else nothing for text, ids in zip(texts, encoded, strict=True)]


def _encode_all(config: TokensConfig, tokenizer: Tokenizer, building: Path) -> tuple[list[_Row], int]:
    """Append every document's ids to its shard's file, in any order; say where each one lies."""
    dtype = token_dtype(tokenizer.padded_size)
    rows: list[_Row] = []
    ends: dict[tuple[str, str, int], int] = defaultdict(int)
    empty = 0

    def encode(chunk: list[Document]) -> list[np.ndarray]:
        return encode_documents(tokenizer, [document.text for document in chunk])

    with progress("tokens", _text_bytes(config.input) / 1e6, "MB") as bar:
        for chunk, encoded in _in_threads(encode, _chunks(iter_documents(config.input)), config.workers):
            pending: dict[tuple[str, str, int], list[np.ndarray]] = defaultdict(list)
            for document, ids in zip(chunk, encoded, strict=True):
                if not len(ids):
                    empty += 1
                    continue
                split, shard = split_of(document, config.holdout), shard_of(document.doc_id, config.shards)
                key = (split, document.source, shard)
                size = len(document.text.encode("utf-8", "replace"))
                rows.append(
                    _Row(document.doc_id, document.source, document.lang, split, shard, ends[key], len(ids), size)
                )
                ends[key] += len(ids)
                pending[key].append(ids)
                bar.advance(size / 1e6)
            for key, parts in pending.items():
                file = _shard_file(building, *key)
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("ab") as handle:
                    handle.write(pack_ids(np.concatenate(parts), dtype).tobytes())
    return rows, empty


def _text_bytes(path: Path) -> int:
    """About how much text lies at ``path``, for the progress line."""
    if path.is_file():
        return path.stat().st_size
    import pyarrow.parquet as parquet

    kept = [parquet.ParquetFile(file).metadata for file in sorted(path.glob("kept/*.parquet"))]
    if kept:
        return sum(meta.row_group(i).total_byte_size for meta in kept for i in range(meta.num_row_groups))
    return sum(file.stat().st_size for file in path.rglob("*") if file.suffix in (".txt", ".jsonl"))


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _in_threads(work: Callable[[T], R], items: Iterable[T], workers: int | None) -> Iterator[tuple[T, R]]:
    """(item, work(item)) in the order of items, a few tasks ahead; tiktoken releases the GIL, so threads do."""
    count = workers or os.cpu_count() or 1
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(count) as pool:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > 2 * count:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


def _shard_file(root: Path, split: str, source: str, shard: int) -> Path:
    if not source or "/" in source or source.startswith(".") or split not in SPLITS:
        raise HeptaError(f"source {source!r}, split {split!r}: cannot be a folder's name; name the source NAME=PATH")
    return root / split / f"source={source}" / f"shard-{shard:05d}.bin"


def _sort_shards(building: Path, rows: list[_Row], dtype: np.dtype[Any]) -> dict[str, str]:
    """Rewrite each shard with its documents in order of id, write its index; xxh3 of every file."""
    by_shard: dict[tuple[str, str, int], list[_Row]] = defaultdict(list)
    for row in rows:
        by_shard[row.split, row.source, row.shard].append(row)
    files = {}
    for shard, members in sorted(by_shard.items()):
        file = _shard_file(building, *shard)
        ids = np.fromfile(file, dtype=dtype)
        members.sort(key=lambda row: (row.doc_id, row.bytes))
        whole = np.concatenate([ids[row.start : row.start + row.tokens] for row in members])
        ends = np.cumsum([row.tokens for row in members]).astype(IDX_DTYPE)
        for row, end in zip(members, ends, strict=True):
            row.start = int(end) - row.tokens
        write_atomic(file, whole.tobytes())
        write_atomic(file.with_suffix(".idx"), ends.tobytes())
        for written in (file, file.with_suffix(".idx")):
            files[str(written.relative_to(building))] = xxh3_file(written)
    rows.sort(key=lambda row: (SPLITS.index(row.split), row.source, row.shard, row.start))
    return dict(sorted(files.items()))


def _write_documents(path: Path, rows: list[_Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    types = {"shard": pa.int32(), "start": pa.int64(), "tokens": pa.int64(), "bytes": pa.int64()}
    names = ("doc_id", "source", "lang", "split", "shard", "start", "tokens", "bytes")
    columns = {name: pa.array([getattr(row, name) for row in rows], types.get(name, pa.string())) for name in names}
    parquet.write_table(pa.table(columns), path, compression="zstd")


def _summary(
    config: TokensConfig, tokenizer: Tokenizer, rows: list[_Row], empty: int, files: dict[str, str]
) -> TokensResult:
    def counts() -> dict[str, int]:
        return {"documents": 0, "tokens": 0, "bytes": 0}

    splits: dict[str, dict[str, int]] = defaultdict(counts)
    languages: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(counts))
    sources: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(counts))
    for row in rows:
        for place in (splits[row.split], languages[row.split][row.lang], sources[row.split][row.source]):
            place["documents"] += 1
            place["tokens"] += row.tokens
            place["bytes"] += row.bytes
    policy = {"form": "[bos] ids [eos]", "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "empty": "nothing"}
    return TokensResult(
        output=str(config.output),
        dtype=token_dtype(tokenizer.padded_size).str,
        vocab_size=tokenizer.size,
        padded_size=tokenizer.padded_size,
        tokenizer_sha256=tokenizer.sha256,
        document_policy=policy,
        splits=dict(splits),
        by_language={split: dict(sorted(group.items())) for split, group in languages.items()},
        by_source={split: dict(sorted(group.items())) for split, group in sources.items()},
        empty=empty,
        files=files,
    )


def _clear(output: Path) -> None:
    """Drop what an interrupted build left; encoding again costs less than proving what is whole."""
    for part in output.iterdir():
        if part.name == UNFINISHED or not part.name.startswith("."):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
