"""Masks: shares, whole words in English and Chinese, what never is masked, the same for the same (seed, n)."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import rjieba

from hepta.config import HeptaError
from hepta.data.masking import IGNORE, MaskedOrder, WordUnits, mask_words
from hepta.data.order import TokenOrder
from hepta.tokenizer.config import TokenizerConfig
from hepta.tokenizer.contract import add_mask, read_specials
from hepta.tokenizer.load import Tokenizer, load_tokenizer
from hepta.tokenizer.train import train_tokenizer


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, wiki_en: Path, sanguo_zh: Path) -> Tokenizer:
    """2,048 tokens of both languages, and [MASK]."""
    folder = tmp_path_factory.mktemp("masking")
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as out:
        for source, rows in ((wiki_en, 300), (sanguo_zh, 4)):
            with source.open(encoding="utf-8") as lines:
                out.writelines(json.dumps({"text": json.loads(x)["text"]}) + "\n" for x in islice(lines, rows))
    train_tokenizer(TokenizerConfig(input=folder / "texts.jsonl", output=folder / "plain", vocab_size=2048))
    add_mask(folder / "plain", folder / "masked")
    return load_tokenizer(folder / "masked")


@pytest.fixture(scope="module")
def texts(wiki_en: Path, sanguo_zh: Path) -> list[str]:
    found = []
    for source, rows in ((wiki_en, 60), (sanguo_zh, 2)):
        with source.open(encoding="utf-8") as lines:
            found += [json.loads(line)["text"][:3000] for line in islice(lines, rows)]
    return found


def framed(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id])


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text of each unit."""
    ids = framed(tokenizer, text)
    units = WordUnits(tokenizer).units(ids)
    return [tokenizer.decode(ids[units == n].tolist()) for n in range(units.max() + 1)]


def test_a_mask_token_is_added_once_and_text_never_spells_it(real: Tokenizer, tmp_path: Path):
    assert real.mask_id == real.size - 1
    assert real.mask_id not in real.encode("The [MASK] sat")
    assert real.decode(real.encode("The [MASK] sat")) == "The [MASK] sat"
    add_mask(real.path, tmp_path / "again")
    assert read_specials(tmp_path / "again").size == real.size
    plain = load_tokenizer(real.path.parent / "plain")
    assert plain.mask_id is None
    assert plain.encoding_sha256 == real.encoding_sha256
    with pytest.raises(HeptaError, match="has no mask token"):
        MaskedOrder.__init__(object.__new__(MaskedOrder), None, plain, 0)


def test_english_words_stay_whole(real: Tokenizer):
    text = "The unbelievable extraordinary cat's 1234 mice ran."
    assert "".join(words_of(real, text)) == text
    assert [word.strip() for word in words_of(real, text) if word.strip()] == [
        "The", "unbelievable", "extraordinary", "cat", "'s", "1234", "mice", "ran", ".",
    ]  # fmt: skip


def test_chinese_words_are_those_of_jieba(real: Tokenizer, texts: list[str]):
    """A unit ends where a word of jieba's does, and most of its words are units: tokens that span words join them."""
    text = texts[-1][:1500].replace("\n", "")
    cuts = set(np.cumsum([len(word) for word in rjieba.cut(text)]).tolist())
    words = words_of(real, text)
    assert "".join(words) == text
    ends = set(np.cumsum([len(word) for word in words]).tolist())
    assert len(ends - cuts) / len(ends) < 0.03, "no word is cut"
    assert len(cuts - ends) / len(cuts) < 0.15, "few are joined"
    assert len(ends) < 0.75 * len(real.encode(text)), "most words are several tokens"


def test_broken_characters_are_never_half_masked(real: Tokenizer):
    """A character that falls into bytes is one unit."""
    text = "龘靐齉 🙂👩‍👩‍👧‍👦 ñandú"
    ids = framed(real, text)
    units = WordUnits(real).units(ids)
    assert len(ids) - 2 > len(text) / 2
    for n in range(units.max() + 1):
        assert "\ufffd" not in real.decode(ids[units == n].tolist())


def test_fifteen_per_cent_are_chosen_eighty_ten_ten(real: Tokenizer, texts: list[str]):
    words = WordUnits(real)
    assert real.mask_id is not None
    total = chosen = masked = kept = 0
    for number, text in enumerate(texts * 8):
        ids = framed(real, text)[:256]
        hidden, labels = mask_words(ids, words, real.mask_id, number)
        supervised = labels != IGNORE
        assert np.array_equal(labels[supervised], ids[supervised])
        assert np.array_equal(hidden[~supervised], ids[~supervised])
        assert not supervised[np.isin(ids, sorted(real.special_ids))].any(), "special tokens are never asked for"
        units = words.units(ids)
        for unit in set(units[supervised].tolist()):
            assert supervised[units == unit].all(), "whole words"
        total += int((~words.special[ids]).sum())
        chosen += int(supervised.sum())
        masked += int((hidden[supervised] == real.mask_id).sum())
        kept += int((hidden[supervised] == ids[supervised]).sum())
    assert chosen / total == pytest.approx(0.15, abs=0.004)
    assert masked / chosen == pytest.approx(0.8, abs=0.02)
    assert kept / chosen == pytest.approx(0.1, abs=0.015)


def test_one_word_is_masked_in_the_shortest_text_and_none_in_an_empty_one(real: Tokenizer):
    words = WordUnits(real)
    assert real.mask_id is not None
    for key in range(20):
        assert (mask_words(framed(real, "cat"), words, real.mask_id, key)[1] != IGNORE).sum() >= 1
    hidden, labels = mask_words(framed(real, ""), words, real.mask_id, 0)
    assert (labels == IGNORE).all()
    assert np.array_equal(hidden, framed(real, ""))


def test_masks_are_a_function_of_seed_and_sequence(tmp_path: Path, shard_maker, real: Tokenizer):
    shards = shard_maker(tmp_path / "tokens", {"en": [40, 300, 7, 90], "zh": [250]})
    order = TokenOrder(shards, "train", 32, seed=3)
    one, again, other = (MaskedOrder(order, real, seed) for seed in (5, 5, 6))
    for name, values in one.batch(0, 9).items():
        assert np.array_equal(values, again.batch(0, 9)[name])
        assert np.array_equal(values[4:], again.batch(4, 5)[name])
    assert not np.array_equal(one.batch(0, 9)["labels"], other.batch(0, 9)["labels"])
    per_epoch = one.sequences_per_epoch
    first = {one.where(n)[0]: one.get(n).labels.tobytes() for n in range(per_epoch)}
    second = {one.where(n)[0]: one.get(n).labels.tobytes() for n in range(per_epoch, 2 * per_epoch)}
    assert any(first[name] != second[name] for name in first), "another epoch, other masks"
    assert one.digest == again.digest != other.digest
