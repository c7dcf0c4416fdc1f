"""Scores of predicted classes and numbers, each with an interval, and what they mean beside another's predictions.

All values equal scikit-learn's where it has them (tests hold them together); precision of nothing is 0, as there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hepta.console import terminal_width

Z95 = 1.959963984540054  # standard normal quantile of 0.975
CALIBRATION_BINS = 15
RESAMPLES = 1000
SEED = 7  # of the bootstrap
Averages = dict[str, float]  # "micro", "macro", "weighted"


@dataclass(frozen=True)
class ClassScore:
    """One class: how much of what was called so is so, and how much of it was found."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int  # rows of this class
    predicted: int  # rows called so


@dataclass(frozen=True)
class CalibrationBin:
    """Rows whose highest probability lies in (low, high]: what the model believed, and how often it was right."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class ClassScores:
    """Scores of predicted classes.

    Attributes:
        accuracy_interval: Wilson, 95 %.
        precision, recall, f1: micro, macro and weighted; over the classes that occur or are predicted.
        f1_macro_interval: bootstrap of rows, 95 %.
        mcc: Matthews' correlation; 0 is guessing, 1 perfect.
        confusion: rows are true classes, columns predicted ones, in the order of ``labels``.
        ece: expected calibration error of the highest probability; None where there are no probabilities.
    """

    rows: int
    labels: list[str]
    accuracy: float
    accuracy_interval: tuple[float, float]
    precision: Averages
    recall: Averages
    f1: Averages
    f1_macro_interval: tuple[float, float]
    mcc: float
    classes: list[ClassScore]
    confusion: list[list[int]]
    log_loss: float | None = None
    ece: float | None = None
    calibration: list[CalibrationBin] = field(default_factory=list)


@dataclass(frozen=True)
class NumberScores:
    """Scores of predicted numbers; intervals are bootstraps of rows, 95 %."""

    rows: int
    mae: float
    mae_interval: tuple[float, float]
    rmse: float
    rmse_interval: tuple[float, float]
    r2: float
    pearson: float | None  # None where one side is constant
    spearman: float | None


def score_classes(
    truth: np.ndarray, predicted: np.ndarray, labels: Sequence[str], probabilities: np.ndarray | None = None
) -> ClassScores:
    """Score predicted classes.

    Args:
        truth: class numbers (N,).
        predicted: class numbers (N,).
        labels: name of each class (C).
        probabilities: of each class (N, C), for calibration and log-loss.
    """
    matrix = confusion_matrix(truth, predicted, len(labels))
    precision, recall, f1 = _per_class(matrix)
    support, called = matrix.sum(1), matrix.sum(0)
    right, rows = int(matrix.trace()), len(truth)
    macro = _resample(rows, lambda chosen: macro_f1(confusion_matrix(truth[chosen], predicted[chosen], len(labels))))
    belief = {}
    if probabilities is not None:
        bins = calibration_bins(truth, predicted, probabilities.max(1))
        picked = np.clip(probabilities[np.arange(rows), truth], np.finfo(np.float64).eps, 1.0)
        belief = {
            "calibration": bins, "ece": sum(b.rows * abs(b.confidence - b.accuracy) for b in bins) / rows,
            "log_loss": float(-np.log(picked).mean()),
        }  # fmt: skip
    return ClassScores(
        rows=rows, labels=list(labels), accuracy=right / rows, accuracy_interval=wilson(right, rows),
        precision=_averages(matrix, precision), recall=_averages(matrix, recall), f1=_averages(matrix, f1),
        f1_macro_interval=macro, mcc=_mcc(matrix), confusion=matrix.tolist(),
        classes=[
            ClassScore(name, float(p), float(r), float(f), int(s), int(c))
            for name, p, r, f, s, c in zip(labels, precision, recall, f1, support, called, strict=True)
        ],
        **belief,
    )  # fmt: skip


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts (C, C): rows are true classes, columns predicted ones."""
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def _per_class(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    right, support, called = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    precision = right / np.maximum(called, 1)
    recall = right / np.maximum(support, 1)
    return precision, recall, 2 * right / np.maximum(support + called, 1)


def _averages(matrix: np.ndarray, values: np.ndarray) -> Averages:
    support, called = matrix.sum(1), matrix.sum(0)
    seen = support + called > 0
    return {
        "micro": float(matrix.trace() / matrix.sum()),  # with one class per row all three are the accuracy
        "macro": float(values[seen].mean()),
        "weighted": float((values * support).sum() / support.sum()),
    }


def macro_f1(matrix: np.ndarray) -> float:
    """Mean F1 over the classes of a confusion matrix (C, C) that occur or are predicted."""
    seen = matrix.sum(0) + matrix.sum(1) > 0
    return float(_per_class(matrix)[2][seen].mean())


def _mcc(matrix: np.ndarray) -> float:
    """Gorodkin's R_K, which is Matthews' correlation for two classes; 0 where one side is constant."""
    counts = matrix.astype(np.float64)
    support, called, rows = counts.sum(1), counts.sum(0), counts.sum()
    covariance = counts.trace() * rows - support @ called
    spread = (rows**2 - called @ called) * (rows**2 - support @ support)
    return float(covariance / math.sqrt(spread)) if spread > 0 else 0.0


def wilson(right: int, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927): honest for few rows and near 0 and 1."""
    share, scale = right / rows, 1 + Z95**2 / rows
    middle = share + Z95**2 / (2 * rows)
    half = Z95 * math.sqrt(share * (1 - share) / rows + Z95**2 / (4 * rows**2))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def _resample(rows: int, score: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """2.5 % and 97.5 % quantiles of a score over rows drawn again with replacement."""
    generator = np.random.default_rng(SEED)
    values = [score(generator.integers(0, rows, rows)) for _ in range(RESAMPLES)]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def calibration_bins(truth: np.ndarray, predicted: np.ndarray, confidence: np.ndarray) -> list[CalibrationBin]:
    """The reliability curve over 15 bins of equal width (Guo et al. 2017); empty bins are left out."""
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    place = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    right = truth == predicted
    return [
        CalibrationBin(
            float(edges[i]), float(edges[i + 1]), int((place == i).sum()), float(confidence[place == i].mean()),
            float(right[place == i].mean()),
        )
        for i in range(CALIBRATION_BINS) if (place == i).any()
    ]  # fmt: skip


def score_numbers(truth: np.ndarray, predicted: np.ndarray) -> NumberScores:
    """Score predicted numbers, both (N,)."""
    error = predicted - truth
    spread = float(((truth - truth.mean()) ** 2).sum())
    rows = len(truth)
    return NumberScores(
        rows=rows,
        mae=float(np.abs(error).mean()), mae_interval=_resample(rows, lambda c: float(np.abs(error[c]).mean())),
        rmse=_rms(error), rmse_interval=_resample(rows, lambda c: _rms(error[c])),
        r2=1 - float((error**2).sum()) / spread if spread else 0.0,
        pearson=_correlation(truth, predicted), spearman=_correlation(_ranks(truth), _ranks(predicted)),
    )  # fmt: skip


def _rms(error: np.ndarray) -> float:
    return math.sqrt(float((error**2).mean()))


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a**2).sum()) * float((b**2).sum()))
    return float((a * b).sum()) / scale if scale > 0 else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


def mcnemar(truth: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """How likely so uneven a split of the rows that only one of two predictors got right is by chance.

    Exact two-sided binomial test (McNemar 1947) over the rows on which exactly one of them is right.
    """
    only_a = int(((a == truth) & (b != truth)).sum())
    only_b = int(((b == truth) & (a != truth)).sum())
    rows = only_a + only_b
    tail = 0.0
    for k in range(min(only_a, only_b) + 1):
        ways = math.lgamma(rows + 1) - math.lgamma(k + 1) - math.lgamma(rows - k + 1)
        tail += math.exp(ways - rows * math.log(2))
    return min(1.0, 2 * tail)


def show_class_scores(scores: Mapping[str, Any]) -> list[str]:
    """A table by class and the averages, as lines; ``scores`` is ``asdict`` of ``ClassScores``."""
    width = max(9, *(terminal_width(c["label"]) for c in scores["classes"]))
    lines = [f"{'':{width}}  precision  recall     f1    rows"]
    for c in sorted(scores["classes"], key=lambda c: -c["support"]):
        name = c["label"] + " " * (width - terminal_width(c["label"]))
        lines.append(f"{name}  {c['precision']:9.3f}  {c['recall']:6.3f}  {c['f1']:5.3f}  {c['support']:6,}")
    for kind in ("macro", "weighted"):
        values = [scores[name][kind] for name in ("precision", "recall", "f1")]
        lines.append(f"{kind:{width}}  {values[0]:9.3f}  {values[1]:6.3f}  {values[2]:5.3f}  {scores['rows']:6,}")
    return lines
