"""How long a run is: its budgets become a number of steps before the first one.

``minutes`` alone is looked at twice. A few steps that are tried and taken back give a first count, which decides how
long warm-up is; where that ends, what it took gives the count that stays. No rate jumps there: it stands at its peak.
"""

import time
from dataclasses import replace

from hepta.console import say, warn
from hepta.training.find import find_rate
from hepta.training.guard import Guard
from hepta.training.metrics import METRICS, read_rows
from hepta.training.resolve import write_environment, write_resolved
from hepta.training.run import Run
from hepta.training.schedule import total_steps, warmup_steps
from hepta.training.step import micro_batches

FOR_SAVES = 0.01  # of ``minutes``
SURE = 4  # steps of warm-up whose second half says more than the few that were tried


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
    run.resolved = replace(run.resolved, step_seconds=seconds, warmup=warmup, budget=budget)
    _settle(run, total)
    if run.world.main:
        write_environment(run.path)


def settle_again(run: Run) -> None:
    """Count the steps of ``minutes`` anew by what the second half of warm-up took, where it has just ended."""
    done, resolved = run.state.step, run.resolved
    if run.config.minutes is None or resolved.settled or done != resolved.warmup or done < SURE:
        return

    def measure() -> float:
        ends = {row["step"]: row["seconds"] for row in read_rows(run.path / METRICS) if "phases" in row}
        return (ends[done] - ends[done - done // 2]) / (done // 2)

    run.resolved = replace(resolved, settled=True)
    before, total = resolved.total_steps, max(_count(run, run.world.lead(measure)), done)
    _settle(run, total)
    if total != before:
        say(f"step {done}: {total:,} steps in {run.config.minutes:g} minutes, by what warm-up took (was {before:,})")


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
    assert run.config.minutes is not None
    fresh = run.checkpoint is None
    left = run.config.minutes * 60 * (1 - FOR_SAVES) - (time.time() - run.stage.started if fresh else 0.0)
    before = run.state.step if fresh else run.job.begun_at
    every = run.evaluated_every
    if every is None:  # nine, whatever the number of steps
        return before + max(1, int((left - 9 * run.evaluation_seconds) / seconds))
    return before + max(1, int(left / (seconds + run.evaluation_seconds / every)))


def _settle(run: Run, total: int) -> None:
    run.resolved = replace(run.resolved, total_steps=total)
    if run.world.main:
        write_resolved(run.path, run.job.verb, run.config, run.resolved)
    start = {"total_steps": total, "sequences_per_step": run.config.sequences_per_step, "data": run.job.train.digest}
    run.log.event({"step": run.state.step, "event": "start", **start})


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
