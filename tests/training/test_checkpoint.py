"""Promises of checkpoints: sealed or not there, and never lost to a full disk."""

import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import losses, tiny_job, tiny_run

from hepta.config import MachineError
from hepta.model.load import load_model
from hepta.training.checkpoint import (
    checkpoint_path,
    latest_checkpoint,
    prune,
    save_checkpoint,
    seal_fault,
    weights_digest,
)


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "truncated":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "bit flipped"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer-00001-of-00001.safetensors", "state.json"])
def test_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    tmp_path: Path, how: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trap R8."""
    run = tmp_path / "run"
    tiny_run(run, max_steps=12)
    damage(checkpoint_path(run, 12) / name, how)
    found = latest_checkpoint(run)
    assert found is not None
    assert found.step == 8
    message = capsys.readouterr().err
    assert "step-00000012" in message
    assert name in message


def test_run_goes_on_past_a_damaged_checkpoint_to_the_same_weights(tmp_path: Path) -> None:
    """Trap R8: the damaged step is trained again."""
    run = tmp_path / "run"
    whole = tiny_run(tmp_path / "whole", max_steps=12)
    tiny_run_until(run, 8)
    damage(checkpoint_path(run, 8) / "model.safetensors", "bit flipped")
    outcome = tiny_run(run, max_steps=12)
    assert outcome.weights_sha256 == whole.weights_sha256
    assert losses(run) == losses(tmp_path / "whole")
    assert seal_fault(checkpoint_path(run, 12)) is None


def write_config(place: Path) -> None:
    """Stands for a model's files where only the seal matters."""
    (place / "config.json").write_text("{}")


def write_large(place: Path) -> None:
    (place / "weights").write_bytes(bytes(200_000))


def tiny_run_until(run: Path, step: int) -> None:
    """Run 12 steps but break before the batch of ``step``, as a crash would."""
    job = tiny_job(run)
    batch = job.train.batch

    def breaks(start: int, count: int) -> object:
        if start >= (step + 1) * 4:
            raise RuntimeError("crash")
        return batch(start, count)

    job.train.batch = breaks
    with pytest.raises(RuntimeError, match="crash"):
        tiny_run(run, job, max_steps=12)


def test_full_disk_says_so_and_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    """Trap R9: a real write that the system refuses half-way (a file-size limit, as a quota is)."""
    run = tmp_path / "run"
    save_checkpoint(run, 1, write_config, {"w.m": torch.ones(8)}, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(MachineError, match="older checkpoints are kept"):
            save_checkpoint(run, 2, write_config, {"w.m": torch.ones(100_000)}, {})
        with pytest.raises(MachineError, match="older checkpoints are kept"):
            save_checkpoint(run, 3, write_large, {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    found = latest_checkpoint(run)
    assert found is not None
    assert found.step == 1
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000001"], "nothing half-written stays"


def test_full_disk_during_a_run_ends_it_and_it_goes_on_later(tmp_path: Path) -> None:
    """Trap R9: ENOSPC from the system's own device for it."""
    run, whole = tmp_path / "run", tiny_run(tmp_path / "whole", max_steps=12)
    job = tiny_job(run)
    save = job.save

    def onto_full_device(place: Path, dtype: torch.dtype | None) -> None:
        save(place, dtype)
        if place.name.startswith(".step-00000008"):
            with open("/dev/full", "wb") as device:
                device.write(b"0" * 100_000)

    job.save = onto_full_device
    with pytest.raises(MachineError, match="No space left"):
        tiny_run(run, job, max_steps=12)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]
    assert tiny_run(run, max_steps=12).weights_sha256 == whole.weights_sha256


def test_newest_and_best_checkpoints_are_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step, loss in ((1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, None)):
        save_checkpoint(run, step, write_config, {}, {"val_loss": loss})
    prune(run, 2)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-00000002",
        "step-00000004",
        "step-00000005",
    ]


def test_checkpoint_and_final_model_are_model_directories_with_fp32_masters(tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = tiny_run(run, max_steps=4, precision="bf16")
    final, sealed = run / "model" / "model.safetensors", checkpoint_path(run, 4) / "model.safetensors"
    assert final.stat().st_ino == sealed.stat().st_ino, "a hard link, not a copy"
    model = load_model(run)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert weights_digest(model.named_parameters()) == outcome.weights_sha256


def test_save_dtype_bf16_halves_the_final_model_and_leaves_checkpoints_fp32(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny_run(run, max_steps=4, save_dtype="bf16")
    assert {t.dtype for t in load_file(run / "model" / "model.safetensors").values()} == {torch.bfloat16}
    assert {t.dtype for t in load_file(checkpoint_path(run, 4) / "model.safetensors").values()} == {torch.float32}
