"""What two documents are compared by: hashes of 5-word or 8-character pieces of a normalised key.

The key (NFKC, lower case, no punctuation, simplified characters) exists only here and never reaches the text.
"""

import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from hepta.corpus.characters import HAN, KANA, code_points, tables, totals

WORDS, CHARS = 5, 8  # shingle widths
SPACE_POINT = 32
LONG_WORD = 12  # mean characters per space-free run from which words are no units (Han, kana, Thai …)
_POINT_BASE, _WORD_BASE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
PERMUTATIONS, SEED = 128, 20_240_501
_OWNER_SHIFT = 44  # bits of hash that tell the shingles of one text apart; the rest numbers the texts of a batch


@dataclass(frozen=True)
class Shingles:
    """Hashes of all texts' shingles in one array; text i owns ``hashes[offsets[i]:offsets[i + 1]]``."""

    hashes: np.ndarray  # uint64, with repeats, at least one per text
    offsets: np.ndarray  # int64

    def set_of(self, index: int) -> np.ndarray:
        """The sorted distinct shingles of one text."""
        return np.unique(self.hashes[self.offsets[index] : self.offsets[index + 1]])

    def repeated_share(self) -> np.ndarray:
        """Per text: which share of its shingles occurred in it before."""
        counts = np.diff(self.offsets)
        owner = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
        keys = np.sort(owner << np.uint64(_OWNER_SHIFT) | self.hashes >> np.uint64(64 - _OWNER_SHIFT))
        again = np.zeros(len(keys), bool)
        again[1:] = keys[1:] == keys[:-1]
        return totals(again, self.offsets) / np.maximum(counts, 1)

    def signatures(self) -> np.ndarray:
        """MinHash signatures (texts, 128), uint32."""
        import rensa

        if len(self.offsets) == 1:
            return np.zeros((0, PERMUTATIONS), np.uint32)
        offsets = self.offsets.astype(np.uint64)
        minhash: Any = rensa.RMinHash  # pyright: ignore[reportAttributeAccessIssue]
        matrix = minhash.digest_matrix_from_flat_token_hashes(self.hashes, offsets, PERMUTATIONS, SEED)
        return np.array(matrix.to_rows(), np.uint32)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of two sorted arrays without repeats."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def shingle(texts: list[str]) -> Shingles:
    """Shingle each text; the result of one text does not depend on its neighbours."""
    points, offsets = _keys(texts)
    spaces = points == SPACE_POINT
    solid = np.diff(offsets) - totals(spaces, offsets)
    starts = ~spaces
    starts[1:] &= spaces[:-1]
    begins = offsets[:-1][np.diff(offsets) > 0]
    starts[begins] = ~spaces[begins]
    words = totals(starts, offsets)
    kind = tables().kind[points]
    unspaced = totals((kind == HAN) | (kind == KANA), offsets)
    by_chars = (unspaced * 10 >= solid * 3) | (solid >= LONG_WORD * words)
    in_chars = np.repeat(by_chars, np.diff(offsets))

    char_units, char_counts = _mix(points[~spaces & in_chars].astype(np.uint64)), np.where(by_chars, solid, 0)
    word_units, word_counts = _word_hashes(points, starts, spaces, in_chars), np.where(by_chars, 0, words)
    char_grams, char_pieces = _windows(char_units, char_counts, CHARS, _POINT_BASE)
    word_grams, word_pieces = _windows(word_units, word_counts, WORDS, _WORD_BASE)
    return _gather(texts, points, offsets, by_chars, (char_grams, char_pieces), (word_grams, word_pieces))


def _keys(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Folded code points of all texts, dropped characters removed."""
    normal = [text if text.isascii() else unicodedata.normalize("NFKC", text) for text in texts]
    points, offsets = code_points(normal)
    table = tables()
    table.cover(points)
    folded = table.fold[points]
    kept = folded != 0
    counts = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(totals(kept, offsets), out=counts[1:])
    return folded[kept], counts


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _word_hashes(points: np.ndarray, starts: np.ndarray, spaces: np.ndarray, passed_over: np.ndarray) -> np.ndarray:
    """One hash per word: Σ mixed code point × power of its place, mixed; none where ``passed_over``."""
    bounds = np.flatnonzero(starts | spaces)  # a word reaches to the next space or the next text's first word
    if not len(bounds):
        return np.zeros(0, np.uint64)
    place = np.arange(len(points)) - np.repeat(bounds, np.diff(np.append(bounds, len(points))))
    powers = np.power(_POINT_BASE, np.arange(256, dtype=np.uint64))
    weighted = _mix(points.astype(np.uint64)) * powers[place & 255]
    wanted = starts[bounds] & ~passed_over[bounds]
    return _mix(np.add.reduceat(weighted, bounds)[wanted])


def _windows(units: np.ndarray, counts: np.ndarray, width: int, base: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all runs of ``width`` units that lie inside one text, and how many each text has."""
    pieces = np.maximum(counts - width + 1, 0)
    if len(units) < width:
        return np.zeros(0, np.uint64), pieces
    rolled = np.zeros(len(units) - width + 1, np.uint64)
    for place in range(width):
        rolled = rolled * base + units[place : place + len(rolled)]
    ends = np.cumsum(counts)
    first = np.repeat(ends - counts, pieces) + _ranks(pieces)
    return _mix(rolled[first]), pieces


def _ranks(counts: np.ndarray) -> np.ndarray:
    """0 … counts[0]−1, 0 … counts[1]−1, …"""
    total = int(counts.sum())
    return np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)


def _gather(
    texts: list[str],
    points: np.ndarray,
    offsets: np.ndarray,
    by_chars: np.ndarray,
    chars: tuple[np.ndarray, np.ndarray],
    words: tuple[np.ndarray, np.ndarray],
) -> Shingles:
    """Bring both kinds together in text order; a text too short for a shingle is one shingle as a whole."""
    pieces = chars[1] + words[1]
    short = np.flatnonzero(pieces == 0)
    sizes = np.maximum(pieces, 1)
    bounds = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(sizes, out=bounds[1:])
    hashes = np.zeros(bounds[-1], np.uint64)
    for grams, counts in (chars, words):
        hashes[np.repeat(bounds[:-1], counts) + _ranks(counts)] = grams
    for index in short:
        key = points[offsets[index] : offsets[index + 1]].tobytes().decode("utf-32-le").split()
        whole = ("" if by_chars[index] else " ").join(key) or texts[index]
        hashes[bounds[index]] = xxhash.xxh3_64_intdigest(whole.encode("utf-8"))
    return Shingles(hashes, bounds)
