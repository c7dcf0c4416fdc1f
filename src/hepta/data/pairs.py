"""Sentence pairs as training batches: read, split so that no twin of a test source is trained on, read by number.

Rows of a step have similar lengths: the shuffled stream of all epochs is cut into pools, each pool is sorted by length
and cut into steps, and these are shuffled. So little is padding, and the n-th pair is a function of (data, seed, n).
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from hepta.config import HeptaError
from hepta.console import warn
from hepta.data.files import EXAMPLE_ROWS, Policy
from hepta.data.order import IGNORE
from hepta.data.permutation import key_of, shuffled
from hepta.data.tables import Column, bare, load_table, read_text_cell
from hepta.stage import digest_json
from hepta.tokenizer.load import Tokenizer

VERSION = 1
SHARES = {"test": 0.08, "val": 0.04}  # the rest is train
POOL = 16  # steps whose pairs are sorted by length together

SOURCE = Column("text", (
    "source", "src", "zh", "chinese", "source text", "text", "原文", "中文", "源文", "汉语",
), read_text_cell)  # fmt: skip
TARGET = Column("label", (
    "target", "tgt", "translation", "en", "english", "target text", "译文", "英文", "翻译", "英语",
), read_text_cell)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A sentence and its translation; ``name`` says where it stands (``pairs row 17``)."""

    source: str
    target: str
    name: str


@dataclass(frozen=True)
class PairSplits:
    """Pairs to train on, to watch training by, and to be judged by."""

    train: list[Pair]
    val: list[Pair]
    test: list[Pair]
    report: dict[str, Any] = field(default_factory=dict)


def load_pairs(
    path: Path | str | Sequence[Path | str], text: str | None = None, label: str | None = None, policy: Policy = "drop"
) -> tuple[list[Pair], dict[str, Any]]:
    """Sentence pairs of files with two columns, repeated pairs once; ``text`` and ``label`` name the columns.

    Returns:
        pairs, and the report of ``load_table`` with the repeats counted.

    Raises:
        HeptaError: as ``load_table``.
    """
    columns = [replace(SOURCE, given=text), replace(TARGET, given=label)]
    rows, report = load_table(path, columns, policy, "sentence pairs")
    pairs = {(row.values["text"], row.values["label"]): row.name for row in reversed(rows)}  # the first one's name
    report["repeated pairs left out"] = len(rows) - len(pairs)
    return [Pair(source, target, name) for (source, target), name in reversed(pairs.items())], report


@cache
def _simplifier() -> Any:
    import opencc

    return opencc.OpenCC("t2s")


def twin_key(text: str) -> str:
    """What makes two sources the same: NFKC, case folded, simplified characters, no punctuation and no space."""
    return bare(_simplifier().convert(unicodedata.normalize("NFKC", text).casefold()))


def split_pairs(pairs: Sequence[Pair]) -> PairSplits:
    """Split by a hash of each source's ``twin_key``: twins share a side, and more rows move no other.

    Raises:
        HeptaError: a split stays empty.
    """
    parts: dict[str, list[Pair]] = {"train": [], "val": [], "test": []}
    for pair in pairs:
        key = twin_key(pair.source).encode("utf-8", "replace")
        place = xxhash.xxh3_64_intdigest(b"pair:" + key) / 2**64
        held_out = "test" if place < SHARES["test"] else "val" if place < sum(SHARES.values()) else "train"
        parts[held_out].append(pair)
    if empty := [name for name, part in parts.items() if not part]:
        raise HeptaError(f"split {empty[0]!r} is empty: {len(pairs)} pairs are too few to hold any out; give more")
    known = {twin_key(pair.target) for pair in parts["train"]}
    report = {
        "splits": {name: len(part) for name, part in parts.items()},
        "sources that have twins": len(pairs) - len({twin_key(pair.source) for pair in pairs}),
        "test targets that stand in train too": sum(twin_key(pair.target) in known for pair in parts["test"]),
    }
    return PairSplits(parts["train"], parts["val"], parts["test"], report)


@dataclass(frozen=True)
class EncodedPair:
    """Ids of one pair: the source with its eos (S,), the target between bos and eos (T + 1,)."""

    source: np.ndarray
    target: np.ndarray
    name: str


def encode_pairs(pairs: Sequence[Pair], tokenizer: Tokenizer, longest: int) -> tuple[list[EncodedPair], dict[str, Any]]:
    """Pairs as ids; those with a side of more than ``longest`` tokens (eos included) are dropped and counted.

    Returns:
        what is left, and the counts: pairs, too long (with example rows), tokens of each side.

    Raises:
        HeptaError: nothing is left.
    """
    ends = ([tokenizer.bos_id], [tokenizer.eos_id])
    kept, long = [], []
    sides = [tokenizer.encode_batch([getattr(pair, side) for pair in pairs]) for side in ("source", "target")]
    for pair, source, target in zip(pairs, *sides, strict=True):
        if max(len(source), len(target)) + 1 > longest:
            long.append(pair.name)
            continue
        kept.append(EncodedPair(np.array(source + ends[1]), np.array(ends[0] + target + ends[1]), pair.name))
    if not kept:
        raise HeptaError(f"all {len(pairs)} pairs have a side of more than {longest} tokens; raise sequence_length")
    if long:
        warn(f"dropped {len(long)} pairs with a side of more than {longest} tokens ({', '.join(long[:EXAMPLE_ROWS])})")
    tokens = {side: int(sum(len(getattr(one, side)) for one in kept)) for side in ("source", "target")}
    return kept, {"pairs": len(kept), "too long": len(long), "examples": long[:EXAMPLE_ROWS], "tokens": tokens}


def batch_of(examples: Sequence[EncodedPair], pad_id: int) -> dict[str, np.ndarray]:
    """Pairs as one batch, padded to its longest source and target.

    Returns:
        source_ids (B, S) and source_mask (B, S), False at padding; input_ids (B, T), each target from bos on;
        labels (B, T), the token after each, ``IGNORE`` at padding, which is known by length and never by id.
    """
    rows, S = len(examples), max(len(one.source) for one in examples)
    T = max(len(one.target) for one in examples) - 1
    batch = {
        "source_ids": np.full((rows, S), pad_id, np.int64), "source_mask": np.zeros((rows, S), bool),
        "input_ids": np.full((rows, T), pad_id, np.int64), "labels": np.full((rows, T), IGNORE, np.int64),
    }  # fmt: skip
    for row, one in enumerate(examples):
        batch["source_ids"][row, : len(one.source)] = one.source
        batch["source_mask"][row, : len(one.source)] = True
        batch["input_ids"][row, : len(one.target) - 1] = one.target[:-1]
        batch["labels"][row, : len(one.target) - 1] = one.target[1:]
    return batch


class PairOrder:
    """Encoded pairs in the order a run reads them: what training asks of an ``Order``.

    Args:
        examples: from ``encode_pairs``.
        pad_id: of the tokenizer.
        rows: pairs of a step.
        seed: of the shuffles.

    Attributes:
        sequences_per_epoch: pairs; a pool that lies across the end of an epoch mixes the two.
    """

    def __init__(self, examples: Sequence[EncodedPair], pad_id: int, rows: int, seed: int) -> None:
        self.examples, self.pad_id, self.rows, self.seed = examples, pad_id, rows, seed
        self.sequences_per_epoch = len(examples)
        self._pool = lru_cache(maxsize=4)(self._sort_pool)
        self._epoch = lru_cache(maxsize=4)(lambda epoch: shuffled(len(examples), key_of("pairs", seed, epoch)))
        content = [[xxhash.xxh3_64_hexdigest(side.tobytes()) for side in (e.source, e.target)] for e in examples]
        self.digest = digest_json([VERSION, pad_id, rows, seed, POOL, content])

    def batch(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Pairs [start, start + count); see ``batch_of``."""
        return batch_of([self.examples[self._find(n)] for n in range(start, start + count)], self.pad_id)

    def where(self, n: int) -> list[str]:
        """Name of the n-th pair."""
        return [self.examples[self._find(n)].name]

    def count_tokens(self, first: int, batches: Sequence[Any]) -> int:
        """Tokens of both sides, padding not counted."""
        return int(sum((b["source_mask"] != 0).sum() + (b["labels"] != IGNORE).sum() for b in batches))

    def _find(self, n: int) -> int:
        pool, place = divmod(n, POOL * self.rows)
        return int(self._pool(pool)[place])

    def _sort_pool(self, pool: int) -> np.ndarray:
        """The pairs of a pool (POOL · rows,): its part of the shuffled stream, by length, its steps shuffled."""
        places = np.arange(pool * POOL * self.rows, (pool + 1) * POOL * self.rows)
        drawn = np.array([self._epoch(int(n) // len(self.examples))[n % len(self.examples)] for n in places])
        lengths = [(len(self.examples[i].target), len(self.examples[i].source)) for i in drawn]
        by_length = drawn[sorted(range(len(drawn)), key=lambda place: lengths[place])]
        return by_length.reshape(POOL, self.rows)[shuffled(POOL, key_of("pool", self.seed, pool))].ravel()
