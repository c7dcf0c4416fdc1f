"""``hepta compare RUN_A RUN_B``: whether two ways of training differ by more than noise.

Two kinds of noise, told apart. *Which text was held out*: the same documents are drawn again, paired, so what all find
hard cancels out. *Which seed*: several runs a side, Welch's t over their scores; one run a side says nothing about it.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hepta.config import HeptaError
from hepta.training.config import RunsConfig
from hepta.training.held_out import read_documents
from hepta.training.metrics import METRICS, read_rows
from hepta.training.resolve import RECIPE

RESAMPLES = 2000
SEED = 7  # of the bootstrap
AXES = ("step", "tokens", "seconds")


@dataclass(frozen=True)
class Curve:
    """Held-out scores of one run as it trained: bits per byte, or nats per token where there are none."""

    name: str
    step: list[float]
    tokens: list[float]
    seconds: list[float]
    score: list[float]
    in_bytes: bool  # the score is bits per byte


@dataclass
class Side:
    """One way of training: its runs, and their final scores."""

    runs: list[str]
    scores: list[float]
    mean: float


@dataclass
class Difference:
    """A side beside the first one. Differences are its score minus the first's: below 0 it is better.

    Attributes:
        text_interval: 95 %, over held-out documents drawn again; None where no documents are known.
        documents: how many both sides scored.
        seed_interval, p_value: Welch's t over runs; None with fewer than two runs on a side.
        equal: axis → (where, the first side's score, this side's) at the largest value that all runs reached.
        verdict: in words.
    """

    side: Side
    difference: float
    text_interval: tuple[float, float] | None
    documents: int
    seed_interval: tuple[float, float] | None
    p_value: float | None
    equal: dict[str, tuple[float, float, float]]
    verdict: str


@dataclass
class RunsResult:
    """The first side, and each other beside it."""

    unit: str
    first: Side
    others: list[Difference]
    curves: list[list[Curve]]  # of each side
    notes: list[str] = field(default_factory=list)
    output: str | None = None


def compare_sides(config: RunsConfig) -> RunsResult:
    """Compare runs by what they left; nothing is computed again and nothing is written.

    Raises:
        HeptaError: a word that is no run, a run that was not evaluated, runs scored on different text.
    """
    curves = [[read_curve(Path(run)) for run in side] for side in config.runs]
    everyone = [curve for side in curves for curve in side]
    in_bytes = all(curve.in_bytes for curve in everyone)
    if not in_bytes:
        curves = [[read_curve(Path(run), in_bytes=False) for run in side] for side in config.runs]
        everyone = [curve for side in curves for curve in side]
    notes: list[str] = []
    documents = [[read_documents(Path(run)) for run in side] for side in config.runs]
    shared = shared_documents([one for side in documents for one in side], in_bytes, notes)
    sides = [_side(side, names) for side, names in zip(curves, config.runs, strict=True)]
    others = [
        _difference(sides[0], sides[n], curves[0], curves[n], documents[0], documents[n], shared, in_bytes)
        for n in range(1, len(sides))
    ]
    return RunsResult("bits per byte" if in_bytes else "nats per token", sides[0], others, curves, notes)


def read_curve(run: Path, in_bytes: bool | None = None) -> Curve:
    """A run's held-out scores; the last of a step's evaluations counts.

    Args:
        run: the run directory.
        in_bytes: bits per byte, or nats per token; None: the former where every evaluation has it.
    """
    if not (run / METRICS).is_file() or not (run / RECIPE).is_file():
        raise HeptaError(f"{run}: no training run ({METRICS} and {RECIPE} are missing); compare takes run directories")
    rows = read_rows(run / METRICS)
    where = {row["step"]: (row["tokens_seen"], row["seconds"]) for row in rows if "tokens_seen" in row}
    where[0] = (0, 0.0)
    evaluated = {row["step"]: row for row in rows if row.get("val_loss") is not None and row["step"] in where}
    if len(evaluated) < 2:
        raise HeptaError(f"{run}: has no two evaluations yet; give it held-out data, or wait")
    if in_bytes is None:
        in_bytes = all(isinstance((row.get("val_bpb") or {}).get("all"), float) for row in evaluated.values())
    steps = sorted(evaluated)
    scores = [evaluated[s]["val_bpb"]["all"] if in_bytes else evaluated[s]["val_loss"] for s in steps]
    tokens, seconds = ([float(where[s][part]) for s in steps] for part in (0, 1))
    return Curve(str(run), [float(s) for s in steps], tokens, seconds, scores, in_bytes)


Documents = dict[str, tuple[float, int, int]]  # nats, tokens, bytes


def shared_documents(runs: Sequence[Documents], in_bytes: bool, notes: list[str]) -> list[str]:
    """Names of the held-out documents that every run scored over the same bytes (or tokens), in order.

    Raises:
        HeptaError: they scored different documents, so their scores say nothing about each other.
    """
    if not all(runs):
        notes.append("not every run has scores by document, so nothing is known of the noise of the held-out text")
        return []
    part = 2 if in_bytes else 1
    names = sorted(set.intersection(*(set(one) for one in runs)))
    same = [name for name in names if len({one[name][part] for one in runs}) == 1]
    most = max(len(one) for one in runs)
    if len(same) < 0.5 * most:
        found = f"of {most} held-out documents {len(same)} are scored by all"
        raise HeptaError(f"runs to compare: {found}; they hold out different text, so score each with hepta eval")
    if len(same) < most:
        notes.append(f"{len(same)} of {most} held-out documents are scored by all; intervals are over those")
    return same


def _side(curves: Sequence[Curve], names: Sequence[str]) -> Side:
    scores = [curve.score[-1] for curve in curves]
    return Side(list(names), scores, statistics.fmean(scores))


def _difference(
    first: Side, other: Side, a: Sequence[Curve], b: Sequence[Curve], documents_a: Sequence[Documents],
    documents_b: Sequence[Documents], shared: Sequence[str], in_bytes: bool,
) -> Difference:  # fmt: skip
    text = text_interval(documents_a, documents_b, shared, in_bytes) if len(shared) > 1 else None
    seeds, chance = welch(first.scores, other.scores)
    difference = other.mean - first.mean
    equal = {axis: at for axis in AXES if (at := at_equal(a, b, axis)) is not None}
    verdict = _verdict(difference, text, seeds, "bits per byte" if in_bytes else "nats per token")
    return Difference(other, difference, text, len(shared), seeds, chance, equal, verdict)


def text_interval(
    a: Sequence[Documents], b: Sequence[Documents], names: Sequence[str], in_bytes: bool
) -> tuple[float, float]:
    """95 % interval of b − a over documents drawn again: each side's nats are the mean over its runs (paired)."""
    part, scale = (2, math.log(2)) if in_bytes else (1, 1.0)
    nats = [np.array([[run[name][0] for name in names] for run in side]).mean(0) for side in (a, b)]
    more, size = (nats[1] - nats[0]) / scale, np.array([a[0][name][part] for name in names], np.float64)
    drawn = np.random.default_rng(SEED).integers(0, len(names), (RESAMPLES, len(names)))
    low, high = np.quantile(more[drawn].sum(1) / size[drawn].sum(1), (0.025, 0.975))
    return float(low), float(high)


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[tuple[float, float] | None, float | None]:
    """95 % interval of mean(b) − mean(a) and its p-value by Welch's t; None, None with fewer than two on a side."""
    if min(len(a), len(b)) < 2:
        return None, None
    from scipy.stats import ttest_ind

    found: Any = ttest_ind(b, a, equal_var=False)
    around = found.confidence_interval(0.95)
    if not math.isfinite(found.pvalue):  # all runs of a side are equal
        apart = statistics.fmean(b) - statistics.fmean(a)
        return (apart, apart), 0.0 if apart else 1.0
    return (float(around.low), float(around.high)), float(found.pvalue)


def at_equal(a: Sequence[Curve], b: Sequence[Curve], axis: str) -> tuple[float, float, float] | None:
    """The largest value of an axis that all runs reached, and each side's mean score there (between two evaluations:
    on the line through them)."""
    where = min(getattr(curve, axis)[-1] for curve in (*a, *b))

    def mean(side: Sequence[Curve]) -> float:
        return statistics.fmean(float(np.interp(where, getattr(curve, axis), curve.score)) for curve in side)

    return (where, mean(a), mean(b)) if where > 0 else None


def _verdict(difference: float, text: tuple[float, float] | None, seeds: tuple[float, float] | None, unit: str) -> str:
    word = "better" if difference < 0 else "worse"
    amount = f"{word} by {abs(difference):.4f} {unit}"
    known = {"the held-out text": text, "the seed": seeds}
    beyond = {name: pair[0] > 0 or pair[1] < 0 for name, pair in known.items() if pair is not None}
    if not beyond:
        return f"{amount}; nothing is known of the noise: give several runs a side, A1,A2 B1,B2"
    if not all(beyond.values()):
        within = " and ".join(name for name, clear in beyond.items() if not clear)
        return f"no difference beyond the noise of {within} ({amount})"
    told = f"{amount}, more than the noise of {' and '.join(beyond)}"
    return told if seeds else told + "; another seed may say otherwise: give several runs a side, A1,A2 B1,B2"
