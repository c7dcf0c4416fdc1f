"""Where the memory of a run goes: bytes by class, measured once in each process."""

from typing import Any

import psutil
import torch
from torch import Tensor, nn

from hepta.model.whole import local
from hepta.planning.machine import give_back

MEASURED_AT = 1  # the second step of a process: by then kernels are chosen and blocks compiled


def tensor_bytes(tensors: Any) -> int:
    """Bytes of distinct tensors, or of this process's parts of them."""
    distinct = {id(tensor): local(tensor) for tensor in tensors if isinstance(tensor, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return psutil.Process().memory_info().rss


class MemoryMeter:
    """Watches one step: what it holds in parameters, gradients, optimizer state, activations, and all else.

    Activations are what the first forward pass adds: on a GPU the peak of the allocator, on a CPU resident memory,
    which shows peaks because freed memory is kept (``keep_memory``); what was kept before is given back first.
    Where the C library cannot do that, activations are part of ``other``.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.cuda = next(model.parameters()).device.type == "cuda"
        self.exact = self.cuda or give_back()
        self.before = self._used()
        self.activations: int | None = None
        self.gradients = self.peak = 0
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def _used(self) -> int:
        return torch.cuda.memory_allocated() if self.cuda else resident_bytes()

    def leave(self, phase: str) -> None:
        """A phase has ended; see ``Clock.watch``."""
        used = torch.cuda.max_memory_allocated() if self.cuda else resident_bytes()
        self.peak = max(self.peak, used)
        if phase == "forward" and self.activations is None:
            self.activations = max(0, used - self.before)
        if phase == "backward":
            held = tensor_bytes(parameter.grad for parameter in self.model.parameters())
            self.gradients = max(self.gradients, held)

    def row(self) -> dict[str, int]:
        """Bytes by class; together they are the most that the step held."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        found = {
            "parameters": tensor_bytes([*self.model.parameters(), *self.model.buffers()]),
            "gradients": self.gradients, "optimizer": tensor_bytes(states),
        }  # fmt: skip
        if self.exact:
            found["activations"] = self.activations or 0
        return {**found, "other": max(0, self.peak - sum(found.values()))}
