"""Splits: duplicates merged, contradictions dropped, no twin on both sides, every class everywhere it can be."""

import itertools
import random

import pytest

from hepta.catalog.fetch import dataset_path
from hepta.config import HeptaError
from hepta.corpus.shingles import jaccard, shingle
from hepta.data.tables import Labelled, load_labelled
from hepta.training.splits import TWINS, duplicate_key, make_splits


def rows(*pairs):
    return [Labelled(text, label, f"row {n}", "en") for n, (text, label) in enumerate(pairs, 1)]


@pytest.fixture(scope="module")
def wiki():
    return load_labelled(dataset_path("topics-en"), "classify")[0][::10]


def plain(n, label):
    return [(f"{label} sample number {n * 7919 % 997} about {label} things {i} {i * i}", label) for i in range(n)]


def test_duplicates_differing_in_case_width_and_punctuation_are_one():
    assert duplicate_key("Good, film!") == duplicate_key("ｇｏｏｄ film") == "goodfilm"
    assert duplicate_key("很好看！") == duplicate_key("很 好看。")
    assert duplicate_key("！？") != duplicate_key("…")  # nothing else to tell them by
    splits = make_splits(rows(("Good film!", "a"), ("good film", "a"), *plain(30, "a"), *plain(30, "b")))
    assert splits.report["duplicates merged"] == 1
    texts = [e.text for part in (splits.train, splits.val, splits.test) for e in part]
    assert len(texts) == 61
    assert "good film" not in texts  # the first one stays


def test_the_same_text_with_two_labels_is_dropped_on_both_sides_and_counted(capsys):
    splits = make_splits(rows(("so so", "a"), ("So so.", "b"), ("so so", "a"), *plain(30, "a"), *plain(30, "b")))
    assert splits.report["conflicting duplicates dropped"] == 3
    assert splits.report["conflict examples"] == ["row 1 (a) and row 2 (b): so so"]
    assert not [e for e in (*splits.train, *splits.val, *splits.test) if duplicate_key(e.text) == "soso"]
    assert "dropped 3 rows whose text stands elsewhere with another label" in capsys.readouterr().err


def test_no_near_twin_straddles_the_splits(wiki):
    """Every pair of real texts and their planted twins is compared by true Jaccard; trap C14."""
    planted = [
        Labelled(e.text.replace(" the ", " a ", 1) + " (edited)", e.label, f"twin of {e.name}", "en")
        for e in wiki[:150] if len(e.text) > 300
    ]  # fmt: skip
    splits = make_splits([*wiki, *planted])
    assert splits.report["near-twins kept together"] > 200
    placed = [(e.text, split) for split in ("train", "val", "test") for e in getattr(splits, split)]
    shingles = shingle([text for text, _ in placed])
    sets = [shingles.set_of(i) for i in range(len(placed))]
    twins = 0
    for a, b in itertools.combinations(range(len(placed)), 2):
        if len(sets[a]) * TWINS.threshold <= len(sets[b]) <= len(sets[a]) / TWINS.threshold:
            alike = jaccard(sets[a], sets[b]) >= TWINS.threshold
            twins += alike
            assert not alike or placed[a][1] == placed[b][1], (placed[a], placed[b])
    assert twins > 100


def test_the_split_of_a_text_depends_neither_on_order_nor_on_other_rows(wiki):
    first = make_splits(wiki)
    shuffled = random.Random(1).sample(wiki, len(wiki))
    again = make_splits(shuffled)
    for split in ("train", "val", "test"):
        assert {e.text for e in getattr(first, split)} == {e.text for e in getattr(again, split)}
    fewer = make_splits(wiki[::2])
    moved = {e.text for e in fewer.test} - {e.text for e in first.test}
    assert len(moved) <= 11  # at most one a class, given to it because it had none


def test_shares_and_classes_are_what_was_promised(wiki):
    splits = make_splits(wiki)
    total = sum(splits.report["splits"].values())
    assert total == len({duplicate_key(e.text) for e in wiki})
    for split in ("val", "test"):
        assert 0.06 < splits.report["splits"][split] / total < 0.14
    counts = splits.report["classes"]
    assert all(set(counts[split]) == set(counts["train"]) for split in ("val", "test"))
    assert splits.report["classes missing"] == {}


def test_small_classes_are_learnt_from_first_and_what_is_missing_is_said(capsys):
    few = [("only two of these", "rare"), ("and here is the other", "rare"), ("alone in the world", "single")]
    splits = make_splits(rows(*few, *plain(60, "a"), *plain(60, "b")))
    counts = splits.report["classes"]
    assert counts["train"]["rare"] == 1
    assert counts["test"]["rare"] == 1
    assert splits.report["classes missing"] == {"val": ["rare"]}
    assert splits.report["classes seen once, dropped"] == ["row 3 (single)"]
    told = capsys.readouterr().err
    assert "row 3 (single)" in told
    assert "split 'val' holds no text of rare" in told
    with pytest.raises(HeptaError, match=r"class 'single' has one text only \(row 3\)"):
        make_splits(rows(*few, *plain(60, "a"), *plain(60, "b")), policy="error")


def test_a_test_file_of_ones_own_is_kept_whole_and_its_twins_leave_training(wiki):
    test = [*wiki[:50], Labelled("of no known class", "new class", "mine row 9", "en")]
    edited = [Labelled(e.text + " And so it goes.", e.label, e.name, e.lang) for e in wiki[:20] if len(e.text) > 200]
    splits = make_splits([*wiki, *edited], test)
    assert [e.text for e in splits.test] == [e.text for e in wiki[:50]]
    assert splits.report["twins of test rows, removed"] >= 50 + len(edited)
    assert splits.report["test rows of classes not in training, dropped"] == ["mine row 9 (new class)"]
    held = {duplicate_key(e.text) for e in splits.test}
    assert not [e for e in (*splits.train, *splits.val) if duplicate_key(e.text) in held]


def test_numbers_need_no_classes():
    splits = make_splits([Labelled(f"text {i} {i * i}", float(i), f"row {i}", "en") for i in range(120)], classes=False)
    assert sum(splits.report["splits"].values()) == 120


def test_one_class_or_no_rows_to_hold_out_is_an_error():
    with pytest.raises(HeptaError, match="1 class"):
        make_splits(rows(*plain(30, "a")))
    with pytest.raises(HeptaError, match="too few"):
        make_splits(rows(("x", "a"), ("y", "a"), ("z", "b"), ("X!", "a"))[:3], classes=False)
