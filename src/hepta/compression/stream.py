"""Weights written while they are made, so that a model larger than memory passes through."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from hepta.model.load import INDEX, SHARD_BYTES, WEIGHTS, write_safetensors
from hepta.stage import write_json


def write_stream(tensors: Iterable[tuple[str, Tensor]], directory: Path, shard_bytes: int = SHARD_BYTES // 5) -> None:
    """Write tensors as they come: ``model.safetensors``, or shards of about ``shard_bytes`` with an index.

    Args:
        tensors: names and values; no more than one shard of them is held.
        directory: there already, without weights.
        shard_bytes: a shard is written as soon as it is as large.
    """
    parts: list[tuple[Path, list[str]]] = []
    held: dict[str, Tensor] = {}
    total = 0

    def write() -> None:
        parts.append((directory / f"part-{len(parts)}.safetensors", list(held)))
        write_safetensors(held, parts[-1][0])
        held.clear()

    for name, tensor in tensors:
        held[name] = tensor
        total += tensor.nbytes
        if sum(one.nbytes for one in held.values()) >= shard_bytes:
            write()
    if held:
        write()
    if len(parts) == 1:
        parts[0][0].rename(directory / WEIGHTS)
        return
    where: dict[str, str] = {}
    for number, (file, names) in enumerate(parts, 1):
        final = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        file.rename(directory / final)
        where |= dict.fromkeys(names, final)
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
