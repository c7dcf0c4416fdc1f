"""Counting and smoothing against a dictionary-based reference written straight from the formulas."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from hepta.model.ngram import FALLBACK, Discounts, Table, count_ngrams, estimate_discounts

V, BOS, EOS = 14, 12, 12  # one id begins and ends documents, as in the tokenizers made here; id 13 never occurs


def documents(bos: int = BOS, eos: int = EOS, number: int = 60) -> list[list[int]]:
    """Small documents of skewed tokens, an empty one and a one-token one among them."""
    draw = np.random.default_rng(5)
    lengths = [0, 1, *draw.integers(2, 14, number)]
    return [[bos, *(int(i) for i in np.minimum(draw.geometric(0.3, n), 11) - 1), eos] for n in lengths]


def table(docs: list[list[int]], order: int, vocabulary: int = V) -> Table:
    ends = np.cumsum([len(doc) for doc in docs])
    return Table(count_ngrams(np.concatenate(docs), ends, vocabulary, order))


class Reference:
    """Interpolated modified Kneser–Ney as in Chen & Goodman (1999), one dictionary per order."""

    def __init__(self, docs: list[list[int]], order: int) -> None:
        self.order = order
        raw: Counter[tuple[int, ...]] = Counter()
        beginning: Counter[tuple[int, ...]] = Counter()
        before: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for doc in docs:
            for k in range(1, order + 1):
                for i in range(len(doc) - k + 1):
                    gram = tuple(doc[i : i + k])
                    if i + k - 1 > 0:  # the bos is never predicted
                        raw[gram] += 1
                    if i == 0:
                        beginning[gram] += 1
                    else:
                        before[gram].add(doc[i - 1])
        self.counts: dict[tuple[int, ...], int] = {}
        for gram in raw:
            if len(gram) == order:
                self.counts[gram] = raw[gram]
            else:
                self.counts[gram] = len(before[gram]) + (beginning[gram] if len(gram) > 1 else 0)
        self.taken = {k: self.discounts(k) for k in range(1, order + 1)}

    def discounts(self, k: int) -> tuple[float, ...]:
        t = Counter(a for gram, a in self.counts.items() if len(gram) == k)
        if not all(t[i] for i in (1, 2, 3, 4)):
            return FALLBACK
        y = t[1] / (t[1] + 2 * t[2])
        found = (1 - 2 * y * t[2] / t[1], 2 - 3 * y * t[3] / t[2], 3 - 4 * y * t[4] / t[3])
        return found if all(0 <= d <= i for i, d in enumerate(found, 1)) else FALLBACK

    def probability(self, history: tuple[int, ...], word: int, vocabulary: int) -> float:
        history = history[max(0, len(history) - self.order + 1) :]
        k = len(history) + 1
        following = {g[-1]: a for g, a in self.counts.items() if g[:-1] == history and len(g) == k}
        total = sum(following.values())
        lower = self.probability(history[1:], word, vocabulary) if k > 1 else 1 / vocabulary
        if not total:
            return lower
        off = {w: self.taken[k][min(a, 3) - 1] for w, a in following.items()}
        own = (following[word] - off[word]) / total if word in following else 0.0
        return own + sum(off.values()) / total * lower


@pytest.mark.parametrize(("order", "bos", "eos"), [(1, 12, 12), (2, 12, 12), (3, 12, 12), (5, 12, 12), (4, 12, 13)])
def test_probabilities_equal_the_formulas_for_every_context_and_token(order, bos, eos):
    docs = documents(bos, eos)
    ours, reference = table(docs, order), Reference(docs, order)
    seen = {tuple(doc[max(0, i - 5) : i]) for doc in docs for i in range(1, len(doc))}
    draw = np.random.default_rng(1)
    unseen = {tuple(int(t) for t in draw.integers(0, V, n)) for n in (1, 2, 3, 4, 5) for _ in range(12)}
    histories = sorted(seen | unseen | {()})
    padded = np.array([[-1] * (5 - len(h)) + list(h) for h in histories])
    found = ours.probabilities(padded)
    for row, history in zip(found, histories, strict=True):
        expected = [reference.probability(history, word, V) for word in range(V)]
        np.testing.assert_allclose(row, expected, atol=1e-9, rtol=0)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-9)


def test_the_toy_corpus_uses_estimated_discounts_and_the_fallback():
    used = [taken.estimated for taken in table(documents(), 5).discounts]
    assert any(used)
    assert not all(used)


def test_discounts_are_chen_and_goodmans():
    counts = np.repeat([1, 2, 3, 4, 9], [50, 20, 10, 6, 3])
    y = 50 / 90
    expected = (1 - 2 * y * 20 / 50, 2 - 3 * y * 10 / 20, 3 - 4 * y * 6 / 10)
    assert estimate_discounts(counts) == Discounts(pytest.approx(expected), estimated=True)
    assert estimate_discounts(np.repeat([1, 2, 4], 3)) == Discounts(FALLBACK, estimated=False)
    assert not estimate_discounts(np.repeat([1, 2, 3, 4], [10, 10, 100, 10])).estimated  # D₂ below 0


def test_no_context_crosses_documents():
    docs = [[BOS, 1, 2, EOS], [BOS, 3, 4, EOS]]
    crossing = table(docs, 3)
    after_2, after_unseen = crossing.probabilities(np.array([[2, EOS], [5, EOS]]))  # EOS is BOS: what begins documents
    np.testing.assert_array_equal(after_2, after_unseen)
    assert crossing.sizes[1] == 6  # bos 1, 1 2, 2 eos, bos 3, 3 4, 4 eos; never eos bos


def test_a_real_text_sums_to_one_and_counts_what_a_counter_counts(sanguo_zh):
    text = sanguo_zh.read_text(encoding="utf-8")[:60_000].encode()
    docs = [[256, *part, 256] for part in text.split(b"\n") if part]
    levels = count_ngrams(np.concatenate(docs), np.cumsum([len(d) for d in docs]), 320, 5)
    grams = Counter(tuple(d[i : i + 5]) for d in docs for i in range(len(d) - 4))
    assert len(levels[4].tokens) == len(grams)
    assert int(levels[4].counts.sum()) == sum(grams.values())
    made = Table(levels)
    histories = np.array([d[i : i + 4] for d in docs for i in range(len(d) - 4)][:512])
    np.testing.assert_allclose(made.probabilities(histories).sum(1), 1, atol=1e-9)
