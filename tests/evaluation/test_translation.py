"""BLEU and chrF are sacrebleu's, intervals hold what they say, the memory baseline is the nearest neighbour."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import sacrebleu

from hepta.evaluation.translation import Memory, bleu_and_chrf, score_translations


@pytest.fixture(scope="module")
def rows(pairs_zh_en: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in pairs_zh_en.read_text(encoding="utf-8").splitlines()[:400]]


def worse(text: str, chance: random.Random) -> str:
    return " ".join(word for word in text.split() if chance.random() > 0.2)


def test_scores_equal_sacrebleu(rows: list[dict[str, str]]) -> None:
    """Trap E1: English cut by 13a, Chinese by characters, and the signature says so."""
    chance = random.Random(0)
    english = [row["en"] for row in rows]
    said = [worse(text, chance) for text in english]
    found = score_translations(said, english)
    assert found.bleu == pytest.approx(sacrebleu.corpus_bleu(said, [english]).score, abs=1e-9)
    assert found.chrf == pytest.approx(sacrebleu.corpus_chrf(said, [english]).score, abs=1e-9)
    assert bleu_and_chrf(said, english) == {"bleu": found.bleu, "chrf": found.chrf}
    assert "tok:13a" in found.signature["bleu"]
    assert f"version:{sacrebleu.__version__}" in found.signature["chrf"]
    chinese = [row["zh"] for row in rows]
    cut = [text[1:] for text in chinese]
    found = score_translations(cut, chinese)
    assert found.bleu == pytest.approx(sacrebleu.corpus_bleu(cut, [chinese], tokenize="zh").score, abs=1e-9)
    assert "tok:zh" in found.signature["bleu"]
    assert score_translations(chinese, chinese).bleu == pytest.approx(100)


def test_intervals_hold_the_score_of_more_sentences(rows: list[dict[str, str]]) -> None:
    """The 95 % interval of 60 sentences holds the score of all 400, in most of 6 draws, and narrows with more."""
    chance = random.Random(1)
    english = [row["en"] for row in rows]
    said = [worse(text, chance) for text in english]
    whole = score_translations(said, english)
    inside = 0
    for start in range(0, 360, 60):
        part = score_translations(said[start : start + 60], english[start : start + 60])
        low, high = part.bleu_interval
        inside += low <= whole.bleu <= high
        assert high - low > whole.bleu_interval[1] - whole.bleu_interval[0]
    assert inside >= 4


def test_memory_gives_the_translation_of_the_nearest_source(rows: list[dict[str, str]]) -> None:
    """The same neighbour as comparing with every training source, gram by gram."""

    def grams(text: str) -> Counter[str]:
        return Counter(text[i : i + n] for n in (1, 2, 3) for i in range(len(text) - n + 1))

    sources, targets = [row["zh"] for row in rows[:350]], [row["en"] for row in rows[:350]]
    memory = Memory(sources, targets)
    for row in rows[350:]:
        mine = grams(row["zh"])
        likeness = [2 * (mine & grams(s)).total() / (mine.total() + grams(s).total()) for s in sources]
        best = max(range(350), key=lambda i: (likeness[i], -i))
        assert memory.translate(row["zh"]) == targets[best]
    assert memory.translate(sources[17]) == targets[sources.index(sources[17])]
    assert memory.translate("ζ") == ""
