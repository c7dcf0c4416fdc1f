"""Going back: after many skipped steps in a row to the last checkpoint, and on around the sequences that caused them.

Where a run goes back to is a function of its keys, never of when a signal or a clock saved: only checkpoints at
multiples of ``checkpoint.every`` (or of the steps that made two minutes when the run began, written to the run) count.
So a run that is killed before, during or after a rollback ends like one that is not.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hepta.config import MachineError
from hepta.console import warn
from hepta.data.around import Around, merged
from hepta.stage import read_json
from hepta.training.checkpoint import STATE, Checkpoint, seal_fault
from hepta.training.resolve import write_resolved
from hepta.training.step import Batch, stream_steps
from hepta.training.together import agreed_checkpoint

MOST = 3  # returns to one checkpoint; the next one ends the run


def anchor(run: Path, every: int | None, before: int) -> Checkpoint | None:
    """The newest valid checkpoint at a multiple of ``every``, of at most ``before`` steps; None: there is none."""
    for directory in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        step = int(directory.name.removeprefix("step-"))
        if every is None or step > before or step % every:
            continue
        fault = seal_fault(directory)
        if fault is None:
            return Checkpoint(directory, step, read_json(directory / STATE))
        warn(f"{directory}: refused, {fault}; using the one before it")
    return None


def roll_back(run: Any, reason: str) -> None:
    """Put a run back to its anchor and leave out the sequences of the steps just skipped; the journal names them.

    Args:
        run: a ``Run`` whose last ``state.guard.in_a_row`` steps were skipped.
        reason: of the last one.

    Raises:
        MachineError: no checkpoint to go back to, or it was gone back to ``MOST`` times already.
    """
    state, per_step = run.state, run.config.sequences_per_step
    first, last = state.step - state.guard.in_a_row, state.step
    told = f"step {last}: {last - first} steps in a row had to be skipped ({reason})"
    found = agreed_checkpoint(run.world, run.path, lambda place: anchor(place, run.anchor_every, first))
    if found is None:
        raise MachineError(f"{told} and there is no checkpoint from before them; try a lower lr")
    if state.rollbacks.count(found.step) == MOST:
        raise MachineError(
            f"{told}, after {MOST} returns to step {found.step}; {run.path / 'journal.jsonl'} names the documents; "
            "try a lower lr"
        )
    order = run.whole_order
    reading = Around(order, state.left_out)
    starts = [reading.place(step * per_step) for step in range(first, last)]
    bad = merged([start, start + per_step] for start in starts)
    documents = sorted({name for begin, end in bad for n in range(begin, end) for name in order.where(n)})
    left_out, rollbacks = merged([*state.left_out, *bad]), [*state.rollbacks, found.step]
    run.go_back(found, left_out, rollbacks)
    run.log.event({
        "step": found.step, "event": "rollback", "number": len(rollbacks), "from": last, "reason": reason,
        "skipped": last - first, "sequences": bad, "documents": documents,
    })  # fmt: skip
    warn(
        f"{told}: back to step {found.step}, without sequences {bad[0][0]} to {bad[-1][1] - 1} "
        f"({len(documents)} documents, named in {run.path / 'journal.jsonl'})"
    )


def follow(run: Any) -> Iterator[list[Batch]]:
    """Micro-batches of the steps to come, from where a run stands, also after it went back or became shorter or
    longer."""
    per_step, micro, workers = run.config.sequences_per_step, run.resolved.micro_batch, run.config.workers
    while run.state.step < (total := run.resolved.total_steps):
        rollbacks = len(run.state.rollbacks)
        for batches in stream_steps(run.job.train, run.state.step, total, per_step, micro, workers, run.world):
            yield batches
            if len(run.state.rollbacks) != rollbacks or run.resolved.total_steps != total:
                break


def settle_saves(run: Any, steps: int) -> None:
    """Remember how many steps the first two minutes made: checkpoints at its multiples may be gone back to."""
    run.resolved = replace(run.resolved, save_every=max(1, steps))
    if run.world.main:
        write_resolved(run.path, run.job.verb, run.config, run.resolved)
