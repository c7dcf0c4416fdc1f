"""Sentence pairs: read, split without twins, and put in an order that is a function of (data, seed, n)."""

import json
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import opencc
import pytest

from hepta.config import HeptaError
from hepta.data.pairs import POOL, EncodedPair, Pair, PairOrder, encode_pairs, load_pairs, split_pairs, twin_key
from hepta.tokenizer.load import Tokenizer, load_tokenizer

IGNORE = -100


def words(text: str) -> list[str]:
    return [c for c in text if unicodedata.category(c)[0] in "LN"]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_dir)


@pytest.fixture(scope="module")
def pairs(pairs_zh_en: Path) -> list[Pair]:
    return load_pairs(pairs_zh_en, "zh", "en")[0]


@pytest.fixture(scope="module")
def encoded(pairs: list[Pair], tokenizer: Tokenizer) -> list[EncodedPair]:
    return encode_pairs(pairs[:1000], tokenizer, 40)[0]


def test_columns_are_guessed_and_repeats_counted(pairs_zh_en: Path, tmp_path: Path) -> None:
    found, report = load_pairs(pairs_zh_en)
    assert report["columns"] == {"pairs-zh-en": {"text": "zh", "label": "en"}}
    assert (found[0].source, found[0].target) == ("老师，您好！", "Hello, teacher!")
    assert found[0].name == "pairs-zh-en row 1"
    table = tmp_path / "pairs.csv"
    table.write_text("中文,英文\n你好,Hello\n你好,Hello\n你好,Hi\n,nothing\n", encoding="utf-8")
    found, report = load_pairs(table)
    assert [(pair.target, pair.name) for pair in found] == [("Hello", "pairs row 2"), ("Hi", "pairs row 4")]
    assert report["repeated pairs left out"] == 1
    assert sum(report["dropped"].values()) == 1


def test_no_twin_of_a_source_straddles_splits(pairs: list[Pair]) -> None:
    """Trap C14: traditional characters, other punctuation, other width and case fall on the same side."""
    convert = opencc.OpenCC("s2t").convert
    twins = [
        Pair(change(pair.source), pair.target + " (twin)", f"twin of {pair.name}")
        for pair, change in zip(
            pairs[:1500],
            [convert, lambda t: t.replace("，", " ").rstrip("。！？") + "!", lambda t: f"“{t}” "] * 500,
            strict=True,
        )
    ]
    splits = split_pairs([*pairs, *twins])
    place = {pair.name: side for side in ("train", "val", "test") for pair in getattr(splits, side)}
    assert len(place) == len(pairs) + 1500
    assert all(place[twin.name] == place[twin.name.removeprefix("twin of ")] for twin in twins)
    keys = {side: {twin_key(pair.source) for pair in getattr(splits, side)} for side in ("train", "val", "test")}
    assert not keys["train"] & (keys["val"] | keys["test"])
    assert not keys["val"] & keys["test"]
    assert splits.report["sources that have twins"] >= 1500


def test_shares_are_as_said_and_more_rows_move_no_other(pairs: list[Pair]) -> None:
    whole, half = split_pairs(pairs), split_pairs(pairs[:2000])
    assert len(whole.test) / len(pairs) == pytest.approx(0.08, abs=0.012)
    assert len(whole.val) / len(pairs) == pytest.approx(0.04, abs=0.009)
    assert {pair.name for pair in half.test} <= {pair.name for pair in whole.test}
    with pytest.raises(HeptaError, match="is empty: 2 pairs are too few"):
        split_pairs(pairs[:2])


def test_keys_of_sources_made_of_punctuation_differ() -> None:
    assert twin_key("……") != twin_key("！")
    assert twin_key("他說：「好」") == twin_key("他说:“好”!")
    assert twin_key("ＡＢＣ") == twin_key("abc")


def test_long_pairs_are_dropped_by_name_and_counted(pairs: list[Pair], tokenizer: Tokenizer) -> None:
    kept, report = encode_pairs(pairs[:300], tokenizer, 16)
    lengths = [max(len(tokenizer.encode(pair.source)), len(tokenizer.encode(pair.target))) + 1 for pair in pairs[:300]]
    assert report["too long"] == sum(length > 16 for length in lengths) > 0
    assert len(kept) == report["pairs"] == 300 - report["too long"]
    assert report["examples"][0] == pairs[next(i for i, length in enumerate(lengths) if length > 16)].name
    with pytest.raises(HeptaError, match="raise sequence_length"):
        encode_pairs(pairs[:5], tokenizer, 2)


def test_a_batch_holds_the_pairs_and_pads_to_its_longest(
    pairs: list[Pair], encoded: list[EncodedPair], tokenizer: Tokenizer
) -> None:
    order = PairOrder(encoded, tokenizer.pad_id, 8, seed=5)
    named = {pair.name: pair for pair in pairs}
    batch = order.batch(40, 8)
    assert batch["source_mask"].any(0).all()
    assert (batch["labels"] != IGNORE).any(0).all()
    for row, n in enumerate(range(40, 48)):
        pair = named[order.where(n)[0]]
        source = batch["source_ids"][row][batch["source_mask"][row]]
        labels = batch["labels"][row]
        target = labels[labels != IGNORE]
        assert source.tolist() == [*tokenizer.encode(pair.source), tokenizer.eos_id]
        assert target.tolist() == [*tokenizer.encode(pair.target), tokenizer.eos_id]
        assert batch["input_ids"][row][: len(target)].tolist() == [tokenizer.bos_id, *target[:-1]]
    assert order.count_tokens(40, [batch]) == sum(
        len(tokenizer.encode(named[order.where(n)[0]].source)) + len(tokenizer.encode(named[order.where(n)[0]].target))
        + 2 for n in range(40, 48)
    )  # fmt: skip


def test_the_nth_pair_is_a_function_of_data_seed_and_n(encoded: list[EncodedPair], tokenizer: Tokenizer) -> None:
    """Asked for in any order, in any pieces, by another reader: the same pairs (exact resume rests on it)."""
    one, other = (PairOrder(encoded, tokenizer.pad_id, 8, seed=5) for _ in range(2))
    straight = [one.where(n)[0] for n in range(2500)]
    assert [other.where(n)[0] for n in reversed(range(2500))] == straight[::-1]
    cut = np.concatenate([other.batch(n, 4)["labels"][:, 0] for n in range(800, 840, 4)])
    assert cut.tolist() == one.batch(800, 40)["labels"][:, 0].tolist()
    assert [PairOrder(encoded, tokenizer.pad_id, 8, seed=6).where(n)[0] for n in range(50)] != straight[:50]
    assert one.digest == other.digest != PairOrder(encoded, tokenizer.pad_id, 8, seed=6).digest


def test_every_pair_comes_as_often_as_every_other(encoded: list[EncodedPair], tokenizer: Tokenizer) -> None:
    """After any number of pools, no pair was read twice more than another."""
    order = PairOrder(encoded, tokenizer.pad_id, 8, seed=5)
    counts: Counter[str] = Counter({one.name: 0 for one in encoded})
    for pool in range(30):
        counts.update(order.where(n)[0] for n in range(pool * POOL * 8, (pool + 1) * POOL * 8))
        assert max(counts.values()) - min(counts.values()) <= 1


def test_rows_of_a_step_have_similar_lengths(encoded: list[EncodedPair], tokenizer: Tokenizer) -> None:
    """Of the decoder's positions few are padding; a plain shuffle wastes a third."""
    order = PairOrder(encoded, tokenizer.pad_id, 16, seed=5)
    batches = [order.batch(start, 16)["labels"] for start in range(0, 960, 16)]
    waste = sum(int((labels == IGNORE).sum()) for labels in batches) / sum(labels.size for labels in batches)
    assert waste < 0.08
    lengths = [labels.shape[1] for labels in batches]
    assert sorted(lengths) != lengths, "steps of one pool are shuffled, not long ones last"
    assert json.dumps(lengths) != json.dumps(sorted(lengths, reverse=True))
