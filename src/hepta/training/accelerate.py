"""Compilation, applied to a model from outside: its file shows mathematics only."""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hepta.objectives.causal import CHUNK, IGNORE, Kernel, fusible_softmax_gradient
from hepta.objectives.distill import Distill


def compile_blocks(model: Any) -> None:
    """Compile each block: all have the same shapes, so they share one compiled graph."""
    for block in model.blocks:
        if hasattr(block, "unshard"):  # what gathers its weights stays outside the graph
            block.forward = torch.compile(block.forward, dynamic=False)
        else:
            block.compile(dynamic=False)


def compile_objective(objective: Any) -> Any:
    """The same objective with its kernel compiled, so that its softmax visits memory twice only.

    Distillation keeps its kernel, which has three softmaxes and a scatter; its teacher's blocks are compiled.
    """
    if isinstance(objective, Distill):
        compile_blocks(objective.teacher)
        return objective
    has_kernel = any(field.name == "kernel" for field in dataclasses.fields(objective))
    return dataclasses.replace(objective, kernel=compile_kernel()) if has_kernel else objective


def compile_kernel() -> Kernel:
    """``fusible_softmax_gradient`` compiled for chunks of exactly ``CHUNK`` rows; shorter ones are filled up.

    One shape means one compilation, and the same bits whatever was compiled before: a masked batch has
    another number of rows each time, and graphs for any number would depend on the history of the process.
    """
    compiled = torch.compile(fusible_softmax_gradient, dynamic=False)

    def kernel(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
        rows = logits.shape[0]
        if rows < CHUNK:
            logits = F.pad(logits, (0, 0, 0, CHUNK - rows))
            targets = F.pad(targets, (0, CHUNK - rows), value=IGNORE)
        loss, gradient = compiled(logits, targets, z_loss)
        return loss[:rows], gradient[:rows]

    return kernel
