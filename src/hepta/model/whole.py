"""Tensors that may lie in parts over several processes: whole again, filled, and written to disk one at a time."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

NAMES = {  # as safetensors calls them
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.bool: "BOOL", torch.uint64: "U64",
    torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
}  # fmt: skip


def whole(tensor: Any) -> Tensor:
    """A tensor itself, or put together from its parts: then every process must ask for it."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def local(tensor: Any) -> Tensor:
    """A tensor itself, or the part of it that lies in this process."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def by_mesh(tensors: Iterable[Any]) -> list[list[Any]]:
    """Tensors grouped by the processes that they lie over, which is how torch takes them together; one group, as a
    rule."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(getattr(tensor, "device_mesh", None), []).append(tensor)
    return list(groups.values())


@torch.no_grad()
def fill(target: Any, value: Tensor) -> None:
    """Copy a whole tensor into ``target``, of which this process may hold a part."""
    target.copy_(placed_like(target, value))


def placed_like(target: Any, value: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut as ``target`` is; itself where that is whole or has another shape."""
    if not hasattr(target, "full_tensor") or value.shape != target.shape:
        return value.to(target.device)
    from torch.distributed.tensor import DTensor, Replicate

    copies = [Replicate()] * target.device_mesh.ndim
    held: Any = DTensor.from_local(value.to(target.device), target.device_mesh, copies, run_check=False)
    return held.redistribute(placements=target.placements)


def follows() -> bool:
    """Whether another process writes for this one."""
    return dist.is_available() and dist.is_initialized() and dist.get_rank() > 0


def take_part(tensors: Mapping[str, Tensor]) -> None:
    """What ``stream_safetensors`` gathers in the process that writes, gathered beside it and dropped."""
    for name in _order(tensors):
        whole(tensors[name].detach())


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted(tensors, key=lambda name: -tensors[name].element_size())  # so that each begins where it is aligned


def stream_safetensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file tensor by tensor: one of them at a time is whole and on the CPU.

    Where tensors lie in parts, every process must call this with the same names in the same order; see ``take_part``.
    """
    order = _order(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + math.prod(tensor.shape) * tensor.element_size()
        shape = list(tensor.shape)
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            value = whole(tensors[name].detach()).to("cpu").contiguous()
            out.write(memoryview(value.view(-1).view(torch.uint8).numpy()))  # pyright: ignore[reportArgumentType]
