"""The order of labelled rows: the n-th row of a run is a pure function of (data, seed, n), and neighbours are as long.

Rows of about equal length stand together, so that a batch is padded to its own longest row only; which rows meet
in a batch, and the order of batches, change in every epoch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import xxhash

from hepta.config import HeptaError
from hepta.data.augment import Augmenter
from hepta.data.permutation import key_of, permute, shuffled
from hepta.stage import digest_json
from hepta.tokenizer.load import Tokenizer

VERSION = 1
POOL = 32  # batches that are sorted by length together
ROUND = 16  # padded lengths are multiples of this: kernels and their memory are kept per shape


@dataclass(frozen=True)
class RowData:
    """Rows to learn from or to be scored: ids of each text, labels (N,), and where each comes from."""

    texts: Sequence[str]
    ids: Sequence[np.ndarray]
    labels: np.ndarray
    names: Sequence[str]
    langs: Sequence[str]


class RowOrder:
    """Rows in the order a run reads them.

    Args:
        data: the rows.
        rows_per_step: of an optimizer step; rows of one step are about equally long.
        seed: of the order.
        pad_id: fills a row up; models go by ``lengths``, never by this id.
        augment: share of rows that have a changed copy beside them in each epoch.
        encode: text → ids, for the changed copies.
        shuffle: False reads rows as they lie (for scoring).

    Attributes:
        sequences_per_epoch: rows and changed copies of one epoch.
        digest: of the data and its order.
    """

    def __init__(
        self,
        data: RowData,
        rows_per_step: int,
        seed: int,
        pad_id: int,
        augment: float = 0.0,
        encode: Callable[[str], np.ndarray] | None = None,
        shuffle: bool = True,
    ) -> None:
        if not data.ids:
            raise HeptaError("no rows to read; give a table with texts and labels")
        self.data, self.rows_per_step, self.seed, self.pad_id = data, rows_per_step, seed, pad_id
        self.shuffle, self.encode = shuffle, encode
        self.lengths = np.array([len(ids) for ids in data.ids])
        self.copies = round(augment * len(data.ids))
        self.augmenter = Augmenter(data.texts, seed) if self.copies else None
        self.sequences_per_epoch = len(data.ids) + self.copies
        content = [xxhash.xxh3_64_hexdigest(np.ascontiguousarray(ids).tobytes()) for ids in data.ids]
        self.digest = digest_json([VERSION, seed, rows_per_step, augment, shuffle, content, data.labels.tolist()])
        self._places = lru_cache(maxsize=2)(self._arrange)

    def row(self, n: int) -> tuple[int, bool]:
        """Which row the n-th is, and whether it is a changed copy."""
        epoch, place = divmod(n, self.sequences_per_epoch)
        if not self.shuffle:
            return place, False
        number = int(self._places(epoch)[place])
        return (number, False) if number < len(self.data.ids) else (self._copied(epoch, number), True)

    def get(self, n: int) -> np.ndarray:
        """Ids (L,) of the n-th row."""
        number, changed = self.row(n)
        if not changed:
            return self.data.ids[number]
        assert self.augmenter is not None
        assert self.encode is not None, "changed copies need encode"
        return self.encode(self.augmenter.change(self.data.texts[number], n // self.sequences_per_epoch, number))

    def batch(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Rows [start, start + count): input_ids (count, T) padded to the longest, lengths and labels (count,)."""
        rows = [self.get(n) for n in range(start, start + count)]
        lengths = np.array([len(ids) for ids in rows], np.int64)
        longest = -(-int(lengths.max()) // ROUND) * ROUND
        ids = np.full((count, longest), self.pad_id, np.int64)
        for place, values in enumerate(rows):
            ids[place, : len(values)] = values
        labels = self.data.labels[[self.row(n)[0] for n in range(start, start + count)]]
        return {"input_ids": ids, "lengths": lengths, "labels": labels}

    def count_tokens(self, first: int, batches: Sequence[dict[str, np.ndarray]]) -> int:
        """Real tokens of batches; padding is not counted."""
        return sum(int(batch["lengths"].sum()) for batch in batches)

    def where(self, n: int) -> list[str]:
        """Where the n-th row comes from."""
        number, changed = self.row(n)
        return [self.data.names[number] + (" (changed copy)" if changed else "")]

    def languages(self, n: int) -> list[str]:
        """Language of the n-th row."""
        return [self.data.langs[self.row(n)[0]]]

    def examples(self, most: int = 3) -> list[tuple[str, str]]:
        """A few texts of the first epoch with their changed copies."""
        if self.augmenter is None:
            return []
        numbers = [self._copied(0, len(self.data.ids) + i) for i in range(min(most, self.copies))]
        return [(self.data.texts[i], self.augmenter.change(self.data.texts[i], 0, i)) for i in numbers]

    def _copied(self, epoch: int, number: int) -> int:
        """The row whose changed copy has this number, another one in each epoch."""
        turn, place = divmod(number - len(self.data.ids), len(self.data.ids))
        return permute(place, len(self.data.ids), key_of("copies", self.seed, epoch, turn))

    def _arrange(self, epoch: int) -> np.ndarray:
        """Row numbers of one epoch: shuffled, sorted by length within pools, batches shuffled again.

        Batches lie on multiples of ``rows_per_step`` of the whole run, so a step never spans two of them.
        """
        count, size = self.sequences_per_epoch, self.rows_per_step
        order = shuffled(count, key_of("rows", self.seed, epoch))
        lengths = self._epoch_lengths(epoch)
        ahead = -(epoch * count) % size % count  # rows that fill up the batch the last epoch left unfinished
        rest = order[ahead:]
        whole = len(rest) // size * size
        pools = [rest[i : min(i + POOL * size, whole)] for i in range(0, whole, POOL * size)]
        pools = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
        batches = np.concatenate(pools).reshape(-1, size) if pools else np.zeros((0, size), np.int64)
        batches = batches[shuffled(len(batches), key_of("batches", self.seed, epoch))]
        return np.concatenate([order[:ahead], batches.ravel(), rest[whole:]])

    def _epoch_lengths(self, epoch: int) -> np.ndarray:
        if not self.copies:
            return self.lengths
        copied = [self._copied(epoch, len(self.lengths) + i) for i in range(self.copies)]
        return np.concatenate([self.lengths, self.lengths[copied]])


class TextEncoder:
    """Texts to ids within a model's length: what the tokenizer's own file puts around a text, and the text's beginning.

    Args:
        tokenizer: of the model.
        limit: most ids of a text, its frame included; the end of longer ones is left out.

    Attributes:
        cut: texts that were too long, of those encoded by ``many``.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int) -> None:
        self._tokenizer, self.limit, self.cut = tokenizer, limit, 0
        self._before, self._after = (np.array(part, np.uint32) for part in tokenizer.frame)
        self._room = limit - len(self._before) - len(self._after)

    def __call__(self, text: str) -> np.ndarray:
        """Ids (L,) of one text."""
        return self._framed(self._tokenizer.encode_array(text))

    def many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text; counts those that were cut."""
        found = self._tokenizer.encode_arrays(texts)
        self.cut += sum(len(ids) > self._room for ids in found)
        return [self._framed(ids) for ids in found]

    def _framed(self, ids: np.ndarray) -> np.ndarray:
        return np.concatenate([self._before, ids[: self._room], self._after]).astype(np.uint32)
