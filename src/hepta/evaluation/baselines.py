"""What can be had without a neural network, on the same splits: the least a trained model must beat."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hepta.evaluation.classification import ClassScores, NumberScores, score_classes, score_numbers

_UNSPACED = "\u3400-\u9fff\uf900-\ufaff\u3040-\u30ff"  # Han and kana
_RUNS = re.compile(f"[{_UNSPACED}]+|(?:(?![{_UNSPACED}])[^\\W_])+")
_FIRST_UNSPACED = re.compile(f"[{_UNSPACED}]")
MOST_TERMS = 200_000
STRENGTHS = (1.0, 10.0, 100.0)  # inverse regularisation of the logistic regression, chosen on the validation split
PENALTIES = (0.3, 1.0, 3.0, 10.0)  # of the ridge


@dataclass(frozen=True)
class Part:
    """Texts of one split with their labels: class numbers (N,) int64, or numbers (N,) float64."""

    texts: Sequence[str]
    labels: np.ndarray


@dataclass(frozen=True)
class Baseline:
    """One simple method: its scores on the test split, and what it predicted there."""

    name: str
    about: str  # what it learnt, in words
    scores: ClassScores | NumberScores
    predicted: np.ndarray


def terms(text: str, words: int, characters: int) -> list[str]:
    """Runs of up to ``words`` words of spaced scripts, and of up to ``characters`` Han or kana."""
    found: list[str] = []
    spaced: list[str] = []
    for run in _RUNS.findall(unicodedata.normalize("NFKC", text).casefold()):
        if _FIRST_UNSPACED.match(run):
            found += [run[i : i + n] for n in range(1, characters + 1) for i in range(len(run) - n + 1)]
        else:
            spaced.append(run)
    for n in range(1, words + 1):
        found += [" ".join(spaced[i : i + n]) for i in range(len(spaced) - n + 1)]
    return found


def _vectorizer(kind: str, texts: Sequence[str], words: int, characters: int) -> Any:
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    def analyzer(text: str) -> list[str]:
        return terms(text, words, characters)

    least = 2 if len(texts) >= 200 else 1
    made = {"analyzer": analyzer, "min_df": least, "max_features": MOST_TERMS}
    return TfidfVectorizer(sublinear_tf=True, **made) if kind == "tfidf" else CountVectorizer(binary=True, **made)


def classification_baselines(train: Part, val: Part, test: Part, labels: Sequence[str]) -> list[Baseline]:
    """The most frequent class, the best single term per class, and TF-IDF with logistic regression.

    Args:
        labels: name of each class (C).
    """
    counts = np.bincount(train.labels, minlength=len(labels))
    majority = np.full(len(test.labels), counts.argmax())
    called = f"always {labels[int(counts.argmax())]!r}"
    found = [Baseline("majority", called, score_classes(test.labels, majority, labels), majority)]
    found.append(_keywords(train, test, labels))
    found.append(_logistic(train, val, test, labels))
    return found


def _keywords(train: Part, test: Part, labels: Sequence[str]) -> Baseline:
    """Each class by the term that goes with it most closely in training (φ, the correlation of the two yes-or-nos).

    Where terms of several classes occur, the most precise one decides; where none does, the most frequent class.
    """
    vectorizer = _vectorizer("count", train.texts, 1, 4)
    present = vectorizer.fit_transform(train.texts)
    names = vectorizer.get_feature_names_out()
    counts = np.bincount(train.labels, minlength=len(labels))
    document_counts = np.asarray(present.sum(0)).ravel()
    chosen, precision = [], []
    for number in range(len(labels)):
        hits = np.asarray(present[train.labels == number].sum(0)).ravel()
        rows, size = len(train.labels), counts[number]
        spread = np.sqrt(document_counts * (rows - document_counts) * size * (rows - size)).clip(1e-9)
        best = int(((rows * hits - document_counts * size) / spread).argmax())
        chosen.append(best)
        precision.append(hits[best] / document_counts[best])
    there = vectorizer.transform(test.texts)[:, chosen].toarray() * np.array(precision)
    predicted = np.where(there.max(1) > 0, there.argmax(1), counts.argmax())
    told = ", ".join(f"{labels[i]}: {names[term]!r}" for i, term in enumerate(chosen[:8]))
    return Baseline("keyword", told, score_classes(test.labels, predicted, labels), predicted)


def _logistic(train: Part, val: Part, test: Part, labels: Sequence[str]) -> Baseline:
    from sklearn.linear_model import LogisticRegression

    vectorizer = _vectorizer("tfidf", train.texts, 2, 3)
    seen, held, judged = (f(p.texts) for f, p in (
        (vectorizer.fit_transform, train), (vectorizer.transform, val), (vectorizer.transform, test),
    ))  # fmt: skip
    fitted = []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=300)
        model.fit(seen, train.labels)
        fitted.append((float(np.mean(model.predict(held) == val.labels)), -strength, model))
    _, strength, model = max(fitted, key=lambda item: item[:2])
    probabilities = np.zeros((len(test.labels), len(labels)))
    probabilities[:, model.classes_] = model.predict_proba(judged)
    predicted = model.predict(judged)
    told = f"{seen.shape[1]:,} terms, C = {-strength:g} (chosen on the validation split)"
    return Baseline(
        "TF-IDF + logistic regression", told, score_classes(test.labels, predicted, labels, probabilities), predicted
    )


def regression_baselines(train: Part, val: Part, test: Part) -> list[Baseline]:
    """The mean, the best single term (a mean with it and one without), and TF-IDF with ridge regression."""
    mean = np.full(len(test.labels), train.labels.mean())
    found = [Baseline("mean", f"always {mean[0]:.4g}", score_numbers(test.labels, mean), mean)]
    found.append(_keyword_mean(train, test))
    found.append(_ridge(train, val, test))
    return found


def _keyword_mean(train: Part, test: Part) -> Baseline:
    vectorizer = _vectorizer("count", train.texts, 1, 4)
    present = vectorizer.fit_transform(train.texts)
    rows, total = len(train.labels), float(train.labels.sum())
    counts = np.asarray(present.sum(0)).ravel().astype(np.float64)
    sums = np.asarray(train.labels @ present).ravel()
    rest = np.maximum(rows - counts, 1)
    explained = sums**2 / counts + (total - sums) ** 2 / rest  # squared error is a constant minus this
    best = int(np.where(counts < rows, explained, -np.inf).argmax()) if (counts < rows).any() else 0
    means = (total - sums[best]) / rest[best], sums[best] / counts[best]
    there = np.asarray(vectorizer.transform(test.texts)[:, [best]].todense()).ravel() > 0
    predicted = np.where(there, means[1], means[0])
    told = f"{means[1]:.4g} with {vectorizer.get_feature_names_out()[best]!r}, else {means[0]:.4g}"
    return Baseline("keyword", told, score_numbers(test.labels, predicted), predicted)


def _ridge(train: Part, val: Part, test: Part) -> Baseline:
    from sklearn.linear_model import Ridge

    vectorizer = _vectorizer("tfidf", train.texts, 2, 3)
    seen, held = vectorizer.fit_transform(train.texts), vectorizer.transform(val.texts)
    fitted = []
    for penalty in PENALTIES:
        model = Ridge(alpha=penalty, solver="sparse_cg")
        model.fit(seen, train.labels)
        fitted.append((float(((model.predict(held) - val.labels) ** 2).mean()), penalty, model))
    _, penalty, model = min(fitted, key=lambda item: item[:2])
    predicted = model.predict(vectorizer.transform(test.texts))
    told = f"{seen.shape[1]:,} terms, penalty {penalty:g} (chosen on the validation split)"
    return Baseline("TF-IDF + ridge regression", told, score_numbers(test.labels, predicted), predicted)
