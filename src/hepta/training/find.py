"""``lr=find``: rates that rise from step to step on weights thrown away after, and what they say about the best one.

The range test of Smith (2017, arXiv 1506.01186). Each of up to 100 steps has a rate 9.7 % above the last's, from a
hundredth of the automatic rate to a hundred times it. The loss, smoothed, falls, is lowest, and rises. A tenth of the
rate at which it was lowest is taken: there it falls still, and a long run stands less than a few steps do. The test is
a function of the run's config and data, so it gives the same rate again.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hepta.console import say, warn
from hepta.stage import write_atomic, write_json
from hepta.training.guard import Guard
from hepta.training.step import StepResult, micro_batches

STEPS, REACH = 100, 100.0  # rates tried, from automatic / REACH to automatic · REACH
SMOOTHING = 0.9  # of the loss, an exponential average
RISEN = 1.5  # times the lowest loss: the test ends
SHARE = 10.0  # the suggestion lies so far below the rate of the lowest loss
PICTURE, TABLE = "lr-find.png", "lr-find.json"


@dataclass(frozen=True)
class RangeTest:
    """What a range test saw."""

    automatic: float
    suggestion: float | None  # None: the loss rose from the start
    rates: list[float]
    losses: list[float]  # nats of each step
    smoothed: list[float]


def range_test(take: Callable[[int, float], StepResult], automatic: float) -> RangeTest:
    """Take steps at rising rates until the loss has risen.

    Args:
        take: ``take(n, rate)`` takes the n-th step at that rate.
        automatic: the rate in the middle of those tried.
    """
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    for n in range(STEPS):
        rate = automatic * REACH ** (2 * n / (STEPS - 1) - 1)
        result = take(n, rate)
        if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * result.loss
        rates.append(rate)
        losses.append(result.loss)
        smoothed.append(average / (1 - SMOOTHING ** (n + 1)))
        if smoothed[-1] > RISEN * min(smoothed):
            break
    lowest = min(range(len(rates)), key=smoothed.__getitem__) if rates else 0
    suggestion = rates[lowest] / SHARE if lowest > 0 else None
    return RangeTest(automatic, suggestion, rates, losses, smoothed)


def find_rate(run: Any) -> float:
    """The rate to train with: tested on the run's first sequences, written beside it, its weights put back.

    Args:
        run: a ``training.run.Run`` before its first step; ``resolved.lr`` is the automatic rate.
    """
    config, job, automatic = run.config, run.job, run.resolved.lr
    trained = [parameter for parameter in job.model.parameters() if parameter.requires_grad]
    kept = [parameter.detach().clone() for parameter in trained]
    optimizer, guard = run.make_optimizer(), Guard(math.inf)

    def take(n: int, rate: float) -> StepResult:
        torch.manual_seed(config.seed + n)
        batches = micro_batches(job.train, n, config.sequences_per_step, run.resolved.micro_batch, run.world)
        return run.take_step(  # as the run will: updates in the backward pass are clipped by the step before
            job.model, optimizer, run.objective, batches, rate, config.clip_norm, guard, world=run.world
        )

    found = range_test(take, automatic)
    with torch.no_grad():
        for parameter, value in zip(trained, kept, strict=True):
            parameter.copy_(value)
    if (tally := getattr(job.objective, "tally", None)) is not None:
        tally.take()  # rows met in the test are not the run's
    run.world.lead(lambda: write(found, run.path))
    if found.suggestion is None:
        warn(f"lr=find: the loss rose from the first step on, so the automatic rate stays: {automatic:.3g}")
        return automatic
    tried = f"{len(found.rates)} rates from {found.rates[0]:.2g} to {found.rates[-1]:.2g}"
    say(f"lr=find: {found.suggestion:.3g} after {tried} (automatic: {automatic:.3g}); see {run.path / PICTURE}")
    return found.suggestion


def write(found: RangeTest, run: Path) -> None:
    """The test as JSON, and loss by rate as a PNG: every step's, smoothed, and the suggestion."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    write_json(run / TABLE, asdict(found))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.plot(found.rates, found.losses, color="0.75", linewidth=1, label="each step")
    axes.plot(found.rates, found.smoothed, color="tab:blue", label="smoothed")
    for rate, name, style in ((found.suggestion, "suggestion", "-"), (found.automatic, "automatic", ":")):
        if rate is not None:
            axes.axvline(rate, color="tab:red", linestyle=style, linewidth=1, label=f"{name} {rate:.2g}")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss, nats per token")
    axes.legend(frameon=False)
    FigureCanvasAgg(figure)
    blob = io.BytesIO()
    figure.savefig(blob, format="png", dpi=150)
    write_atomic(run / PICTURE, blob.getvalue())
