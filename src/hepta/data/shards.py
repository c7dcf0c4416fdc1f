"""The token shards on disk: their layout, one shard's files, and a source read as one long stream.

``DIR/{train,val,test}/source=<s>/shard-*.bin`` holds flat little-endian ids, ``shard-*.idx`` the uint64 ends
of its documents. Boundaries come from the index alone; no id is ever searched for (trap K6).
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hepta.config import HeptaError
from hepta.stage import read_manifest

SPLITS = ("train", "val", "test")
IDX_DTYPE = np.dtype("<u8")
DOCS = "docs.parquet"
TOKENIZER = "tokenizer"  # the tokenizer's files are copied here, so shards explain themselves


def token_dtype(padded_vocabulary: int) -> np.dtype[Any]:
    """uint16 where every id fits, else uint32; little-endian (trap K5)."""
    return np.dtype("<u2") if padded_vocabulary <= 65_536 else np.dtype("<u4")


def pack_ids(ids: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Ids as ``dtype``; an id that does not fit is an error, never another id.

    Raises:
        ValueError: an id beyond the dtype.
    """
    if len(ids) and (int(ids.max()) > np.iinfo(dtype).max or int(ids.min()) < 0):
        raise ValueError(f"token id {int(ids.max())} does not fit {dtype}")
    return ids.astype(dtype)


def read_tokens_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a finished tokens directory; its counts and policy are under ``facts``.

    Raises:
        HeptaError: there is none.
    """
    manifest = read_manifest(directory) if directory.is_dir() else None
    if manifest is None or manifest.get("verb") != "tokens":
        raise HeptaError(f"{directory}: no token shards there; make them with hepta tokens build")
    return manifest


class Stream:
    """All documents of one source and split, end to end, as they lie in its shards.

    Attributes:
        name: the source.
        ends: document ends (D,) int64, counted from the stream's start.
        total: tokens.
    """

    def __init__(self, directory: Path, name: str, dtype: np.dtype[Any]) -> None:
        self.directory, self.name = directory, name
        files = sorted(directory.glob("shard-*.bin"))
        self._shards = [_map(file, dtype) for file in files]
        ends = [
            _read_ends(file.with_suffix(".idx"), len(shard)) for file, shard in zip(files, self._shards, strict=True)
        ]
        self._starts = np.concatenate([[0], np.cumsum([len(shard) for shard in self._shards])]).astype(np.int64)
        self.ends = np.concatenate(
            [end + start for end, start in zip(ends, self._starts, strict=False)] or [np.zeros(0, np.int64)]
        )
        self.total = int(self._starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids [start, stop) of the stream as int64; shorter where the stream ends."""
        stop = min(stop, self.total)
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts: list[np.ndarray] = []
        while start < stop:
            base = int(self._starts[shard])
            end = min(stop, int(self._starts[shard + 1]))
            parts.append(self._shards[shard][start - base : end - base])
            start, shard = end, shard + 1
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    @cached_property
    def documents(self) -> tuple[list[str], list[str]]:
        """doc_id and language of each document, in stream order."""
        import pyarrow.parquet as parquet

        split = self.directory.parent.name
        columns = ["doc_id", "lang", "shard", "start"]
        table = parquet.read_table(
            self.directory.parent.parent / DOCS,
            columns=columns,
            filters=[("split", "=", split), ("source", "=", self.name)],
        )
        table = table.sort_by([("shard", "ascending"), ("start", "ascending")])
        return table.column("doc_id").to_pylist(), table.column("lang").to_pylist()


def open_streams(directory: Path, split: str, sources: Sequence[str] | None = None) -> list[Stream]:
    """The streams of a split, by name; sources without tokens are left out.

    Raises:
        HeptaError: no shards, an unknown split, shards that do not fit the manifest.
    """
    facts = read_tokens_manifest(directory)["facts"]
    if split not in SPLITS:
        raise HeptaError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    dtype = np.dtype(facts["dtype"])
    folders = sorted((directory / split).glob("source=*"))
    streams = [Stream(folder, folder.name.removeprefix("source="), dtype) for folder in folders]
    if sources is not None:
        streams = [stream for stream in streams if stream.name in sources]
    wanted = facts["splits"].get(split, {}).get("tokens", 0)
    if sources is None and sum(stream.total for stream in streams) != wanted:
        found = sum(stream.total for stream in streams)
        raise HeptaError(
            f"{directory / split}: {found} tokens there, the manifest says {wanted}; build it again with --fresh"
        )
    return [stream for stream in streams if stream.total]


def _map(file: Path, dtype: np.dtype[Any]) -> np.ndarray:
    size = file.stat().st_size
    if size % dtype.itemsize:
        raise HeptaError(f"{file}: {size} bytes are no whole number of {dtype} ids; build it again with --fresh")
    return np.memmap(file, dtype=dtype, mode="r") if size else np.zeros(0, dtype)


def _read_ends(file: Path, tokens: int) -> np.ndarray:
    if not file.is_file():
        raise HeptaError(f"{file}: is missing; build the shards again with --fresh")
    ends = np.fromfile(file, dtype=IDX_DTYPE).astype(np.int64)
    if tokens != (int(ends[-1]) if len(ends) else 0):
        raise HeptaError(
            f"{file}: its last document ends at {ends[-1:]}, its shard at {tokens}; build it again with --fresh"
        )
    return ends
