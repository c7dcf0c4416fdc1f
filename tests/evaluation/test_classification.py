"""Scores of classes and numbers against scikit-learn and scipy, and intervals against their definitions."""

import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics
from sklearn.calibration import calibration_curve

from hepta.evaluation.classification import (
    confusion_matrix,
    mcnemar,
    score_classes,
    score_numbers,
    show_class_scores,
    wilson,
)


def guesses(rows, classes, seed, skill=0.5):
    generator = np.random.default_rng(seed)
    truth = generator.choice(classes, rows, p=generator.dirichlet(np.ones(classes)))
    logits = generator.normal(size=(rows, classes))
    logits[np.arange(rows), truth] += skill * 3
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return truth, probabilities.argmax(1), probabilities


@pytest.mark.parametrize(("rows", "classes"), [(300, 2), (500, 5), (40, 11), (3, 4)])
def test_every_average_equals_scikit_learns(rows, classes):
    """Also where a class never occurs or is never predicted."""
    truth, predicted, probabilities = guesses(rows, classes, rows)
    scores = score_classes(truth, predicted, [f"c{i}" for i in range(classes)], probabilities)
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(truth, predicted))
    for kind in ("micro", "macro", "weighted"):
        wanted = metrics.precision_recall_fscore_support(truth, predicted, average=kind, zero_division=0)
        assert (scores.precision[kind], scores.recall[kind], scores.f1[kind]) == pytest.approx(wanted[:3])
    assert scores.mcc == pytest.approx(metrics.matthews_corrcoef(truth, predicted))
    every = list(range(classes))
    assert scores.confusion == metrics.confusion_matrix(truth, predicted, labels=every).tolist()
    per_class = metrics.precision_recall_fscore_support(truth, predicted, labels=every, zero_division=0)
    found = np.array([(c.precision, c.recall, c.f1, c.support) for c in scores.classes]).T
    np.testing.assert_allclose(found, per_class)
    assert scores.log_loss == pytest.approx(metrics.log_loss(truth, probabilities, labels=every))


def test_calibration_equals_scikit_learns_curve():
    truth, predicted, probabilities = guesses(2000, 3, 5)
    scores = score_classes(truth, predicted, ["a", "b", "c"], probabilities)
    accuracy, confidence = calibration_curve(truth == predicted, probabilities.max(1), n_bins=15)
    np.testing.assert_allclose([b.accuracy for b in scores.calibration], accuracy)
    np.testing.assert_allclose([b.confidence for b in scores.calibration], confidence)
    assert sum(b.rows for b in scores.calibration) == 2000
    by_hand = sum(b.rows * abs(b.accuracy - b.confidence) for b in scores.calibration) / 2000
    assert scores.ece == pytest.approx(by_hand)
    sure = np.eye(3)[truth]
    assert score_classes(truth, truth, ["a", "b", "c"], sure).ece == 0.0


def test_constant_predictions_have_correlation_zero():
    truth = np.array([0, 1, 1, 0, 1])
    assert score_classes(truth, np.ones(5, int), ["a", "b"]).mcc == metrics.matthews_corrcoef(truth, np.ones(5)) == 0


@pytest.mark.parametrize(("right", "rows"), [(0, 10), (10, 10), (7, 10), (883, 1000)])
def test_the_interval_is_wilsons(right, rows):
    wanted = stats.binomtest(right, rows).proportion_ci(0.95, method="wilson")
    assert wilson(right, rows) == pytest.approx((wanted.low, wanted.high))


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says():
    """200 samples of 200 rows: a 95 % interval misses the macro F1 of a large sample in about 10 of them."""
    whole = guesses(50_000, 3, 1)
    target = metrics.f1_score(whole[0], whole[1], average="macro")
    generator, covered = np.random.default_rng(2), 0
    for _ in range(60):
        chosen = generator.integers(0, 50_000, 200)
        low, high = score_classes(whole[0][chosen], whole[1][chosen], ["a", "b", "c"]).f1_macro_interval
        covered += low <= target <= high
    assert 50 <= covered <= 60


def test_numbers_are_scored_as_scikit_learn_and_scipy_do():
    generator = np.random.default_rng(3)
    truth = np.round(generator.normal(size=300), 1)  # with ties
    predicted = np.round(0.7 * truth + generator.normal(size=300), 1)
    scores = score_numbers(truth, predicted)
    assert scores.mae == pytest.approx(metrics.mean_absolute_error(truth, predicted))
    assert scores.rmse == pytest.approx(metrics.root_mean_squared_error(truth, predicted))
    assert scores.r2 == pytest.approx(metrics.r2_score(truth, predicted))
    assert scores.pearson == pytest.approx(stats.pearsonr(truth, predicted).statistic)
    assert scores.spearman == pytest.approx(stats.spearmanr(truth, predicted).statistic)
    assert scores.mae_interval[0] < scores.mae < scores.mae_interval[1]
    assert scores.rmse_interval[0] < scores.rmse < scores.rmse_interval[1]
    assert score_numbers(truth, np.ones(300)).pearson is None


def test_the_paired_test_is_the_exact_binomial_one():
    truth = np.zeros(2000, int)
    a, b = np.zeros(2000, int), np.zeros(2000, int)
    a[:30], b[20:70] = 1, 1  # a alone wrong in 20 rows, b alone in 40
    assert mcnemar(truth, a, b) == pytest.approx(stats.binomtest(20, 60).pvalue)
    assert mcnemar(truth, a, a) == 1.0


def test_scores_are_shown_by_class_in_straight_columns():
    truth, predicted, probabilities = guesses(200, 2, 9, skill=0.2)
    scores = score_classes(truth, predicted, ["好", "bad"], probabilities)
    lines = show_class_scores(asdict(scores))
    assert len({len(line) + line.count("好") for line in lines}) == 1  # columns stand under each other
    assert confusion_matrix(truth, predicted, 2).sum() == 200
    assert not math.isnan(scores.mcc)
