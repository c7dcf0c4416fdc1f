"""The update inside the backward pass: each gradient is used and freed as soon as it is ready.

Gradients are never all alive, so 7B weights of two bytes train where there is no room for gradients. The price: the
norm of all gradients is known only when all have been used. So a step is clipped by the norm of the step before, the
loss is judged before anything goes back, a gradient that is not finite touches nothing, and if there was one, or the
norm turns out to be a spike, the run goes back to its last seal and on without this step's sequences.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hepta.training.clock import Clock
from hepta.training.guard import Guard
from hepta.training.optimizer import set_learning_rate
from hepta.training.rounding import norm_of
from hepta.training.step import Batch, StepResult
from hepta.training.world import ALONE, World


class BackwardUpdates:
    """Hooks on every trained parameter of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.optimizer: torch.optim.Optimizer | None = None  # set while a step goes back
        self.scale, self.squares, self.refused = 1.0, 0.0, 0
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._use)

    def _use(self, parameter: Tensor) -> None:
        if self.optimizer is None or parameter.grad is None:
            return
        norm = norm_of(parameter.grad)
        if math.isfinite(norm):
            self.squares += norm * norm
            if self.scale < 1.0:
                parameter.grad.mul_(self.scale)
            self.optimizer.step()  # of all parameters this one alone has a gradient
        else:
            self.refused += 1
        parameter.grad = None

    def run_step(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Any,
        batches: Sequence[Batch],
        lr: float,
        clip_norm: float,
        guard: Guard,
        clock: Clock | None = None,
        world: World = ALONE,
    ) -> StepResult:
        """One step, as ``hepta.training.step.run_step``; where ``spoiled``, weights have moved and must be put back."""
        assert world.size == 1, "refused when the run begins"
        clock, (batch,) = clock or Clock(), batches
        device = optimizer.param_groups[0]["params"][0].device
        weight = objective.weight(batch)
        with clock.phase("forward"):
            part = objective(model, {name: value.to(device) for name, value in batch.items()})
        parts = defaultdict(float, {name: float(value) / max(weight, 1) for name, value in part.parts.items()})
        loss = float(part.total.detach()) / max(weight, 1)
        losses = [] if part.losses is None else [part.losses]
        if not weight:
            return StepResult(loss, 0, 0.0, "no token of this step is supervised", dict(parts), losses=losses)
        if not math.isfinite(loss):
            return StepResult(loss, weight, math.nan, guard.verdict(loss, math.nan), dict(parts), losses=losses)
        last = guard.norms[-1] if guard.norms else clip_norm
        self.scale, self.squares, self.refused = min(1.0, clip_norm / max(last, 1e-12)), 0.0, 0
        set_learning_rate(optimizer, lr)
        self.optimizer = optimizer
        try:
            with clock.phase("backward"):
                (part.total / weight).backward()
        finally:
            self.optimizer = None
        norm = math.inf if self.refused else math.sqrt(self.squares)
        reason = guard.verdict(loss, norm)
        if self.refused:
            reason = f"gradients of {self.refused} tensors are not finite"
        return StepResult(loss, weight, norm, reason, dict(parts), reason is not None, losses)
