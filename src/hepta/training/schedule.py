"""Learning rate by step, and how budgets become a number of steps."""

import math


def warmup_steps(warmup: float, total: int) -> int:
    """Steps of warm-up: a share of the run below 1, else a count; at least 1, at most the run."""
    steps = warmup * total if warmup < 1 else warmup
    return min(max(1, round(steps)), total)


def learning_rate(step: int, total: int, peak: float, schedule: str, warmup: float, decay: float = 0.2) -> float:
    """Learning rate of one optimizer step.

    Args:
        step: index of the step, from 0; accumulation and packing do not move it.
        total: steps of the run.
        peak: the highest rate.
        schedule: ``cosine``, ``wsd``, ``linear`` or ``constant``.
        warmup: see ``warmup_steps``; the rate rises linearly and reaches ``peak`` at its last step.
        decay: share of the run in which ``wsd`` falls.
    """
    rising = warmup_steps(warmup, total)
    if step < rising:
        return peak * (step + 1) / rising
    progress = min((step - rising) / max(1, total - rising), 1.0)  # 0 at the first step after warm-up
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return peak * (1 - progress)
    if schedule == "wsd":  # warm-up, stable, decay
        falling = max(1, round(decay * total))
        return peak * min(1.0, (total - step) / falling)
    return peak


def total_steps(
    tokens_per_step: float,
    sequences_per_step: int,
    sequences_per_epoch: int,
    max_steps: int | None = None,
    tokens: int | None = None,
    epochs: float | None = None,
    affordable: int | None = None,
) -> int:
    """Steps until the first budget is reached; one epoch where no budget is given.

    Args:
        tokens_per_step: real (not padded) tokens of a step, on average.
        sequences_per_step: sequences of a step.
        sequences_per_epoch: sequences of one pass over the data.
        max_steps: budget in steps.
        tokens: budget in tokens.
        epochs: budget in passes.
        affordable: steps that the ``minutes`` budget buys.
    """
    limits = [limit for limit in (max_steps, affordable) if limit is not None]
    if tokens is not None:
        limits.append(math.ceil(tokens / max(tokens_per_step, 1e-9)))
    if epochs is not None or not limits:
        limits.append(math.ceil((epochs or 1) * sequences_per_epoch / sequences_per_step))
    return max(1, min(limits))
