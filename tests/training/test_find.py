"""Promises of ``lr=find``: the formula, nothing left of the test in the run, the same rate after a stop."""

import gc
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Stopped, losses, tiny_job, tiny_run

import hepta.training.budgets
from hepta.config import HeptaError
from hepta.objectives.causal import Causal
from hepta.training.backward import BackwardUpdates
from hepta.training.find import STEPS, range_test
from hepta.training.guard import Guard
from hepta.training.optimizer import make_optimizer
from hepta.training.resolve import read_resolved
from hepta.training.step import StepResult, micro_batches


def taking(loss_at: Any) -> Any:
    return lambda n, rate: StepResult(loss_at(rate), 1, 1.0, None, {})


def test_a_tenth_of_the_rate_with_the_lowest_smoothed_loss_is_suggested() -> None:
    """A parabola over log rate, its lowest point known; smoothing lags behind it by less than half a decade."""
    found = range_test(taking(lambda rate: 5.0 + 0.5 * (math.log10(rate) + 2) ** 2), 1e-2)
    assert found.rates[0] == pytest.approx(1e-4)
    assert len(found.rates) == STEPS, "it never rose to one and a half times the lowest"
    assert found.rates[-1] == pytest.approx(1.0)
    assert found.suggestion is not None
    assert 1e-3 < found.suggestion < 1e-3 * 10**0.5
    averages = [np.average(found.losses[: n + 1], weights=0.9 ** np.arange(n, -1, -1)) for n in range(STEPS)]
    np.testing.assert_allclose(found.smoothed, averages, rtol=1e-9)


def test_the_test_ends_where_the_loss_has_risen_or_is_no_number() -> None:
    risen = range_test(taking(lambda rate: 5.0 if rate < 0.01 else 50.0), 1e-2)
    assert 50 < len(risen.rates) < 60
    broken = range_test(taking(lambda rate: 5.0 - rate if rate < 0.01 else math.nan), 1e-2)
    assert len(broken.rates) == 50
    assert broken.suggestion == pytest.approx(broken.rates[-1] / 10)
    assert range_test(taking(lambda rate: 5.0 + rate), 1e-2).suggestion is None, "it rose from the start"
    assert range_test(taking(lambda rate: math.nan), 1e-2).suggestion is None


def test_a_run_trains_with_the_rate_found_as_if_it_had_been_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights are put back bit for bit; the rate is resolved once, and kept over a stop."""
    run = tmp_path / "run"
    found = tiny_run(run, lr="find", max_steps=12)
    assert "lr=find: " in capsys.readouterr().err
    table = json.loads((run / "lr-find.json").read_text())
    assert table["suggestion"] == found.resolved.lr
    assert table["automatic"] == 1e-3
    assert (run / "lr-find.png").read_bytes().startswith(b"\x89PNG")
    given = tiny_run(tmp_path / "given", lr=found.resolved.lr, max_steps=12)
    assert given.weights_sha256 == found.weights_sha256
    assert losses(run) == losses(tmp_path / "given")
    broken, job = tmp_path / "broken", tiny_job(tmp_path / "broken")
    step, steps = hepta.training.run.Run.record, []

    def mortal(self: Any, *args: Any) -> Any:
        steps.append(1)
        if len(steps) > 9:
            raise Stopped
        return step(self, *args)

    monkeypatch.setattr(hepta.training.run.Run, "record", mortal)
    with pytest.raises(Stopped):
        tiny_run(broken, job, lr="find", max_steps=12)
    monkeypatch.undo()
    gc.collect()  # the run's lock goes with its frames
    monkeypatch.setattr(hepta.training.budgets, "find_rate", lambda run: pytest.fail("tested twice"))
    assert tiny_run(broken, lr="find", max_steps=12).weights_sha256 == found.weights_sha256
    resolved = read_resolved(broken)
    assert resolved is not None
    assert resolved.lr == found.resolved.lr
    with pytest.raises(HeptaError, match="lr"):
        tiny_run(broken, lr=1e-3, max_steps=12)


def test_the_range_test_takes_its_steps_as_the_run_does(tmp_path: Path) -> None:
    """With updates in the backward pass each step is clipped by the norm of the one before, from the first on."""
    tiny_run(
        tmp_path / "run", lr="find", max_steps=1, update_in_backward=True, micro_batch=None, optimizer="sgd",
        clip_norm=0.5,
    )  # fmt: skip
    table = json.loads((tmp_path / "run" / "lr-find.json").read_text())
    job, guard = tiny_job(tmp_path / "by hand"), Guard(math.inf)
    updates, optimizer = BackwardUpdates(job.model), make_optimizer(job.model, 0.1, "sgd")
    for n in range(12):
        batches = micro_batches(job.train, n, 4, 4)
        result = updates.run_step(job.model, optimizer, Causal(), batches, table["rates"][n], 0.5, guard)
        assert result.loss == table["losses"][n]
