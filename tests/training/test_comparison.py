"""Promises of ``hepta compare RUN_A RUN_B``: noise is told from difference, and both kinds of noise are named."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tiny import tiny_run

from hepta.config import HeptaError, build
from hepta.training.comparison import Curve, at_equal, compare_sides, text_interval, welch
from hepta.training.config import RunsConfig
from hepta.training.held_out import read_documents


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds at a good rate, three at one too small to learn; the first of them twice."""
    folder = tmp_path_factory.mktemp("runs")
    keys = {"max_steps": 6, "eval": {"every": 3, "tokens": 512}, "checkpoint": {"every": 6}}
    for seed in (7, 8, 9):
        tiny_run(folder / f"good{seed}", seed=seed, weight_decay=0.1 * seed, **keys)
        tiny_run(folder / f"slow{seed}", seed=seed, weight_decay=0.1 * seed, lr=1e-4, **keys)
    tiny_run(folder / "again", seed=7, weight_decay=0.7, **keys)
    return folder


def sides(folder: Path, *words: str) -> RunsConfig:
    return build(RunsConfig, {"runs": [",".join(str(folder / name) for name in word.split(",")) for word in words]})


def test_a_real_difference_is_beyond_both_kinds_of_noise(runs: Path) -> None:
    found = compare_sides(sides(runs, "good7,good8,good9", "slow7,slow8,slow9"))
    other = found.others[0]
    assert found.unit == "bits per byte"
    assert other.difference > 0
    assert other.text_interval is not None
    assert other.seed_interval is not None
    assert other.text_interval[0] < other.difference < other.text_interval[1]
    assert other.seed_interval[0] > 0
    assert other.p_value is not None
    assert other.p_value < 0.05
    assert other.verdict.startswith("worse by")
    assert "more than the noise of the held-out text and the seed" in other.verdict


def test_the_same_run_twice_differs_by_nothing(runs: Path) -> None:
    other = compare_sides(sides(runs, "good7", "again")).others[0]
    assert other.difference == 0
    assert other.text_interval == (0, 0)
    assert other.verdict.startswith("no difference beyond the noise of the held-out text")


def test_one_run_a_side_says_that_seeds_are_not_known(runs: Path) -> None:
    other = compare_sides(sides(runs, "good7", "slow7")).others[0]
    assert other.seed_interval is None
    assert "another seed may say otherwise" in other.verdict


def test_final_scores_are_those_of_the_manifest_and_of_the_documents(runs: Path) -> None:
    found = compare_sides(sides(runs, "good7", "slow7"))
    documents = read_documents(runs / "good7")
    bits = sum(nats for nats, _, _ in documents.values()) / math.log(2) / sum(size for _, _, size in documents.values())
    assert found.first.scores == [pytest.approx(bits, rel=1e-9)]


def test_intervals_cover_what_they_promise() -> None:
    """500 pairs of runs without a difference: the 95 % interval over documents holds 0 about 95 times in 100."""
    generator, held = np.random.default_rng(5), 0
    for _ in range(500):
        hard = generator.gamma(4, 100, 60)
        a, b = (hard + generator.normal(0, 5, 60) for _ in range(2))
        one, two = ({f"d{i}": (float(x), 10, 400) for i, x in enumerate(side)} for side in (a, b))
        low, high = text_interval([one], [two], list(one), True)
        held += low <= 0 <= high
    assert 0.91 <= held / 500 <= 0.98


def test_welch_is_scipys_interval_from_its_formula() -> None:
    a, b = [1.0, 1.2, 1.1], [1.5, 1.4, 1.9, 1.6]
    interval, chance = welch(a, b)
    va, vb = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 4
    freedom = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 3)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(va + vb)
    middle = np.mean(b) - np.mean(a)
    assert interval == pytest.approx((middle - half, middle + half))
    assert chance == pytest.approx(2 * stats.t.sf(middle / math.sqrt(va + vb), freedom))
    assert welch([1.0], [2.0, 3.0]) == (None, None)


def test_scores_at_equal_steps_tokens_and_time_lie_on_the_curves() -> None:
    a = Curve("a", [0, 10, 20], [0, 100, 200], [0, 1, 2], [9, 5, 3], True)
    b = Curve("b", [0, 10], [0, 400], [0, 4], [9, 4], True)
    assert at_equal([a], [b], "step") == (10, 5, 4)
    assert at_equal([a], [b], "tokens") == (200, 3, pytest.approx(6.5))
    assert at_equal([a], [b], "seconds") == (2, 3, pytest.approx(6.5))


def test_runs_scored_on_other_text_are_refused(runs: Path, tmp_path: Path) -> None:
    from tiny import ByteOrder, tiny_job

    class Elsewhere(ByteOrder):
        def where(self, n: int) -> list[str]:
            return [f"other-{self.index(n)}"] * 2

    job = tiny_job(tmp_path / "other")
    job.held_out = Elsewhere(32, 8, seed=9)
    tiny_run(tmp_path / "other", job, max_steps=2)
    config = build(RunsConfig, {"runs": [str(runs / "good7"), str(tmp_path / "other")]})
    with pytest.raises(HeptaError, match="they hold out different text"):
        compare_sides(config)


def test_the_command_tells_runs_from_models_and_writes_a_page(runs: Path, tmp_path: Path, cli) -> None:
    good, slow = (",".join(str(runs / f"{kind}{seed}") for seed in (7, 8, 9)) for kind in ("good", "slow"))
    found = cli("compare", good, slow, "--output", tmp_path / "page")
    assert found.code == 0, found.err
    assert "B is worse by" in found.out
    assert "Welch, 3 and 3 runs" in found.out
    page = (tmp_path / "page" / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "B is worse by" in page
    again = cli("compare", good, slow, "--output", tmp_path / "page", "--json")
    assert json.loads(again.out)["others"][0]["side"]["runs"][0].endswith("slow7")
    assert cli("compare", runs / "good7", tmp_path, "--json").code == 2, "no run, and no model either"
