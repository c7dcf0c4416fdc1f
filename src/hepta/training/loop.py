"""The training loop: one function for pretraining and instruction tuning.

Everything that decides the result is a pure function of (config, data, step): the sequences of a step, its
learning rate, its dropout. So a run that is killed at any moment goes on bit for bit from its last checkpoint.
"""

import time

import torch

from hepta.console import Progress, say
from hepta.stage import Stage, digest_json, go_on_hint
from hepta.training.budgets import count_again, settle_steps
from hepta.training.checkpoint import weights_digest
from hepta.training.config import LoopConfig
from hepta.training.job import Job, Outcome
from hepta.training.metrics import METRICS, read_rows
from hepta.training.rollback import follow, roll_back, settle_saves
from hepta.training.run import Run
from hepta.training.schedule import learning_rate
from hepta.training.stop import Stop, stop_signals

SAVE_SECONDS = 120.0  # between checkpoints when checkpoint.every is not given
LAST_STEPS = 20  # whose mean loss is the run's training loss


def step_seed(seed: int, step: int, reader: int = 0) -> int:
    """Seed of a step's dropout: a function of (seed, step), so there is no generator state to save; processes that
    read other sequences drop other values."""
    return int(digest_json([seed, step, reader] if reader else [seed, step])[:15], 16)


def train(config: LoopConfig, stage: Stage, job: Job) -> Outcome:
    """Train until the first budget is reached; go on from the newest sealed checkpoint if there is one.

    Args:
        config: the verb's keys.
        stage: the claim on ``config.output``; its start counts for ``minutes``.
        job: model, data and how to save.

    Returns:
        what the run's facts are made of; ``RUN/model`` is written.

    Raises:
        Interrupted: a signal came; the state is saved.
        MachineError: the disk is full, or steps had to be skipped again and again after going back.
    """
    with stop_signals() as stop:
        run = Run(config, stage, job)
        job.model.train()
        try:
            if run.checkpoint is None:
                run.evaluate(config.eval.tokens)
            settle_steps(run)
            _take_steps(run, stop)
            if job.patience is not None:
                run.back_to_best()
            final = run.evaluate(None)
            run.add_phases(run.clock.take(0.0))
        finally:
            run.close()
        run.publish()
    rows = read_rows(config.output / METRICS)
    losses = [row["loss"] for row in rows if row.get("loss") is not None][-LAST_STEPS:]
    before = next((row for row in rows if row["step"] == 0 and "val_loss" in row), {"step": 0})
    trained = [(name, parameter) for name, parameter in job.model.named_parameters() if parameter.requires_grad]
    mean = sum(losses) / max(1, len(losses))
    return Outcome(run.state, run.resolved, before, final, mean, weights_digest(trained))


def _rate(run: Run) -> float:
    """Learning rate of the step under way. A branch has been warmed up, and falls from its first step on."""
    config, total, start = run.config, run.resolved.total_at(run.state.step), run.job.begun_at
    warmup, decay = (start, (total - start) / total) if start else (run.resolved.warmup or config.warmup, config.decay)
    return learning_rate(run.state.step, total, run.resolved.lr, config.schedule, warmup, decay)


def _take_steps(run: Run, stop: Stop) -> None:
    config, state, job, total = run.config, run.state, run.job, run.resolved.total_steps
    bar = Progress(job.verb, total, "steps")
    bar.done = state.step
    saved_at = time.monotonic()
    first = state.step
    if run.exhausted:  # it was stopped after that was seen
        bar.close()
        return
    run.forecast.tell(run.log, state.step, total, run.tokens_per_step, run.resolved.step_seconds)
    run.profiler.check(total - state.step)
    began = time.perf_counter()
    for batches in run.clock.waiting(follow(run)):
        run.warn_masked(batches)
        torch.manual_seed(step_seed(config.seed, state.step, run.world.reader))
        rate = _rate(run)
        with run.watched(batches):
            result = run.take_step(
                job.model, run.optimizer, run.objective, batches, rate, config.clip_norm, state.guard, run.clock,
                run.world,
            )  # fmt: skip
        row = run.record(result, batches, rate, began)
        run.forecast.check(run.log, state.step, total, state.seconds)
        bar.advance(1, f"loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tok/s  MFU {row['mfu']:.0%}")
        if state.guard.hopeless or result.spoiled:
            roll_back(run, str(result.skipped))
            bar.done = first = state.step
            began = time.perf_counter()
            continue
        count_again(run)
        bar.total = total = run.resolved.total_steps
        patient = job.patience is not None
        if run.evaluation_due:
            run.evaluate(config.eval.tokens)
        every, clock = run.anchor_every, config.checkpoint.every is None and time.monotonic() - saved_at
        due = (every and state.step % every == 0) or clock > SAVE_SECONDS * (2 if every else 1)
        due = due and not state.guard.in_a_row  # nothing new to save, and nothing to go back to
        improved = patient and state.val_loss is not None and state.since_best == 0
        due, stopping = run.world.any(bool(due), stop.asked)  # no word of it to ``stop``: its own signal may yet come
        if due and every is None:
            settle_saves(run, state.step - first)
        if due or improved or run.exhausted or stopping or state.step == total:
            run.save()
            saved_at = time.monotonic()
        if stopping:
            run.world.wait()  # a process that ends before the first one has saved has that one ended, by torchrun
            raise go_on_hint(config)
        if run.exhausted:
            say(f"step {state.step}: held-out loss has not fallen for {job.patience} evaluations; training ends here")
            break
        began = time.perf_counter()
    bar.close()
