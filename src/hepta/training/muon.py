"""Muon (Jordan 2024): steps of hidden matrices are made orthogonal, all matrices of a shape at once.

    M ← μ M + (1 − μ) G;   U = orthogonal((1 − μ) G + μ M);   W ← (1 − η λ) W − η · 0.2 √max(rows, columns) · U

μ rises from 0.85 to 0.95 in the first 300 steps: directions of the first steps are soon wrong (docs/log.md). 0.2 √max
makes the elements of a step about as large as AdamW's (Liu et al. 2025, arXiv 2502.16982), so one rate and one decay
serve both. Five products of small matrices one after the other for each matrix leave a machine idle; matrices of a
shape share them. torch's own Muon, which takes one matrix at a time, is the reference of the tests.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from hepta.model.whole import placed_like, whole
from hepta.planning.cost import MUON_ROUNDS

MOMENTUM, RISING = (0.85, 0.95), 300.0  # at the first step and after so many
COEFFICIENTS, SMALLEST = (3.4445, -4.775, 2.0315), 1e-7
TOGETHER = 1 << 24  # elements of matrices that are made orthogonal at once


def orthogonal(stack: Tensor) -> Tensor:
    """Matrices with singular values near 1 in place of their own, by Newton and Schulz's iteration in bfloat16.

    Args:
        stack: (N, rows, columns), any float dtype.

    Returns:
        (N, rows, columns) bfloat16; singular values lie between about 0.7 and 1.2, which is close enough.
    """
    tall = stack.shape[1] > stack.shape[2]
    X = (stack.mT if tall else stack).to(torch.bfloat16, memory_format=torch.contiguous_format, copy=True)
    X /= X.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST)  # no singular value above 1
    a, b, c = COEFFICIENTS
    for _ in range(MUON_ROUNDS):
        gram = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X


def momentum_at(step: Tensor) -> Tensor:
    """μ of a step, from 0; never read, so that a rehearsal without values can take it too."""
    return MOMENTUM[0] + (MOMENTUM[1] - MOMENTUM[0]) * (step / RISING).clamp(max=1.0)


class MuonMatrices(torch.optim.Optimizer):
    """The update above for parameters of two dimensions.

    Of matrices that lie in parts over several processes, momentum stays in parts; what is to be made orthogonal is put
    together in every process, each makes all of it orthogonal and keeps its part. So a process sends what FSDP's gather
    of the weights sends once more, in float32, and no process is spared any of the products.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every matrix that has a gradient."""
        assert closure is None, "the loss is known already"
        for group in self.param_groups:
            for matrices in _together([matrix for matrix in group["params"] if matrix.grad is not None]):
                self._update(matrices, group["lr"], group["weight_decay"])

    def _update(self, matrices: list[Tensor], rate: float, decay: float) -> None:
        """Update matrices of one shape."""
        ahead = []
        for matrix in matrices:
            gradient, state = matrix.grad, self.state[matrix]
            assert gradient is not None
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
                state["step"] = torch.zeros(())
            elif "step" not in state:  # saved when momentum stood at its end from the first step on
                state["step"] = torch.full((), float(RISING))
            momentum, buffer = momentum_at(state["step"]), state["momentum_buffer"]
            state["step"] += 1
            new = gradient * (1 - momentum)
            buffer.mul_(momentum).add_(new)
            ahead.append(whole(new.add_(buffer * momentum)))  # Nesterov's
        found = orthogonal(torch.stack(ahead))
        size = 0.2 * math.sqrt(max(found.shape[1:]))
        for matrix, direction in zip(matrices, found, strict=True):
            matrix.mul_(1 - rate * decay)
            matrix.add_(placed_like(matrix, direction.to(matrix.dtype)), alpha=-rate * size)


def _together(matrices: list[Tensor]) -> list[list[Tensor]]:
    """Matrices of equal shape, no more of them than ``TOGETHER`` elements."""
    shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for matrix in matrices:
        shapes[matrix.shape].append(matrix)
    parts = []
    for shape, same in shapes.items():
        count = max(1, TOGETHER // shape.numel())
        parts += [same[start : start + count] for start in range(0, len(same), count)]
    return parts
