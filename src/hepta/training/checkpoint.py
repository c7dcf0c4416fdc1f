"""Checkpoints: written under a temporary name, sealed by a digest of every file, then renamed.

A directory ``checkpoints/step-00000500`` is a model (or adapter) directory with ``optimizer-*.safetensors``,
``state.json`` and the seal ``manifest.json``. Without a valid seal it does not exist.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from hepta.config import HeptaError, MachineError
from hepta.console import warn
from hepta.model.load import write_safetensors
from hepta.model.whole import whole
from hepta.stage import FORMAT, MANIFEST, atomic_directory, read_json, sha256_file, write_json

STATE = "state.json"
OPTIMIZER = "optimizer-00001-of-00001.safetensors"
DIGESTED = 1 << 26  # bytes of a tensor handed to the digest at a time
OWN_FILES = {STATE, OPTIMIZER, MANIFEST}  # the rest is the model


@dataclass(frozen=True)
class Checkpoint:
    """One sealed checkpoint on disk."""

    path: Path
    step: int
    state: dict[str, Any]

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state keyed ``<parameter>.<state>``."""
        return load_file(self.path / OPTIMIZER)


def weights_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hex sha256 over tensors in order of name: name, dtype, shape, bytes of each."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        value = whole(tensor.detach()).to("cpu").contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        for part in value.view(-1).view(torch.uint8).split(DIGESTED):  # no copy of a large matrix
            digest.update(part.numpy().tobytes())
    return digest.hexdigest()


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(
    run: Path, step: int, save_weights: Callable[[Path], None], optimizer: dict[str, Tensor], state: dict[str, Any]
) -> Path:
    """Write one sealed checkpoint, whole or not at all.

    Args:
        run: the run directory.
        step: optimizer steps done.
        save_weights: writes the model (or adapter) directory into the path it is given.
        optimizer: tensors keyed ``<parameter>.<state>``.
        state: JSON of everything else needed to go on.

    Raises:
        MachineError: the disk is full; older checkpoints are untouched.
    """
    target = checkpoint_path(run, step)
    try:
        with atomic_directory(target) as directory:
            save_weights(directory)
            if optimizer:
                write_safetensors(optimizer, directory / OPTIMIZER)
            write_json(directory / STATE, {"format": FORMAT, "step": step, **state})
            files = sorted(f for f in directory.rglob("*") if f.is_file())
            seal = {str(f.relative_to(directory)): sha256_file(f) for f in files}
            write_json(directory / MANIFEST, {"format": FORMAT, "step": step, "sha256": seal})
    except MachineError as error:
        raise MachineError(
            f"checkpoint of step {step}: {error}; older checkpoints are kept, the same command goes on from them"
        ) from None
    except Exception as error:
        if getattr(error, "errno", None) == errno.EFBIG:  # a quota or ulimit is a full disk too
            raise MachineError(
                f"{target}: cannot be written: file too large for this disk or limit; older checkpoints are kept"
            ) from None
        raise
    return target


def seal_fault(directory: Path) -> str | None:
    """What is wrong with a checkpoint's seal, None where every byte is as it was sealed (trap R8)."""
    try:
        manifest = read_json(directory / MANIFEST)
    except HeptaError:
        return "it has no readable seal"
    seal = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(seal, dict) or manifest.get("format") != FORMAT:
        return "its seal is not one"
    for name, expected in seal.items():
        file = directory / name
        if not file.is_file():
            return f"{name} is missing"
        if sha256_file(file) != expected:
            return f"{name} is not as it was sealed"
    return None


def latest_checkpoint(run: Path, at_most: int | None = None) -> Checkpoint | None:
    """The newest checkpoint with a valid seal; broken ones are named and passed over.

    Args:
        run: the run directory.
        at_most: ignore checkpoints of later steps.
    """
    for directory in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        step = int(directory.name.removeprefix("step-"))
        if at_most is not None and step > at_most:
            continue
        fault = seal_fault(directory)
        if fault is None:
            return Checkpoint(directory, step, read_json(directory / STATE))
        warn(f"{directory}: refused, {fault}; using the one before it")
    return None


def best_checkpoint(run: Path) -> Checkpoint | None:
    """The sealed checkpoint with the lowest validation loss; the newest one where none was evaluated."""
    losses = _losses(run)
    for directory in sorted(losses, key=lambda place: losses[place]):
        if seal_fault(directory) is None:
            return Checkpoint(directory, int(directory.name.removeprefix("step-")), read_json(directory / STATE))
    return latest_checkpoint(run)


def _losses(run: Path) -> dict[Path, float]:
    """Validation loss of each checkpoint that has one."""
    states = {d: read_json(d / STATE) for d in (run / "checkpoints").glob("step-*") if (d / STATE).is_file()}
    return {d: state["val_loss"] for d, state in states.items() if state.get("val_loss") is not None}


def sweep(run: Path) -> None:
    """Remove what killed processes left half-written; only the owner of the run's lock may call it."""
    for pattern in ("checkpoints/.step-*.tmp-*", ".model.tmp-*", ".*.tmp-*"):
        for leftover in run.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def prune(run: Path, keep: int, every: int | None = None) -> None:
    """Delete checkpoints except the newest ``keep``, the one with the lowest validation loss, and the newest at a
    multiple of ``every``, which a rollback goes to."""
    steps = sorted((run / "checkpoints").glob("step-*"))
    losses = _losses(run)
    best = min(losses, key=lambda d: losses[d]) if losses else None
    anchors = [d for d in steps if every and int(d.name.removeprefix("step-")) % every == 0]
    for directory in steps[:-keep]:
        if directory not in (best, *anchors[-1:]):
            hidden = directory.with_name(f".{directory.name}.tmp-{os.getpid()}")
            directory.rename(hidden)  # so that a kill half-way leaves no broken checkpoint behind
            shutil.rmtree(hidden, ignore_errors=True)


def link_files(files: Iterable[Path], directory: Path) -> None:
    """Hard links of files in another directory; copies on a file system without them."""
    for file in sorted(files):
        if file.is_file():
            try:
                os.link(file, directory / file.name)
            except OSError:
                shutil.copyfile(file, directory / file.name)


def publish(run: Path, checkpoint: Path) -> Path:
    """Make ``RUN/model``: hard links to the model files of a sealed checkpoint."""
    target = run / "model"
    with atomic_directory(target) as directory:
        link_files((file for file in checkpoint.iterdir() if file.name not in OWN_FILES), directory)
    return target
