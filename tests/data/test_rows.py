"""The order of rows: each once an epoch, batches of one length, exact resume; changed copies are pure functions."""

from collections import Counter

import numpy as np
import pytest

from hepta.catalog.fetch import dataset_path
from hepta.data.augment import HAN_NEGATIONS, Augmenter
from hepta.data.rows import ROUND, RowData, RowOrder
from hepta.data.tables import load_labelled

PAD = 0


@pytest.fixture(scope="module")
def data():
    """Rows of very different lengths; ids are the row number, then PAD itself, which must not be taken for padding."""
    lengths = np.random.default_rng(0).integers(2, 200, 501)
    ids = [np.array([i + 1] + [PAD] * (n - 1), np.uint32) for i, n in enumerate(lengths)]
    count = len(ids)
    return RowData(
        [f"text {i}" for i in range(count)], ids, np.arange(count), [f"r{i}" for i in range(count)], ["en"] * count
    )


@pytest.mark.parametrize("size", [1, 8, 32, 1000])
def test_every_row_comes_once_in_each_epoch(data, size):
    order = RowOrder(data, size, 7, PAD)
    for epoch in range(3):
        seen = [order.row(epoch * 501 + i)[0] for i in range(501)]
        assert sorted(seen) == list(range(501))
    first, second = ([order.row(e * 501 + i)[0] for i in range(501)] for e in (0, 1))
    assert first != second


def test_a_step_holds_rows_of_one_length_and_is_padded_to_its_own_longest(data):
    order = RowOrder(data, 16, 7, PAD)
    padded = real = 0
    for step in range(3 * 501 // 16):  # across the edges of epochs
        batch = order.batch(step * 16, 16)
        assert batch["input_ids"].shape[1] == -(-batch["lengths"].max() // ROUND) * ROUND
        padded += batch["input_ids"].size
        real += batch["lengths"].sum()
    assert real / padded > 0.85
    plain = np.random.default_rng(1).permutation(order.lengths)[: 31 * 16].reshape(-1, 16)
    assert plain.sum() / (plain.max(1) * 16).sum() < 0.6  # what it would be without sorting


def test_a_batch_is_a_function_of_its_number_alone(data):
    """So a resumed run meets the same rows; also when another order was read before, and in any cut."""
    order, again = RowOrder(data, 16, 7, PAD), RowOrder(data, 16, 7, PAD)
    again.batch(4000, 16)
    for start in (0, 480, 500, 2004):
        one, two = order.batch(start, 16), again.batch(start, 16)
        assert all(np.array_equal(one[key], two[key]) for key in one)
        halves = [again.batch(start, 8), again.batch(start + 8, 8)]
        assert np.array_equal(one["labels"], np.concatenate([h["labels"] for h in halves]))
        assert np.array_equal(one["lengths"], np.concatenate([h["lengths"] for h in halves]))
    assert order.digest == again.digest != RowOrder(data, 16, 8, PAD).digest
    assert not np.array_equal(order.batch(0, 16)["labels"], RowOrder(data, 16, 8, PAD).batch(0, 16)["labels"])


def test_labels_lengths_and_names_belong_to_their_ids(data):
    order = RowOrder(data, 16, 7, PAD)
    batch = order.batch(320, 16)
    assert np.array_equal(batch["input_ids"][:, 0], batch["labels"] + 1)
    assert batch["lengths"].tolist() == [len(data.ids[label]) for label in batch["labels"]]
    assert [order.where(320 + i) for i in range(16)] == [[f"r{label}"] for label in batch["labels"]]
    assert order.count_tokens(320, [batch]) == batch["lengths"].sum()
    scoring = RowOrder(data, 16, 7, PAD, shuffle=False)
    assert scoring.batch(0, 501)["labels"].tolist() == list(range(501))


@pytest.fixture(scope="module")
def texts():
    english = [e.text for e in load_labelled(dataset_path("topics-en"), "classify")[0][:200]]
    return (
        english
        + [
            "这家店的菜味道不错，就是上菜太慢了",
            "电影拍得很好，但是结尾没有意思",
            "价格便宜，质量也还可以",
            "房间干净，服务热情",
        ]
        * 25
    )


def test_changed_copies_are_pure_functions_and_differ_by_epoch(texts):
    augmenter, again, other = Augmenter(texts, 7), Augmenter(texts, 7), Augmenter(texts, 8)
    assert [augmenter.change(t, 0, i) for i, t in enumerate(texts)] == [
        again.change(t, 0, i) for i, t in enumerate(texts)
    ]
    for i, text in enumerate(texts[:40]):
        changes = {augmenter.change(text, epoch, i) for epoch in range(6)}
        assert len(changes) > 3
        assert len(changes - {other.change(text, epoch, i) for epoch in range(6)}) > 3


def test_a_changed_copy_keeps_most_of_the_text_and_all_its_negations(texts):
    augmenter = Augmenter(texts, 7)
    for i, text in enumerate(texts):
        changed = augmenter.change(text, 1, i)
        kept = sum((Counter(text) & Counter(changed)).values()) / len(text)
        assert kept > 0.7, (text, changed)
        for word in (*HAN_NEGATIONS, " not ", " never "):
            assert changed.count(word) >= text.count(word), (text, changed)
    assert augmenter.change("好", 0, 0) == "好"  # nothing to change it by
    assert augmenter.change("!?", 0, 0) == "!?"


def test_each_epoch_has_the_promised_share_of_changed_copies_with_their_rows_labels(texts):
    labels = np.arange(len(texts))
    ids = [np.frombuffer(t.encode("utf-32-le"), np.uint32) for t in texts]
    data = RowData(texts, ids, labels, [f"r{i}" for i in labels], ["en"] * len(texts))
    order = RowOrder(data, 16, 7, PAD, 0.2, lambda text: np.frombuffer(text.encode("utf-32-le"), np.uint32))
    assert order.sequences_per_epoch == 360
    for epoch in range(2):
        rows = [order.row(epoch * 360 + i) for i in range(360)]
        assert sorted(n for n, changed in rows if not changed) == list(range(300))
        assert sum(changed for _, changed in rows) == 60
    n = next(n for n in range(360) if order.row(n)[1])
    batch = order.batch(n, 1)
    said = batch["input_ids"][0, : batch["lengths"][0]].astype(np.uint32).tobytes().decode("utf-32-le")
    source = texts[batch["labels"][0]]
    assert said != source
    assert order.augmenter.change(source, 0, int(batch["labels"][0])) == said
    assert order.where(n)[0].endswith("(changed copy)")
    assert all(a != b for a, b in order.examples())


def test_with_more_copies_than_rows_every_row_is_copied_evenly(texts):
    data = RowData(texts, [np.arange(3)] * 300, np.arange(300), ["r"] * 300, ["en"] * 300)
    order = RowOrder(data, 16, 7, PAD, 1.5, lambda text: np.arange(3))
    counts = Counter(n for n, changed in (order.row(i) for i in range(order.sequences_per_epoch)) if changed)
    assert set(counts.values()) == {1, 2}
    assert len(counts) == 300
