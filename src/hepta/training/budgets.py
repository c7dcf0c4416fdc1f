"""How long a run is: its budgets become a number of steps before the first one.

``minutes`` alone is counted again. A few steps that are tried and taken back give a first count, which decides how long
warm-up is; where that ends, and then whenever half of what was left is done, what the steps since took gives a new
one. Each is written to the run, so that a run that was killed takes its steps at the very same rates.
"""

import time
from dataclasses import replace
from typing import Any

from hepta.console import warn
from hepta.training.find import find_rate
from hepta.training.guard import Guard
from hepta.training.metrics import METRICS, read_rows
from hepta.training.resolve import Resolved, write_environment, write_resolved
from hepta.training.run import Run
from hepta.training.schedule import total_steps, warmup_steps
from hepta.training.step import micro_batches

FOR_SAVES = 0.01  # of ``minutes``
SURE = 4  # steps whose pace says more than that of the few that were tried


def settle_steps(run: Run) -> None:
    """Turn the budgets into a number of steps, unless that is done; the same budgets later give the same number."""
    config, budget = run.config, _budget(run)
    if run.resolved.total_steps and run.resolved.budget == budget:
        return
    if config.lr == "find" and run.checkpoint is None and not run.resolved.total_steps:
        run.resolved = replace(run.resolved, lr=find_rate(run))
    seconds, warmup = run.resolved.step_seconds, run.resolved.warmup
    if config.minutes is not None:
        seconds = seconds or seconds_per_step(run)
    total = max(_count(run, seconds), run.state.step)
    if config.minutes is not None and warmup is None:
        warmup = warmup_steps(config.warmup, total)
    if seconds is None and run.forecast.unsure(total - run.state.step):
        seconds = seconds_per_step(run)
    counts = [] if config.minutes is None else [[run.state.step, total]]
    run.resolved = replace(run.resolved, step_seconds=seconds, warmup=warmup, budget=budget, counts=counts)
    start = {"sequences_per_step": config.sequences_per_step, "data": run.job.train.digest}
    _settle(run, total, "start", **start)
    if run.world.main:
        write_environment(run.path)


def count_again(run: Run) -> None:
    """Count the steps of ``minutes`` anew, if this is the moment."""
    done, resolved = run.state.step, run.resolved
    if not resolved.counts or done != _next_count(resolved):
        return
    since = resolved.counts[-1][0] if len(resolved.counts) > 1 else done // 2
    total = max(_count(run, run.world.lead(lambda: _pace(run, since))), done)
    run.resolved = replace(resolved, counts=[*resolved.counts, [done, total]])
    _settle(run, total, "count")


def _next_count(resolved: Resolved) -> int | None:
    """The step after which steps are counted again: that of warm-up's end, and then half way to the end."""
    start, total = resolved.counts[-1]
    rising, half = (resolved.warmup or 0) - start, (total - start) // 2
    steps = rising if len(resolved.counts) == 1 and rising >= SURE else half
    return start + steps if steps >= SURE else None


def _pace(run: Run, since: int) -> float:
    """Mean seconds of the steps after ``since``."""
    ends = {row["step"]: row["seconds"] for row in read_rows(run.path / METRICS) if "phases" in row}
    return (run.state.seconds - ends.get(since, 0.0)) / (run.state.step - since)


def _budget(run: Run) -> dict[str, float | None]:
    return {key: getattr(run.config, key) for key in run.config.fields_of_kind("budget")}


def _count(run: Run, seconds: float | None) -> int:
    """Steps of the whole run by all its budgets, at ``seconds`` a step."""
    config, affordable = run.config, None
    if config.minutes is not None:
        assert seconds is not None
        affordable = run.world.lead(lambda: _affordable(run, seconds))
    limits = (config.max_steps, config.tokens, config.epochs, affordable)
    total = total_steps(run.tokens_per_step, config.sequences_per_step, run.job.train.sequences_per_epoch, *limits)
    if total < run.state.step:
        warn(f"the budget is {total} steps and {run.state.step} are done: nothing to add")
    return total


def _affordable(run: Run, seconds: float) -> int:
    """Steps that end when ``minutes`` do, with the evaluations between them; the run's last one comes after."""
    done, fresh = run.state.step, run.checkpoint is None
    spent = time.time() - run.stage.started if fresh else _trained(run)
    left = (run.config.minutes or 0.0) * 60 * (1 - FOR_SAVES) - spent
    every = run.evaluated_every
    if every is None:  # nine, whatever the number of steps
        total = run.resolved.total_steps
        waiting = 9 * (1 - done / total) if total else 9
        return done + max(0, int((left - waiting * run.evaluation_seconds) / seconds))
    return done + max(0, int(left / (seconds + run.evaluation_seconds / every)))


def _trained(run: Run) -> float:
    """Seconds of training so far, without those of the run that this one branched from."""
    rows = (row for row in read_rows(run.path / METRICS) if "phases" in row and row["step"] <= run.job.begun_at)
    begun = [row["seconds"] for row in rows]
    return run.state.seconds - (begun[-1] if begun else 0.0)


def _settle(run: Run, total: int, event: str, **more: Any) -> None:
    run.resolved = replace(run.resolved, total_steps=total)
    if run.world.main:
        write_resolved(run.path, run.job.verb, run.config, run.resolved)
    run.log.event({"step": run.state.step, "event": event, "total_steps": total, **more})


def seconds_per_step(run: Run) -> float:
    """Seconds of one step: a few steps with learning rate 0 and an optimizer thrown away after."""
    optimizer, guard = run.make_optimizer(), Guard(float("inf"))
    per_step, micro = run.config.sequences_per_step, run.resolved.micro_batch
    times: list[float] = []
    while len(times) < 3 or (len(times) < 8 and sum(times[1:]) < 5):
        began = time.perf_counter()
        batches = micro_batches(run.job.train, len(times), per_step, micro, run.world)
        clip, world = run.config.clip_norm, run.world
        run.take_step(run.job.model, optimizer, run.objective, batches, 0.0, clip, guard, world=world)
        times.append(run.world.lead(lambda began=began: time.perf_counter() - began))
    return sorted(times[1:])[(len(times) - 1) // 2]  # the first one compiles
