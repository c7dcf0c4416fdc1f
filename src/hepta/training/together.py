"""What the processes of a run settle before its first step: who writes, and which checkpoint all go on from."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hepta.config import HeptaError, StageConfig
from hepta.model.load import write_safetensors
from hepta.stage import Stage, claim, read_json
from hepta.training.checkpoint import STATE, Checkpoint, checkpoint_path, latest_checkpoint, sweep
from hepta.training.config import LoopConfig
from hepta.training.job import Job
from hepta.training.metrics import RunLog
from hepta.training.world import World, world

SHARED = ("adamw", "muon", "sgd")  # optimizers of parts: number by number, or one whole matrix at a time


def claim_together(config: StageConfig, verb: str, version: int) -> Stage:
    """``stage.claim`` by the first process for all; the others get a stage to read from.

    Raises:
        HeptaError: as ``claim``.
    """
    held: list[Stage] = []

    def work() -> dict[str, Any]:
        held.append(claim(config, verb, version))
        facts = ("identity", "inputs", "budget", "state", "manifest", "started")
        return {name: getattr(held[0], name) for name in facts}

    told = world().lead(work)
    if held:
        return held[0]
    stage = Stage(verb=verb, version=version, output=config.output, **told)
    stage.state = "done" if stage.state == "done" else "partial"  # what is withdrawn, the first process withdraws
    return stage


def refuse_unshared(world: World, config: LoopConfig) -> None:
    """Refuse what cannot be shared out.

    Raises:
        HeptaError: the sequences of a step are no multiple of the processes that read them, or an optimizer reads
            whole matrices.
    """
    if world.size > 1 and config.optimizer not in SHARED:
        known = f"several processes hold parts of matrices; use {' or '.join(SHARED)}, or one process"
        raise HeptaError(f"optimizer {config.optimizer}: wants them whole, {known}")
    for key, wanted in {"update_in_backward": config.update_in_backward, "bf16-pure": config.precision}.items():
        if world.size > 1 and wanted in (True, key):
            raise HeptaError(f"{key}: works on whole weights, of which several processes hold parts; use one process")
    count, readers = config.sequences_per_step, world.readers
    if count % readers:
        more = -(-count // readers) * readers
        raise HeptaError(
            f"a step has {count} sequences, which {readers} processes cannot share evenly; try {more} "
            f"(batch_tokens {more * config.sequence_length})"
        )


def begin(world: World, config: LoopConfig) -> None:
    """Refuse what cannot be shared out, and clean up what killed processes left."""
    refuse_unshared(world, config)
    if world.main:
        sweep(config.output)


def agreed_checkpoint(
    world: World, run: Path, find: Callable[[Path], Checkpoint | None] = latest_checkpoint
) -> Checkpoint | None:
    """The newest sealed checkpoint, or what ``find`` finds; the first process looks and checks its seal."""
    held: list[Checkpoint | None] = []

    def work() -> int | None:
        held.append(find(run))
        return held[0].step if held[0] else None

    step = world.lead(work)
    if held or step is None:
        return held[0] if held else None
    path = checkpoint_path(run, step)
    return Checkpoint(path, step, read_json(path / STATE))


class Silent:
    """A run's log in the processes that do not write: takes every row and keeps none."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def open_log(world: World, run: Path, step: int, evaluated: bool, rollbacks: int, tracker: Any) -> Any:
    """The run's log where it is written, else one that takes everything and keeps nothing; arguments of ``RunLog``."""
    return RunLog(run, step, evaluated, rollbacks, tracker) if world.main else Silent()


def follow_save(job: Job, dtype: torch.dtype | None, tensors: dict[str, Tensor] | None = None) -> None:
    """Do beside the process that saves what makes its tensors whole, and keep nothing of it.

    Args:
        job: the run's.
        dtype: as ``job.save`` takes it.
        tensors: the optimizer's, where a checkpoint is saved.
    """
    with tempfile.TemporaryDirectory() as place:  # of the tokenizer and a few lines of JSON
        job.save(Path(place) / "model", dtype)
        if tensors:
            write_safetensors(tensors, Path(place) / "optimizer.safetensors")
