"""One optimizer step: accumulate, judge, clip, update."""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hepta.training.clock import Clock
from hepta.training.guard import Guard
from hepta.training.optimizer import clip_gradients, gradient_norm, set_learning_rate
from hepta.training.world import ALONE, World

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class StepResult:
    """What one step measured."""

    loss: float  # mean nats per supervised token
    weight: int  # supervised tokens
    grad_norm: float  # before clipping
    skipped: str | None  # why the weights were not touched
    parts: dict[str, float]  # means of what the loss is made of, where an objective tells
    spoiled: bool = False  # weights were touched all the same (update_in_backward) and must be put back
    losses: list[Tensor] = field(default_factory=list)  # of each micro-batch's tokens (B, T), where an objective tells


def micro_batches(order: Any, step: int, per_step: int, micro: int, world: World = ALONE) -> list[Batch]:
    """The micro-batches of a step: sequences ``step·per_step`` to ``(step + 1)·per_step`` of the run, or
    this process's part of them.

    They cross the edges of epochs without a gap, so no window is ever left partly filled (trap R3).
    """
    first, end = world.part(step, per_step)
    parts = [order.batch(start, min(micro, end - start)) for start in range(first, end, micro)]
    return [{name: torch.from_numpy(value) for name, value in part.items()} for part in parts]


def stream_steps(
    order: Any, first: int, end: int, per_step: int, micro: int, workers: int, world: World = ALONE
) -> Iterator[list[Batch]]:
    """Micro-batches of steps ``first`` to ``end``, prepared ahead by ``workers`` threads."""
    if workers == 0:
        for step in range(first, end):
            yield micro_batches(order, step, per_step, micro, world)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque(
            pool.submit(micro_batches, order, step, per_step, micro, world)
            for step in range(first, min(end, first + workers))
        )
        for step in range(first + workers, end + workers):
            ready = waiting.popleft().result()
            if step < end:
                waiting.append(pool.submit(micro_batches, order, step, per_step, micro, world))
            yield ready


def run_step(
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
    """Accumulate the gradients of all micro-batches, then update once, or not at all.

    The sum of losses is divided by the supervised tokens of the *whole* step, which labels tell before the
    first backward pass; so any cut into micro-batches and processes gives the same gradient (traps R1, R2).
    """
    clock = clock or Clock()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    device = parameters[0].device
    weight = int(world.sum(sum(objective.weight(batch) for batch in batches))[0])
    total = torch.zeros((), device=device)
    parts: dict[str, float] = defaultdict(float)
    losses: list[Tensor] = []
    for batch in batches:
        with clock.phase("forward"):
            part = objective(model, {name: value.to(device) for name, value in batch.items()})
        with clock.phase("backward"):
            (part.total / max(weight, 1)).backward()
        total += part.total.detach()
        for name, value in part.parts.items():
            parts[name] += float(value) / max(weight, 1)
        if part.losses is not None:
            losses.append(part.losses)
    whole, *sums = world.sum(float(total), *parts.values())
    loss = whole / max(weight, 1)
    with clock.phase("optimizer"):
        norm = gradient_norm(parameters)
        reason = guard.verdict(loss, float(norm)) if weight else "no token of this step is supervised"
        if reason is None:  # a branch, never a product with zero: 0 · NaN is NaN (trap R5)
            clip_gradients(parameters, norm, clip_norm)
            set_learning_rate(optimizer, lr)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, weight, float(norm), reason, dict(zip(parts, sums, strict=True)), losses=losses)
