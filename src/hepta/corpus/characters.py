"""Texts as one array of code points with a class for each, so that counting costs no Python per character."""

import unicodedata
from functools import cache
from typing import Any

import numpy as np

OTHER, SPACE, LATIN, HAN, KANA, HANGUL, LETTER, DIGIT, PUNCTUATION, SYMBOL, MARK = range(11)
LETTERS = (LATIN, HAN, KANA, HANGUL, LETTER)
TRADITIONAL, SIMPLIFIED, FUNCTION, CANTONESE = 1, 2, 4, 8  # flags of Han characters
APOSTROPHES = "'’‘ʼ＇"
CLUTTER = "#|<>{}[]\\^~*=_@+`•■□▪▫●○◆◇★☆►▶→←↑↓※"  # marks of code, tables and lists rather than of prose

# Frequent function characters of modern and classical Chinese; running prose holds several in every sentence.
FUNCTION_HAN = (
    "的一是不了在有我他这个们也就人和地到以说要来上去那得着被把吧吗呢又便却"  # modern, simplified
    "這個們說來為於與卻嗎"  # the same in traditional characters
    "之曰其而为于乃与此者所矣哉何吾汝遂且"  # classical
)
CANTONESE_HAN = "嘅咗喺唔冇哋啲嚟佢嗰啱嘢攞諗睇嗌瞓"
LIMIT = 0x110000
_BLOCK = 256
_BINS = 16  # more than there are classes, or sums of flags


class Tables:
    """Per code point: class, flags, and the folded form used in duplicate keys; filled block by block as seen."""

    def __init__(self) -> None:
        self.kind = np.zeros(LIMIT, np.uint8)
        self.flags = np.zeros(LIMIT, np.uint8)
        self.fold = np.zeros(LIMIT, np.uint32)
        self._filled = np.zeros(LIMIT // _BLOCK, bool)
        self._simplify: Any = None
        self._complicate: Any = None

    def cover(self, points: np.ndarray) -> None:
        """Make sure every block that ``points`` touches is filled."""
        seen = np.bincount(points >> 8, minlength=len(self._filled)) > 0
        for block in np.flatnonzero(seen & ~self._filled):
            self._fill(int(block))

    def _fill(self, block: int) -> None:
        for point in range(block * _BLOCK, (block + 1) * _BLOCK):
            char = chr(point)
            self.kind[point] = kind = _class_of(char)
            self.fold[point] = _folded(char, kind)
        if (self.kind[block * _BLOCK : (block + 1) * _BLOCK] == HAN).any():
            self._fill_han(block)
        self._filled[block] = True

    def _fill_han(self, block: int) -> None:
        if self._simplify is None:
            import opencc

            self._simplify, self._complicate = opencc.OpenCC("t2s"), opencc.OpenCC("s2t")
        chars = [chr(point) for point in range(block * _BLOCK, (block + 1) * _BLOCK)]
        joined = "\n".join(chars)
        simple, full = self._simplify.convert(joined).split("\n"), self._complicate.convert(joined).split("\n")
        for char, plain, long in zip(chars, simple, full, strict=True):
            point = ord(char)
            if len(plain) == 1:
                self.fold[point] = ord(plain)
            self.flags[point] = (
                TRADITIONAL * (plain != char)
                | SIMPLIFIED * (long != char and plain == char)
                | FUNCTION * (char in FUNCTION_HAN)
                | CANTONESE * (char in CANTONESE_HAN)
            )


def _class_of(char: str) -> int:
    if char.isspace():
        return SPACE
    if char in CLUTTER:
        return SYMBOL
    category = unicodedata.category(char)
    if category[0] == "L":
        return _script_of(ord(char))
    if category == "Mn" or category == "Mc":
        return MARK
    if category[0] == "N":
        return DIGIT
    if category[0] == "P":
        return PUNCTUATION
    return SYMBOL if category in ("Sm", "So", "Sk") else OTHER


def _script_of(point: int) -> int:
    if point < 0x250 or 0x1E00 <= point < 0x1F00 or 0xFF21 <= point <= 0xFF5A:
        return LATIN
    if 0x3400 <= point <= 0x9FFF or 0xF900 <= point <= 0xFAFF or 0x20000 <= point <= 0x3FFFF or point == 0x3007:
        return HAN
    if 0x3040 <= point <= 0x30FF or 0xFF66 <= point <= 0xFF9F:
        return KANA
    if 0x1100 <= point <= 0x11FF or 0xAC00 <= point <= 0xD7AF:
        return HANGUL
    return LETTER


def _folded(char: str, kind: int) -> int:
    """Lower case; punctuation and space become a space, apostrophes and invisible characters nothing (0)."""
    if char in APOSTROPHES or (kind == OTHER and unicodedata.category(char)[0] == "C"):
        return 0
    if kind in (SPACE, PUNCTUATION):
        return 32
    lower = char.lower()
    return ord(lower) if len(lower) == 1 else ord(char)


@cache
def tables() -> Tables:
    """This process's tables."""
    return Tables()


def code_points(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All texts' code points in one array, and the offsets where each begins (one more than texts)."""
    joined = "".join(texts)
    points = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return points, offsets


def totals(mask: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """How many True values each text holds; exact for empty texts too."""
    running = np.zeros(len(mask) + 1, np.int64)
    np.cumsum(mask, out=running[1:])
    return running[offsets[1:]] - running[offsets[:-1]]


def _histogram(owner: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """How often each text holds each value below 16: (size, 16)."""
    return np.bincount(owner * _BINS + values, minlength=size * _BINS).reshape(size, _BINS)


class Counts:
    """Counts per text, each an int array with one value per text."""

    def __init__(self, texts: list[str]) -> None:
        points, offsets = code_points(texts)
        table = tables()
        table.cover(points)
        kind = table.kind[points]
        owner = np.repeat(np.arange(len(texts)), np.diff(offsets))
        of_kind = _histogram(owner, kind, len(texts))
        han = kind == HAN
        of_flags = _histogram(owner[han], table.flags[points[han]], len(texts))

        def flagged(flag: int) -> np.ndarray:
            return of_flags[:, [value for value in range(_BINS) if value & flag]].sum(1)

        self.chars = np.diff(offsets)
        self.solid = self.chars - of_kind[:, SPACE]
        self.han, self.kana, self.hangul = of_kind[:, HAN], of_kind[:, KANA], of_kind[:, HANGUL]
        self.latin = of_kind[:, LATIN]
        self.letters = of_kind[:, [*LETTERS, MARK]].sum(1)
        self.digits, self.symbols = of_kind[:, DIGIT], of_kind[:, SYMBOL]
        self.traditional, self.simplified = flagged(TRADITIONAL), flagged(SIMPLIFIED)
        self.function_han, self.cantonese = flagged(FUNCTION), flagged(CANTONESE)
        self.runs = self._runs(kind, offsets, han=True)  # letters between anything else: words, or Chinese clauses
        self.words = self._runs(kind, offsets, han=False) + self.han + self.kana  # each Han or kana counts as a word

    @staticmethod
    def _runs(kind: np.ndarray, offsets: np.ndarray, han: bool) -> np.ndarray:
        letter = (kind == LATIN) | (kind == HANGUL) | (kind == LETTER) | (kind == MARK)
        if han:
            letter |= (kind == HAN) | (kind == KANA)
        starts = letter.copy()
        starts[1:] &= ~letter[:-1]
        begins = offsets[:-1][np.diff(offsets) > 0]
        starts[begins] = letter[begins]  # a text's first letter begins a run whatever stood in the text before
        return totals(starts, offsets)
