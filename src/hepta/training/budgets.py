"""How long a run is: its budgets become a number of steps, once, before the first."""

import time
from dataclasses import replace

from hepta.console import warn
from hepta.training.find import find_rate
from hepta.training.guard import Guard
from hepta.training.resolve import write_environment, write_resolved
from hepta.training.run import Run
from hepta.training.schedule import total_steps
from hepta.training.step import micro_batches


def settle_steps(run: Run) -> int:
    """Turn the budgets into a number of steps, once; the same budgets later give the same number."""
    config = run.config
    budget = {key: getattr(config, key) for key in config.fields_of_kind("budget")}
    if run.resolved.total_steps and run.resolved.budget == budget:
        return run.resolved.total_steps
    if config.lr == "find" and run.checkpoint is None and not run.resolved.total_steps:
        run.resolved = replace(run.resolved, lr=find_rate(run))
    seconds, affordable = run.resolved.step_seconds, None
    if config.minutes is not None:
        seconds = seconds or seconds_per_step(run)
        spent = time.time() - run.stage.started if run.checkpoint is None else 0.0
        left = (config.minutes * 60 - spent) * 0.95  # the rest: evaluations and saves
        affordable = max(1, int(left / seconds))
        affordable = run.job.begun_at + run.world.lead(lambda: affordable)
    per_step = config.sequences_per_step
    limits = (config.max_steps, config.tokens, config.epochs, affordable)
    total = total_steps(run.tokens_per_step, per_step, run.job.train.sequences_per_epoch, *limits)
    if total < run.state.step:
        warn(f"the budget is {total} steps and {run.state.step} are done: nothing to add")
    total = max(total, run.state.step)
    run.resolved = replace(run.resolved, total_steps=total, step_seconds=seconds, budget=budget)
    if run.world.main:
        write_resolved(run.path, run.job.verb, config, run.resolved)
        write_environment(run.path)
    start = {"total_steps": total, "sequences_per_step": per_step, "data": run.job.train.digest}
    run.log.event({"step": run.state.step, "event": "start", **start})
    return total


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
