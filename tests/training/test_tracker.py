"""Promises of ``tracker=wandb``: numbers only, only when asked for, one line where the package is missing."""

import importlib.util
import time
from pathlib import Path

import pytest
from tiny import tiny_run

from hepta.config import HeptaError


def test_a_missing_package_is_one_line_before_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HeptaError, match="tracker wandb: the package is not installed; pip install wandb"):
        tiny_run(tmp_path / "run", max_steps=2, tracker="wandb")


def test_nothing_of_it_is_touched_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hepta.training.tracker.WandbTracker", None)
    tiny_run(tmp_path / "run", max_steps=2)
    assert not list((tmp_path / "run").glob("wandb*"))


@pytest.mark.slow
def test_numbers_reach_a_real_wandb_that_is_offline_and_texts_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real package, whose offline file is read back; a run that goes on keeps its name there."""
    pytest.importorskip("wandb", reason="pip install hepta[wandb] to run this")
    monkeypatch.setenv("WANDB_MODE", "offline")
    plain = tiny_run(tmp_path / "plain", max_steps=8)
    run = tmp_path / "run"
    tiny_run(run, max_steps=8, tracker="wandb")
    name = (run / "wandb.json").read_text()
    files = list(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1
    written = b""
    for _ in range(100):  # its own process writes the file, and ends a moment later
        written = files[0].read_bytes()
        if b"val/val_bpb/all" in written:
            break
        time.sleep(0.1)
    assert b"train/loss" in written
    assert b"val/val_bpb/all" in written
    assert str(tmp_path).encode() not in written, "no path"
    assert b"pytest" not in written, "no command line"
    outcome = tiny_run(run, max_steps=10, schedule="cosine", tracker="wandb")
    assert (run / "wandb.json").read_text() == name
    assert outcome.state.step == 10
    assert plain.weights_sha256 == tiny_run(tmp_path / "again", max_steps=8).weights_sha256
