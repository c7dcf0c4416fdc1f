"""Promises of ``--profile``: a trace and a table, and not one bit of the run changed."""

import gzip
import json
from pathlib import Path

import pytest
from tiny import add_dropout, losses, tiny_job, tiny_run

from hepta.config import HeptaError
from hepta.training.profiling import WARM, show_operators


def test_profiling_leaves_a_trace_and_a_table_and_changes_no_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tiny_run(tmp_path / "plain", add_dropout(tiny_job(tmp_path / "plain")), max_steps=8)
    capsys.readouterr()
    run = tmp_path / "run"
    profiled = tiny_run(run, add_dropout(tiny_job(run)), max_steps=8, profile=2)
    assert profiled.weights_sha256 == plain.weights_sha256
    assert losses(run) == losses(tmp_path / "plain")
    trace, table = run / "profile" / "steps-4-5.json.gz", run / "profile" / "operators.txt"
    told = capsys.readouterr().err
    assert str(trace) in told
    assert str(table) in told
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    spans = [event["name"] for event in events if event.get("ph") == "X"]
    micro_batches = 2
    for phase, times in (("forward", 2 * micro_batches), ("backward", 2 * micro_batches), ("optimizer", 2)):
        assert spans.count(phase) == times, phase
    found = json.loads((run / "profile" / "operators.json").read_text())
    assert (found["first_step"], found["last_step"]) == (WARM + 1, WARM + 2)
    times = [row["self_ms"] for row in found["operators"]]
    assert times == sorted(times, reverse=True)
    assert sum(row["share"] for row in found["operators"]) == pytest.approx(1.0)
    assert any(row["name"] == "aten::mm" and row["gflops"] > 0 for row in found["operators"])
    assert "aten::mm" in table.read_text()


def test_a_run_too_short_to_profile_says_so_before_its_first_step(tmp_path: Path) -> None:
    with pytest.raises(HeptaError, match=r"profile 10: needs 3 steps to warm up and 10 to record, the run has 6 left"):
        tiny_run(tmp_path / "run", max_steps=6, profile=10)
    assert not losses(tmp_path / "run")


def test_the_table_gives_rates_where_flops_are_known() -> None:
    rows = [
        {"name": "aten::mm", "calls": 20, "self_ms": 40.0, "share": 0.8, "gflops": 512.25},
        {"name": "aten::add", "calls": 10, "self_ms": 10.0, "share": 0.2},
    ]
    lines = show_operators(rows, 10).splitlines()
    assert lines[1].split() == ["aten::mm", "4.00", "80.0%", "2", "512.2"]
    assert lines[2].split() == ["aten::add", "1.00", "20.0%", "1"]
