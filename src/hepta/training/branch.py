"""``hepta pretrain --branch RUN@STEP``: a run that goes on from a checkpoint of another, its rate falling to 0.

One long run at a constant rate then serves several lengths: whatever step it is branched at, the branch is, bit for
bit, what a run of that length with ``schedule=wsd`` would have been.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hepta.config import HeptaError, read_yaml
from hepta.console import say
from hepta.stage import MANIFEST, UNFINISHED, Stage, atomic_directory, read_json, sha256_file, write_atomic
from hepta.training.checkpoint import checkpoint_path, link_files, seal_fault
from hepta.training.config import PretrainConfig
from hepta.training.metrics import JOURNAL, METRICS, SAMPLES, read_rows
from hepta.training.resolve import RECIPE, read_resolved, write_resolved
from hepta.training.schedule import warmup_steps

FREE = {"schedule", "decay", "branch"}  # identity that a branch need not share with its run


def begin_branch(config: PretrainConfig, stage: Stage) -> None:
    """Put the other run's checkpoint, rows and automatic values into the output, where training goes on from them.

    The checkpoint comes last: once it is there, the branch needs the other run no more.

    Raises:
        HeptaError: no such run or checkpoint, another model, data or seed, or a rate that is not at its peak there.
    """
    if config.branch is None or any((config.output / "checkpoints").glob("step-*")):
        return
    run, step = Path(config.branch.rpartition("@")[0]), config.branch_step
    _check_same(run, stage)
    source = _find_checkpoint(run, step)
    _check_peak(run, step)
    resolved = read_resolved(run)
    assert resolved is not None, "a run with checkpoints has its recipe"
    unsettled = replace(resolved, total_steps=0, step_seconds=None, warmup=None, counts=[], budget={})
    write_resolved(config.output, "pretrain", config, unsettled)
    origin = {"step": step, "event": "branch", "from": config.branch, "seal": sha256_file(source / MANIFEST)}
    for name, more in ((METRICS, []), (SAMPLES, []), (JOURNAL, [origin])):
        rows = [row for row in read_rows(run / name) if row.get("step", 0) <= step] + more
        write_atomic(config.output / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    with atomic_directory(checkpoint_path(config.output, step)) as directory:
        link_files(source.iterdir(), directory)
    say(f"{config.output}: branches off {run} at step {step}")


def _check_same(run: Path, stage: Stage) -> None:
    """Refuse a run that differs in anything but its schedule."""
    found = next((run / name for name in (MANIFEST, UNFINISHED) if (run / name).is_file()), None)
    before: dict[str, Any] = read_json(found) if found is not None else {}
    if before.get("verb") != stage.verb:
        raise HeptaError(f"branch {run}: is no run of hepta pretrain; give RUN@STEP of one")
    identity = json.loads(json.dumps(stage.identity, default=str))
    for key in sorted({*before["identity"], *identity} - FREE):
        was, now = before["identity"].get(key), identity.get(key)
        if was != now:
            raise HeptaError(f"branch {run}: was made with {key} {was!r}, this has {now!r}; give {key}={was}")
    for key, was in before["inputs"].items():
        if was != stage.inputs.get(key):
            raise HeptaError(f"branch {run}: was made with another {key}; a branch goes on with the same")


def _find_checkpoint(run: Path, step: int) -> Path:
    source = checkpoint_path(run, step)
    if not source.is_dir():
        kept = [int(place.name.removeprefix("step-")) for place in sorted((run / "checkpoints").glob("step-*"))]
        told = f"it keeps {', '.join(map(str, kept))}" if kept else "it keeps none"
        raise HeptaError(f"branch {run}: no checkpoint of step {step}; {told} (checkpoint.every, checkpoint.keep)")
    fault = seal_fault(source)
    if fault is not None:
        raise HeptaError(f"branch {source}: damaged, {fault}; branch at another step")
    return source


def _check_peak(run: Path, step: int) -> None:
    """Refuse a step at which the other run's rate was not at its peak."""
    recipe = read_yaml(run / RECIPE)
    schedule, total = recipe["schedule"], recipe["resolved"]["total_steps"]
    rising, falling_from = warmup_steps(recipe["warmup"], total), total
    if schedule in ("cosine", "linear"):
        raise HeptaError(f"branch {run}: its rate falls all the way (schedule {schedule}); give it schedule=constant")
    if recipe.get("branch"):
        falling_from, rising = int(recipe["branch"].rpartition("@")[2]), 1
    elif schedule == "wsd":
        falling_from = total - max(1, round(recipe["decay"] * total))
    if not rising <= step <= falling_from:
        raise HeptaError(f"branch {run}: its rate is at its peak from step {rising} to {falling_from}, not at {step}")
