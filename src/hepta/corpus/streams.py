"""Bytes of plain, .gz and .zst files as blocks and lines; a cut or damaged stream is an error, never an early end."""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

BLOCK = 1 << 20
RECORD_LIMIT = 64 << 20  # bytes; a longer line is no record


class DamagedFile(Exception):
    """The rest of a file cannot be read; the message says why."""


def blocks(path: Path, start: int = 0) -> Iterator[bytes]:
    """Decompressed blocks of a file.

    Args:
        path: read as gzip or zstd by its suffix.
        start: first byte, for plain files.

    Raises:
        DamagedFile: the compressed stream is cut off or corrupt.
    """
    suffix = path.suffix.lower()
    raw = _raw_blocks(path, start)
    if suffix == ".gz":
        yield from _unpack(raw, lambda: zlib.decompressobj(31), zlib.error, "gzip")
    elif suffix == ".zst":
        unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        yield from _unpack(raw, unpacker.decompressobj, zstandard.ZstdError, "zstd")
    else:
        yield from raw


def _raw_blocks(path: Path, start: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(BLOCK):
            yield block


def _unpack(raw: Iterator[bytes], new: Callable[[], Any], error: type[Exception], name: str) -> Iterator[bytes]:
    """Decompress a chain of members; ``eof`` of the last one must be reached."""
    member: Any = None
    for block in raw:
        while block := block if member else block.lstrip(b"\0"):  # zeros may pad the end of an archive
            member = member or new()
            try:
                plain = member.decompress(block)
            except error as reason:
                raise DamagedFile(f"damaged {name} data ({reason})") from None
            if plain:
                yield plain
            block = member.unused_data if member.eof else b""
            if member.eof:
                member = None
    if member is not None:
        raise DamagedFile(f"truncated {name} data: the file ends in the middle of a stream")


def lines(path: Path, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes | None]]:
    """Lines that begin in [start, end) with their offsets in the decompressed file, without the newline.

    A line longer than ``RECORD_LIMIT`` is yielded as None and passed over.
    """
    skip = start > 0  # the line that reaches into this range belongs to the one before
    offset = start - 1 if skip else 0
    pending = bytearray()
    overlong = False
    for block in blocks(path, offset):
        begin = 0
        while (newline := block.find(b"\n", begin)) >= 0:
            line = bytes(pending) + block[begin:newline] if pending else block[begin:newline]
            length = len(line) + 1
            if skip:
                skip = False
            elif end is not None and offset >= end:
                return
            else:
                yield offset, None if overlong or length > RECORD_LIMIT else line
            offset += length
            begin = newline + 1
            pending.clear()
            overlong = False
        pending += block[begin:]
        if len(pending) > RECORD_LIMIT:  # keep counting bytes, not holding them
            overlong = True
            offset += len(pending)
            pending.clear()
    if (pending or overlong) and not skip and (end is None or offset < end):
        yield offset, None if overlong else bytes(pending)


def whole(path: Path, limit: int) -> bytes:
    """All bytes of a file.

    Raises:
        DamagedFile: cut off, corrupt, or more than ``limit`` bytes.
    """
    parts, size = [], 0
    for block in blocks(path):
        parts.append(block)
        size += len(block)
        if size > limit:
            raise DamagedFile(f"more than {limit:,} bytes")
    return b"".join(parts)
