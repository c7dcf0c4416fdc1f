"""Masks for training from both sides: 15 % of tokens by whole words, in Chinese too.

Of the words chosen, 80 % become the mask token, 10 % other tokens and 10 % stay; the model must say what was there
(Devlin et al. 2019; whole Chinese words: Cui et al. 2019).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hepta.config import HeptaError
from hepta.data.order import IGNORE, Packed, TokenOrder, stack
from hepta.data.permutation import key_of, shuffled
from hepta.stage import digest_json
from hepta.tokenizer.load import Tokenizer

SHARE = 0.15  # of a sequence's tokens that are to be predicted
MASKED, REPLACED = 0.8, 0.1  # of the words chosen
VERSION = 1
SPAN = re.compile("[\udc80-\udcff]+|[^\udc80-\udcff]+")  # bytes that are no character, or characters
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]+")


class WordUnits:
    """Says which tokens make up one word.

    A token goes on with the word before it when both meet in letters or digits, or when it begins inside a
    character; Chinese text is cut into words by jieba, and a token that begins inside a word belongs to it. Special
    tokens are no words.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = [tokenizer.token_bytes(i) for i in range(tokenizer.size)]
        texts = [piece.decode("utf-8", "replace") for piece in pieces]
        self.special = np.isin(np.arange(tokenizer.size), sorted(tokenizer.special_ids))
        self._inside = np.array([bool(piece) and 0x80 <= piece[0] < 0xC0 for piece in pieces])
        self._opens = np.array([bool(text) and _joins(text[0]) for text in texts])
        self._closes = np.array([bool(text) and _joins(text[-1]) for text in texts])
        self._pieces = [piece.removeprefix(b" ") for piece in pieces]
        chinese = [bool(HAN.fullmatch(text.strip())) or "\ufffd" in text for text in texts]  # or part of a character
        self._chinese = np.array(chinese) & ~self.special
        self.ordinary = np.flatnonzero(~self.special)  # ids that may stand in for another

    def units(self, ids: np.ndarray) -> np.ndarray:
        """Number of the word that each token (T,) belongs to, from 0, not falling; −1 for special tokens."""
        special = self.special[ids]
        goes_on = self._inside[ids]
        goes_on[1:] |= self._opens[ids[1:]] & self._closes[ids[:-1]]
        goes_on[1:] &= ~special[:-1]
        goes_on[0] = False
        self._cut_han(ids, goes_on)
        numbers = np.cumsum(~goes_on & ~special) - 1
        return np.where(special, -1, numbers)

    def _cut_han(self, ids: np.ndarray, goes_on: np.ndarray) -> None:
        """Let tokens that begin inside a Chinese word go on with it, in place."""
        run = np.concatenate(([False], self._chinese[ids], [False])).astype(np.int8)
        edges = np.flatnonzero(np.diff(run))
        for first, end in zip(edges[::2], edges[1::2], strict=True):
            pieces = [self._pieces[i] for i in ids[first:end]]
            starts = np.cumsum([0, *map(len, pieces[:-1])])  # in bytes
            goes_on[first + 1 : end] |= ~np.isin(starts[1:], _word_starts(b"".join(pieces)))


def _joins(character: str) -> bool:
    """A letter or digit of a script that writes words apart: not of Chinese, Japanese, Thai or Lao."""
    code = ord(character)
    return character.isalnum() and (code < 0x2E80 or 0xAC00 <= code <= 0xD7A3) and not 0x0E00 <= code < 0x0F00


def _word_starts(data: bytes) -> np.ndarray:
    """Where words begin, in bytes; half a character at an edge of the window is a word."""
    import rjieba

    text = data.decode("utf-8", "surrogateescape")
    words = [part for span in SPAN.findall(text) for part in (rjieba.cut(span) if HAN.match(span) else [span])]
    return np.cumsum([0, *(len(word.encode("utf-8", "surrogateescape")) for word in words)])


class MaskedOrder:
    """The sequences of a ``TokenOrder`` with masks; new ones in every epoch, a function of (seed, n).

    Args:
        order: sequences to mask.
        tokenizer: one with a mask token.
        seed: of the masks.

    Raises:
        HeptaError: the tokenizer has no mask token.
    """

    def __init__(self, order: TokenOrder, tokenizer: Tokenizer, seed: int) -> None:
        if tokenizer.mask_id is None:
            raise HeptaError(f"{tokenizer.path}: has no mask token; use a tokenizer made for masked models")
        self.order, self.mask_id, self.seed = order, tokenizer.mask_id, seed
        self.words = WordUnits(tokenizer)
        self.sequences_per_epoch, self.waste = order.sequences_per_epoch, order.waste
        self.source_names = order.source_names
        self.digest = digest_json([VERSION, order.digest, seed, self.mask_id])

    def get(self, n: int) -> Packed:
        """The n-th sequence; labels (T,) hold what was there where it is to be predicted, ``IGNORE`` elsewhere."""
        packed = self.order.get(n)
        ids, labels = mask_words(packed.input_ids, self.words, self.mask_id, key_of("mask", self.seed, n))
        return Packed(ids, labels, packed.segment_ids, packed.positions)

    def batch(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Sequences [start, start + count): input_ids, labels, segment_ids, positions, each (count, T)."""
        return stack([self.get(n) for n in range(start, start + count)])

    def where(self, n: int) -> list[str]:
        """``source/doc_id`` of each document in the n-th sequence, in order."""
        return self.order.where(n)

    def languages(self, n: int) -> list[str]:
        """Language of each segment of the n-th sequence."""
        return self.order.languages(n)

    def sources(self, n: int) -> list[str]:
        """Source of each segment of the n-th sequence."""
        return self.order.sources(n)

    def count_tokens(self, first: int, batches: Sequence[Mapping[str, Any]]) -> int:
        """Real tokens of batches that begin with sequence ``first``."""
        return self.order.count_tokens(first, batches)


def mask_words(ids: np.ndarray, words: WordUnits, mask_id: int, key: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose whole words until they make up ``SHARE`` of the tokens, and hide them.

    Args:
        ids: (T,) int64.
        words: says what a word is.
        mask_id: of the mask token.
        key: of the choice; the same key chooses the same.

    Returns:
        ids with masks and labels, both (T,) int64. A sequence of special tokens only has no labels; any other has
        one word at least.
    """
    units = words.units(ids)
    sizes = np.bincount(units[units >= 0])
    labels = np.full_like(ids, IGNORE)
    if not len(sizes):
        return ids, labels
    random = np.random.default_rng(key)
    shuffle = shuffled(len(sizes), key)
    budget = max(round(SHARE * int(sizes.sum())), int(sizes[shuffle[0]]))
    total = 0
    chosen = []
    for unit in shuffle:
        if total + sizes[unit] <= budget:
            chosen.append(unit)
            total += sizes[unit]
        if total == budget:
            break
    fate = np.full(len(sizes), 2.0)  # above 1: not chosen
    fate[chosen] = random.random(len(chosen))
    fates = np.where(units >= 0, fate[units], 2.0)
    hidden = ids.copy()
    hidden[fates < MASKED] = mask_id
    replaced = (fates >= MASKED) & (fates < MASKED + REPLACED)
    hidden[replaced] = random.choice(words.ordinary, int(replaced.sum()))
    labels[fates < 1] = ids[fates < 1]
    return hidden, labels
