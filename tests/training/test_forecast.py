"""A run says what it expects and how wrong it was, and the next one expects better; none of it touches the weights."""

import json
import re
from pathlib import Path

import pytest
from tiny import SHAPE, tiny_job, tiny_run

from hepta.model.decoder import Decoder
from hepta.planning import machine
from hepta.planning.cost import step_flops
from hepta.training import forecast
from hepta.training.resolve import read_resolved


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HEPTA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "PEAK_SECONDS", 0.01)
    return tmp_path / "cache" / "calibration.json"


def events(run: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == kind]


def test_prediction_before_measurement_after_and_the_next_run_is_calibrated(
    tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tiny_run(tmp_path / "a", max_steps=24)
    told = capsys.readouterr().err
    expected = r"expected: .* s a step, .* tokens/s, .* GB of memory; 24 steps in .* until .*not calibrated"
    assert re.search(expected, told)
    assert re.search(r"after 20 steps: .* than expected; .* GB of memory.*; 4 steps in", told)
    (before,), (after,) = events(tmp_path / "a", "forecast"), events(tmp_path / "a", "measured")
    assert after["error"]["step_seconds"] == pytest.approx(after["step_seconds"] / before["step_seconds"] - 1)
    assert after["error"]["memory_bytes"] == pytest.approx(after["memory_bytes"] / before["memory_bytes"] - 1)

    second = tiny_run(tmp_path / "b", max_steps=24)
    assert "calibrated by 1 run here, last today" in capsys.readouterr().err
    (again,) = events(tmp_path / "b", "forecast")
    assert again["step_seconds"] == pytest.approx(after["step_seconds"], rel=1e-3)  # the very same model and batch
    assert first.weights_sha256 == second.weights_sha256
    assert len(next(iter(json.loads(own_cache.read_text()).values()))["factors"]) == 2


def test_a_shorter_run_predicts_and_calibrates_nothing(tmp_path: Path, own_cache: Path) -> None:
    tiny_run(tmp_path / "a", max_steps=forecast.STEPS - 1)
    assert events(tmp_path / "a", "forecast")
    assert not events(tmp_path / "a", "measured")
    assert not own_cache.exists()


def test_a_run_that_goes_on_does_not_count_its_restored_moments_twice(tmp_path: Path) -> None:
    tiny_run(tmp_path / "a", max_steps=4)
    tiny_run(tmp_path / "a", max_steps=8)
    first, second = events(tmp_path / "a", "forecast")
    assert second["step"] == 4
    assert second["memory_bytes"] == pytest.approx(first["memory_bytes"], rel=0.1)


@pytest.mark.parametrize("frozen", [False, True])
def test_mfu_counts_real_tokens_against_the_measured_peak_and_no_gradient_of_frozen_weights(
    tmp_path: Path, frozen: bool
) -> None:  # trap R13
    model = Decoder(SHAPE)
    model.init_weights(3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or "o_proj" in name)
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad) if frozen else None
    path = tmp_path / "run"
    job = tiny_job(path, model=model, poison=(1,))
    tiny_run(path, job, max_steps=4, checkpoint={"every": 4, "keep": 1})
    resolved = read_resolved(path)
    assert resolved is not None
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "mfu" in row]
    assert len(steps) == 4
    for row in steps:
        rate = row["tokens_per_second"] * step_flops(SHAPE, 32, adapters)
        assert row["mfu"] == pytest.approx(rate / (resolved.peak_gflops * 1e9))
