"""A run says what it expects and how wrong it was, and the next one expects better; none of it touches the weights."""

import json
import re
from pathlib import Path

import pytest
import torch
from tiny import SHAPE, tiny_job, tiny_run

from hepta.model.decoder import Decoder
from hepta.objectives.causal import IGNORE, causal_loss, head_rows, softmax_gradient
from hepta.planning import machine
from hepta.planning.cost import step_flops
from hepta.training import forecast
from hepta.training.resolve import Resolved, read_resolved


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


def test_a_long_run_of_a_kind_that_never_ran_here_tries_a_few_steps_first(tmp_path: Path) -> None:
    """The steps that are tried leave no trace in the weights; the next run, which is calibrated, tries none."""
    keys = {"max_steps": forecast.WORTH_TRYING, "checkpoint": {"every": 1000}}
    weights = [tiny_run(tmp_path / name, **keys).weights_sha256 for name in "ab"]
    assert weights[0] == weights[1]
    (tried,), (known,) = (events(tmp_path / name, "forecast") for name in "ab")
    assert tried["source"] == "measured in a few steps"
    assert known["source"] == "calibrated by 1 run here, last today"


def test_a_shorter_run_predicts_and_calibrates_nothing(tmp_path: Path, own_cache: Path) -> None:
    tiny_run(tmp_path / "a", max_steps=forecast.STEPS - 1)
    assert events(tmp_path / "a", "forecast")
    assert not events(tmp_path / "a", "measured")
    assert not own_cache.exists()


def test_three_long_steps_are_enough(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 7B's recipe takes four steps of a minute and more; the next run knows what they took."""
    monkeypatch.setattr(forecast, "LONG", 0.0)
    tiny_run(tmp_path / "a", max_steps=4)
    (row,) = events(tmp_path / "a", "measured")
    assert row["step"] == forecast.FEW
    assert own_cache.exists()


def test_a_run_that_goes_on_does_not_count_its_restored_moments_twice(tmp_path: Path) -> None:
    tiny_run(tmp_path / "a", max_steps=4)
    tiny_run(tmp_path / "a", max_steps=8)
    first, second = events(tmp_path / "a", "forecast")
    assert second["step"] == 4
    assert second["memory_bytes"] == pytest.approx(first["memory_bytes"], rel=0.1)


@pytest.mark.parametrize("supervised", [0, 1, 255, 256, 300, 899, 900, 1000])
def test_rows_that_meet_the_head_are_known_from_labels(supervised: int) -> None:
    seen = []

    def kernel(logits: torch.Tensor, targets: torch.Tensor, z_loss: float) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(logits))
        return softmax_gradient(logits, targets, z_loss)

    labels = torch.full((10, 100), IGNORE)
    labels.view(-1)[torch.randperm(1000)[:supervised]] = 3
    causal_loss(torch.randn(10, 100, 4), torch.randn(8, 4), labels, chunk=200, kernel=kernel)
    assert sum(seen) == head_rows(labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"device": "cuda"}, "cuda"), ({"processes": 2}, "several processes"), ({"verb": "distill"}, "teacher"),
     ({"verb": "tune"}, "texts"), ({"verb": "prune"}, "layer")],
)  # fmt: skip
def test_what_cannot_be_predicted_is_said_not_guessed(change: dict, said: str) -> None:
    values = {"device": "cpu", "processes": 1, **change}
    verb = values.pop("verb", "pretrain")
    resolved = Resolved("fp32", values["device"], 1, False, 1, 1e-3, 1.0, "here", "2", processes=values["processes"])
    assert said in str(forecast.unpredictable(verb, resolved))
    plain = Resolved("fp32", "cpu", 1, False, 1, 1e-3, 1.0, "here", "2")
    assert all(forecast.unpredictable(one, plain) is None for one in forecast.VERBS)


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
