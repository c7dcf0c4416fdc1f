"""Promises of schedules and budgets."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from tiny import half_padding, losses, tiny_job, tiny_run

from hepta.training import budgets
from hepta.training.budgets import seconds_per_step
from hepta.training.resolve import read_resolved
from hepta.training.schedule import learning_rate, total_steps, warmup_steps


def rates(total: int, schedule: str, warmup: float) -> list[float]:
    return [learning_rate(step, total, 1.0, schedule, warmup) for step in range(total)]


def test_warm_up_has_at_least_one_step_and_ends_at_the_peak() -> None:
    """Trap R10: also in a run of one or three steps."""
    assert [warmup_steps(0.01, total) for total in (1, 3, 1000)] == [1, 1, 10]
    assert warmup_steps(0, 50) == 1
    assert warmup_steps(30, 50) == 30
    assert rates(10, "constant", 4) == [0.25, 0.5, 0.75, 1.0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_schedules_start_at_the_peak_and_end_near_zero(schedule: str) -> None:
    values = rates(200, schedule, 0.05)
    assert max(values) == 1.0
    assert values[10] == pytest.approx(1.0, abs=1e-3)
    assert 0 < values[-1] < 0.03
    assert all(later <= earlier for earlier, later in pairwise(values[10:]))


def test_wsd_is_flat_until_its_last_fifth() -> None:
    values = rates(100, "wsd", 5)
    assert values[4:81] == [1.0] * 77
    assert values[90] == pytest.approx(0.5)


def test_first_budget_reached_ends() -> None:
    """Trap R10: each of max_steps, tokens, minutes and epochs is obeyed."""
    assert total_steps(100, 4, 40, max_steps=7, tokens=10_000, epochs=5) == 7
    assert total_steps(100, 4, 40, max_steps=70, tokens=1050) == 11
    assert total_steps(100, 4, 40, max_steps=70, affordable=9) == 9
    assert total_steps(100, 4, 41, epochs=2) == 21
    assert total_steps(100, 4, 40) == 10, "nothing given: one epoch"


def test_run_obeys_a_token_budget_without_counting_padding(tmp_path: Path) -> None:
    """Trap R10: half of the 128 positions of a step are padding."""
    outcome = tiny_run(tmp_path / "run", half_padding(tiny_job(tmp_path / "run")), max_steps=None, tokens=400)
    assert outcome.state.tokens == 448, "the first multiple of 64 that is at least 400"


def test_run_obeys_a_budget_in_epochs(tmp_path: Path) -> None:
    """Trap R10: two passes over 19 sequences, 4 a step."""
    assert tiny_run(tmp_path / "run", max_steps=None, epochs=2).state.step == 10


def test_minutes_become_steps_once_and_are_read_back(tmp_path: Path) -> None:
    """Trap R10, and nothing automatic twice: the second process does not measure again."""
    run, budget = tmp_path / "run", {"max_steps": 10_000, "minutes": 0.05, "schedule": "constant"}
    budget["checkpoint"] = {"every": 50}
    job = tiny_job(run)
    job.save = lambda place, dtype: place.joinpath("missing", "file").write_text("")  # crash at the first save
    with pytest.raises(FileNotFoundError):
        tiny_run(run, job, **budget)
    first = read_resolved(run)
    assert first is not None
    assert first.step_seconds is not None
    assert 1 <= first.counts[0][1] <= max(1, 3 / first.step_seconds), "three seconds' worth"
    assert len(first.counts) >= 2
    tiny_run(run, **budget)
    second = read_resolved(run)
    assert second is not None
    assert second.counts[: len(first.counts)] == first.counts
    later = {"counts": second.counts, "total_steps": second.total_steps}
    assert second == replace(first, **later), "only steps to come are counted again"
    assert losses(run)[-1][0] == second.total_steps


def test_minutes_are_counted_again_where_warm_up_ends_and_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that were tried took a tenth of what they take later, so the run becomes shorter, once for good."""
    monkeypatch.setattr(budgets, "seconds_per_step", lambda run: 0.1 * seconds_per_step(run))
    run = tmp_path / "run"
    tiny_run(run, max_steps=None, minutes=0.1, lr=1e-3, schedule="linear")
    resolved = read_resolved(run)
    assert resolved is not None
    rows = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    counts = [[row["step"], row["total_steps"]] for row in rows if row["event"] in ("start", "count")]
    assert counts == resolved.counts
    assert len(counts) >= 4
    assert counts[0][1] / 2 > counts[1][1] > counts[1][0] == resolved.warmup
    assert [start for start, _ in counts[2:]] == [a + (total - a) // 2 for a, total in counts[1:-1]]
    rates = [row["lr"] for row in map(json.loads, (run / "metrics.jsonl").open()) if "lr" in row]
    assert len(rates) == resolved.total_steps == counts[-1][1]
    assert rates[resolved.warmup - 1] == max(rates) == 1e-3
    for step, rate in enumerate(rates):
        total = next(total for start, total in reversed(counts) if start <= step)
        assert rate == learning_rate(step, total, 1e-3, "linear", resolved.warmup)


def test_measuring_steps_leaves_the_weights_as_they_were(tmp_path: Path) -> None:
    """The steps taken to price a minute are not training."""
    run = tmp_path / "a"
    timed = tiny_run(run, max_steps=5, minutes=10)
    assert timed.resolved.total_steps == 5
    assert timed.weights_sha256 == tiny_run(tmp_path / "b", tiny_job(tmp_path / "b"), max_steps=5).weights_sha256


def test_schedule_counts_optimizer_steps_not_micro_batches(tmp_path: Path) -> None:
    """Trap R10: accumulating over 1 or 4 sequences at a time gives the same rates."""
    found = []
    for micro in (1, 4):
        tiny_run(tmp_path / str(micro), micro_batch=micro)
        rows = [json.loads(line) for line in (tmp_path / str(micro) / "metrics.jsonl").read_text().splitlines()]
        found.append([row["lr"] for row in rows if "lr" in row])
    assert found[0] == found[1]
    assert len(found[0]) == 12
