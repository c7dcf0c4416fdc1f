"""How large a model's weight files are, as they lie and under a general compressor."""

from pathlib import Path

import torch
import zstandard

from hepta.model.load import read_tensors, resolve_model, weight_files

LEVEL = 3  # of zstd, its default


def compressed_bytes(model: Path) -> int:
    """Bytes of the same files under zstd."""
    total = 0
    for file in weight_files(resolve_model(model)):
        stream = zstandard.ZstdCompressor(level=LEVEL).compressobj()
        with file.open("rb") as blob:
            while block := blob.read(1 << 22):
                total += len(stream.compress(block))
        total += len(stream.flush())
    return total


def stored_dtype(model: Path) -> torch.dtype:
    """The dtype a model's weights are stored in."""
    return next(tensor.dtype for _, tensor in read_tensors(model) if tensor.is_floating_point())
