"""Promises of ``tracker=wandb``: numbers only, only when asked for, one line where the package is missing."""

import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tiny import TwoSources, tiny_job, tiny_run

from hepta.config import HeptaError
from hepta.training.job import Outcome
from hepta.training.metrics import _numbers, read_rows


def test_a_missing_package_is_one_line_before_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HeptaError, match="tracker wandb: the package is not installed; pip install wandb"):
        tiny_run(tmp_path / "run", max_steps=2, tracker="wandb")


def test_nothing_of_it_is_touched_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hepta.training.tracker.WandbTracker", None)
    tiny_run(tmp_path / "run", max_steps=2)
    assert not list((tmp_path / "run").glob("wandb*"))


def records(file: Path) -> list[Any]:
    """What an offline file of wandb holds: records of protobuf in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    data, place, record, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = 32_768 - place % 32_768
        if left < 7:  # too short for a header: the next block begins
            place += left
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or its last part
            found.append(wandb_internal_pb2.Record.FromString(record))
            record = b""
    return found


def history(file: Path) -> list[dict[str, Any]]:
    """The rows logged, without what wandb itself notes in each."""
    rows = [record.history.item for record in records(file) if record.WhichOneof("record_type") == "history"]
    named = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]
    return [{key: value for key, value in row.items() if key[0] != "_"} for row in named]


def run_of_two_sources(run: Path, **values: Any) -> Outcome:
    job = tiny_job(run)
    job.train = TwoSources(32, 19)
    return tiny_run(run, job, **values)


@pytest.mark.slow
def test_a_real_wandb_that_is_offline_gets_the_rows_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every number of every row, read back from its own file; a run that goes on keeps its name there."""
    pytest.importorskip("wandb", reason="pip install hepta[wandb] to run this")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    tracked = run_of_two_sources(run, max_steps=8, tracker="wandb", sample_prompts=["print"])
    assert tracked.weights_sha256 == run_of_two_sources(tmp_path / "plain", max_steps=8).weights_sha256
    name = (run / "wandb.json").read_text()
    (first,) = run.glob("wandb/offline-run-*/run-*.wandb")
    rows, mine = history(first), read_rows(run / "metrics.jsonl")
    assert len(rows) == len(mine)
    for row, own in zip(rows, mine, strict=True):
        kind = "val" if "val_loss" in own else "train"
        numbers = {key: value for key, value in _numbers(own, f"{kind}/") if key != f"{kind}/step"}
        assert row == {"step": own["step"], **numbers}
    assert "train/loss_by_source/left" in rows[1]
    assert {record.run.host for record in records(first)} == {""}, "no name of the machine"
    assert str(tmp_path).encode() not in first.read_bytes(), "no path"
    assert b"pytest" not in first.read_bytes(), "no command line"
    assert run_of_two_sources(run, max_steps=10, schedule="cosine", tracker="wandb").state.step == 10
    assert (run / "wandb.json").read_text() == name
    (second,) = set(run.glob("wandb/offline-run-*/run-*.wandb")) - {first}
    assert {row["step"] for row in history(second)} == {9, 10}
