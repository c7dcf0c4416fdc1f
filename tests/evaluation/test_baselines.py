"""Baselines: what words alone can do, by brute force and by scikit-learn's own pieces."""

from itertools import product

import numpy as np
import pytest

from hepta.catalog.fetch import dataset_path
from hepta.data.tables import load_labelled
from hepta.evaluation.baselines import Part, classification_baselines, regression_baselines, terms


def test_terms_are_words_of_spaced_scripts_and_character_runs_of_han():
    assert terms("Very GOOD film", 2, 3) == ["very", "good", "film", "very good", "good film"]
    assert terms("很好看", 2, 2) == ["很", "好", "看", "很好", "好看"]
    assert sorted(terms("iPhone很好", 1, 2)) == sorted(["iphone", "很", "好", "很好"])
    assert terms("ＡＢ！？…", 1, 1) == ["ab"]
    assert terms("", 2, 3) == []


@pytest.fixture(scope="module")
def topics():
    examples, report = load_labelled(dataset_path("topics-en"), "classify")
    labels = sorted(report["classes"])
    parts = [examples[i::12] for i in (0, 1, 2)]
    return labels, [Part([e.text for e in p], np.array([labels.index(str(e.label)) for e in p])) for p in parts]


def test_each_baseline_beats_the_one_before_on_real_topics(topics):
    labels, (train, val, test) = topics
    found = classification_baselines(train, val, test, labels)
    assert [b.name for b in found] == ["majority", "keyword", "TF-IDF + logistic regression"]
    accuracies = [b.scores.accuracy for b in found]
    assert accuracies == sorted(accuracies)
    assert accuracies[2] > accuracies[0] + 0.3
    commonest = np.bincount(train.labels).argmax()
    assert accuracies[0] == pytest.approx((test.labels == commonest).mean())
    assert all((b.scores.accuracy == (b.predicted == test.labels).mean()) for b in found)


def test_the_keyword_of_a_class_is_the_closest_of_all_terms_by_brute_force():
    texts = ["good film", "good food", "bad film", "bad food today", "not bad", "good good day", "film day", "bad"]
    labels = np.array([1, 1, 0, 0, 0, 1, 1, 0])
    part = Part(texts, labels)
    found = next(b for b in classification_baselines(part, part, part, ["neg", "pos"]) if b.name == "keyword")

    def phi(term, number):
        has = np.array([term in terms(text, 1, 4) for text in texts])
        return np.corrcoef(has, labels == number)[0, 1] if 0 < has.sum() < len(texts) else -1.0

    every = {term for text in texts for term in terms(text, 1, 4)}
    best = [max(phi(term, number) for term in every) for number in (0, 1)]
    named = dict(pair.split(": ") for pair in found.about.split(", "))
    assert [phi(named[name].strip("'"), number) for number, name in enumerate(("neg", "pos"))] == pytest.approx(best)


def test_chinese_is_told_apart_without_a_word_list():
    texts = [f"{a}{b}" for a, b in product(["电影", "这家酒店", "服务员", "味道"], ["很好看推荐", "太差了失望"] * 6)]
    labels = np.array([0, 1] * 24)
    found = classification_baselines(Part(texts, labels), Part(texts, labels), Part(texts, labels), ["pos", "neg"])
    assert found[1].scores.accuracy == found[2].scores.accuracy == 1.0


def test_numbers_have_their_baselines_too():
    generator = np.random.default_rng(0)
    words = ["awful", "poor", "fine", "great"]
    rows = [(int(generator.integers(4)), int(generator.integers(1000))) for _ in range(400)]
    parts = [
        Part([f"a {words[n]} thing number {m}" for n, m in rows[i::3]], np.array([float(n) for n, _ in rows[i::3]]))
        for i in range(3)
    ]
    found = regression_baselines(*parts)
    errors = [b.scores.rmse for b in found]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.5 * errors[0]
    assert abs(found[0].scores.r2) < 0.05  # the mean explains nothing
    groups = {w: parts[0].labels[np.array([w in t for t in parts[0].texts])] for w in words}
    rest = {w: parts[0].labels[np.array([w not in t for t in parts[0].texts])] for w in words}
    best = min(words, key=lambda w: groups[w].var() * len(groups[w]) + rest[w].var() * len(rest[w]))
    assert repr(best) in found[1].about
