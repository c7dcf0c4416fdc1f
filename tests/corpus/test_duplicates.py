"""Twins: verified, deterministic, never by chain, never across the splits."""

import json
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tests.corpus.conftest import NO_RULES, rows, words, write_jsonl

from hepta.corpus.config import DedupConfig
from hepta.corpus.duplicates import find_edges
from hepta.corpus.shingles import shingle

TAU = 0.8


def brute_jaccard(a: str, b: str) -> float:
    """Jaccard of 5-word shingles by Python sets: the independent reference."""
    left, right = ({tuple(part[i : i + 5]) for i in range(len(part) - 4)} for part in (a.split(), b.split()))
    return len(left & right) / len(left | right)


def planted_pair(seed: int, likeness: float, length: int = 104) -> tuple[str, str]:
    """Two texts with a common beginning such that their Jaccard similarity is about ``likeness``."""
    total = length - 4
    common = round(2 * total * likeness / (1 + likeness)) + 4
    fresh = words(seed, 2 * length)
    return " ".join(fresh[:length]), " ".join(fresh[:common] + fresh[length : 2 * length - common])


def edges_of(texts: list[str], config: DedupConfig, signatures: np.ndarray | None = None):
    made = shingle(texts).signatures() if signatures is None else signatures
    order = np.arange(len(texts))
    return find_edges(made, order, order, config, lambda chosen: [texts[i] for i in chosen])


def edge_columns(edges):
    return edges.a.tolist(), edges.b.tolist(), edges.jaccard.tolist()


def test_a_collision_is_not_a_duplicate_and_recall_follows_the_curve():
    """trap C1: 1,000 pairs at known similarity; every edge is true, and as many are found as bands promise."""
    chance = random.Random(1)
    pairs = [planted_pair(seed, chance.uniform(0.35, 0.95)) for seed in range(1000)]
    config = DedupConfig(threshold=0.5)
    texts = [text for pair in pairs for text in pair]
    found = {(a, b): j for a, b, j in zip(*edge_columns(edges_of(texts, config)), strict=True)}
    expected = variance = hits = 0.0
    for index, pair in enumerate(pairs):
        true = brute_jaccard(*pair)
        edge = found.pop((2 * index, 2 * index + 1), None)
        assert edge is None or edge == pytest.approx(true)
        if true >= config.threshold:
            chance_of = 1 - (1 - true**config.rows) ** config.bands
            expected, variance = expected + chance_of, variance + chance_of * (1 - chance_of)
            hits += edge is not None
    assert not found, "an edge between texts that share nothing"
    assert abs(hits - expected) <= 3 * variance**0.5 + 1, (hits, expected)
    assert expected < 0.97 * len(pairs)  # the curve, not certainty, was tested


def test_nothing_below_the_threshold_is_dropped(corpus):
    """trap C1: through a whole build."""
    pairs = [planted_pair(seed, 0.6 + 0.35 * seed / 300) for seed in range(300)]
    done = corpus((text for pair in pairs for text in pair), **NO_RULES)
    dropped = {row["text"]: row for row in rows(Path(done.output), "dropped")}
    texts = {row["doc_id"]: row["text"] for row in rows(Path(done.output))}
    for left, right in pairs:
        true = brute_jaccard(left, right)
        gone = [text for text in (left, right) if text in dropped]
        assert len(gone) == (1 if true >= TAU else 0), true
        for text in gone:
            reason = dropped[text]["reasons"][0]
            assert reason["value"] == pytest.approx(true, abs=1e-4)
            assert texts[dropped[text]["twin"]] in (left, right)


def chain(length: int = 50, seed: int = 7, width: int = 104, step: int = 8) -> list[str]:
    """Documents each 0.85 like the next and 0.72 like the one after."""
    stream = words(seed, width + step * length)
    return [" ".join(stream[i * step : i * step + width]) for i in range(length)]


def test_a_chain_drops_only_what_is_like_its_keeper(corpus):
    """trap C2: a chain of 50 keeps every link that has no keeper beside it, and the giant-cluster guard fires."""
    texts = chain()
    assert brute_jaccard(texts[0], texts[1]) > TAU > brute_jaccard(texts[0], texts[2])
    done = corpus(texts, **NO_RULES)
    kept = {row["doc_id"]: row for row in rows(Path(done.output))}
    assert 17 <= len(kept) <= 25  # an independent set of the chain that cannot be extended
    for row in rows(Path(done.output), "dropped"):
        assert brute_jaccard(row["text"], kept[row["twin"]]["text"]) >= TAU
    assert any(warning.startswith("giant cluster: 50 ") for warning in done.facts["warnings"])
    assert {row["split"] for row in kept.values()} == {"train"}


def test_pairs_in_one_bucket_keep_one_of_each():
    """trap C3: {A, A′, B, B′} with one and the same signature keeps A and B, also where the bucket is oversized."""
    for count in (2, 60):
        texts = [text for seed in range(count) for text in planted_pair(seed, 0.9)]
        same = np.ones((len(texts), 128), np.uint32)
        found = edges_of(texts, DedupConfig(), same)
        strong = found.jaccard >= TAU
        assert sorted(zip(found.a[strong], found.b[strong], strict=True)) == [(2 * i, 2 * i + 1) for i in range(count)]


def test_twins_are_found_among_a_thousand_texts_from_one_template():
    """trap C3: everything crowds into few buckets; the true twins are found, and nothing else is."""
    filler = words(5, 1000)
    texts = [f"this page of the catalogue tells you all about {word} and what it costs" for word in filler]
    twins = [planted_pair(seed, 0.9) for seed in range(20)]
    texts += [text for pair in twins for text in pair]
    found = edges_of(texts, DedupConfig())
    assert found.crowded >= 100
    strong = [(a, b) for a, b, value in zip(*edge_columns(found), strict=True) if value >= TAU]
    assert strong == [(1000 + 2 * i, 1001 + 2 * i) for i in range(20)]


SHORT = ["", "a", "你好吗", "😀🎉🚀", "🙂", "…", "今天天气很好我们去公园玩吧" * 32 + "结束了"]


def test_short_and_unpunctuated_documents_survive_and_their_exact_twins_are_found(corpus):
    """trap C4."""
    done = corpus([{"text": text, "n": n} for n in range(2) for text in SHORT], **NO_RULES)
    assert sorted(row["text"] for row in rows(Path(done.output))) == sorted(SHORT)
    gone = rows(Path(done.output), "dropped")
    assert sorted(row["text"] for row in gone) == sorted(SHORT)
    assert {row["reasons"][0]["rule"] for row in gone} == {"exact_duplicate"}


def test_the_same_documents_survive_in_whatever_order_they_come(corpus):
    """trap C6: twins of equal quality, five permutations."""
    texts = [text for seed in range(40) for text in planted_pair(seed, 0.93)]
    survivors = set()
    for seed in range(5):
        random.Random(seed).shuffle(texts)
        done = corpus(texts, name=f"order-{seed}", **NO_RULES)
        survivors.add(tuple(sorted(row["text"] for row in rows(Path(done.output)))))
    assert len(survivors) == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_no_twins_straddle_the_splits(corpus, enabled):
    """trap C14: also where dedup is off."""
    pairs = [planted_pair(seed, 0.93) for seed in range(150)]
    texts = [text for pair in pairs for text in pair]
    keys = {"dedup": {"enabled": enabled}, "split": {"val": 0.3, "test": 0.3}, **NO_RULES}
    done = corpus([*texts, *texts[:50]], **keys)
    split = {row["text"]: row["split"] for row in rows(Path(done.output))}
    assert len(split) == (150 if enabled else 300)
    assert {*split.values()} == {"train", "val", "test"}
    for left, right in pairs:
        if not enabled:
            assert split[left] == split[right]


def test_twins_of_one_chain_share_a_split_although_both_are_kept(corpus):
    """trap C14: A~B~C keeps A and C, which are one cluster."""
    triples = [chain(3, seed) for seed in range(40)]
    done = corpus((text for own in triples for text in own), split={"val": 0.3, "test": 0.3}, **NO_RULES)
    split = {row["text"]: row["split"] for row in rows(Path(done.output))}
    both = [own for own in triples if own[0] in split and own[2] in split]
    assert both
    assert all(split[own[0]] == split[own[2]] for own in both)


def test_a_twin_whose_keeper_is_cut_by_a_rule_survives(corpus, wiki_en):
    """trap C14: rules come first, so a document that is cut keeps nobody out."""
    with wiki_en.open(encoding="utf-8") as lines:
        common = max((json.loads(line)["text"] for line in islice(lines, 200)), key=len)
    better, worse = common + " It ends in 2019.", common + " -- " * 12
    plain = corpus([better, worse], name="plain")
    assert [row["text"] for row in rows(Path(plain.output))] == [better]
    digits = sorted(row["digit_share"] for row in rows(Path(plain.output), "signals"))
    strict = corpus([better, worse], name="strict", rules={"max_digit_share": {"en": sum(digits) / 2}})
    assert [row["text"] for row in rows(Path(strict.output))] == [worse]


def test_normalised_keys_find_twins_and_never_reach_the_text(corpus):
    """trap C12: traditional, full-width, upper case and punctuation differ; the kept text is untouched."""
    first = "ＡＢＣ公司，在漢語地區發展：歷史學家們認為「這是繁體字」的文章！由來已久；不必改動。一切照舊？是的。"
    second = "abc公司在汉语地区发展历史学家们认为这是繁体字的文章由来已久不必改动一切照旧是的"
    third = "THE QUICK Brown Fox — jumps over the “lazy” dog, again and again, until the day is done."
    done = corpus([first, second, third])
    kept = {row["text"] for row in rows(Path(done.output))}
    assert third in kept
    assert len(kept & {first, second}) == 1
    reason = rows(Path(done.output), "dropped")[0]["reasons"][0]
    assert (reason["rule"], reason["value"]) == ("near_duplicate", 1.0)


def test_a_record_that_stands_twice_is_one_document_even_without_dedup(corpus, tmp_path):
    """doc_ids are unique in kept, since shards are addressed by them."""
    done = corpus(["the same line"] * 3 + ["another line"], dedup={"enabled": False}, **NO_RULES)
    assert (done.read, done.kept, done.dropped) == (4, 2, 2)
    ids = [{"id": 1, "text": "one text"}, {"id": 1, "text": "another text"}]
    mapped = corpus([write_jsonl(tmp_path / "ids.jsonl", ids)], name="ids", id_column="id", **NO_RULES)
    assert (mapped.kept, mapped.facts["reasons"]) == (1, {"same_record": 1})
