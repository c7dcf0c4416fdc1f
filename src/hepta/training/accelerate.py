"""Compilation, applied to a model from outside: its file shows mathematics only."""

import torch

from hepta.model.decoder import Decoder
from hepta.objectives.causal import Causal, fusible_softmax_gradient


def compile_blocks(model: Decoder) -> None:
    """Compile each block: all have the same shapes, so they share one compiled graph."""
    for block in model.model.layers:
        block.compile(dynamic=False)


def make_objective(z_loss: float, compiled: bool) -> Causal:
    """The objective, its softmax compiled to one visit to memory where ``compiled``."""
    return Causal(z_loss, torch.compile(fusible_softmax_gradient, dynamic=False)) if compiled else Causal(z_loss)
