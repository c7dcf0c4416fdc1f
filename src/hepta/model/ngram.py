"""N-grams: what followed the last n−1 tokens, counted, with Kneser and Ney's smoothing.

Interpolated modified Kneser–Ney (Chen & Goodman 1999). For a history h and a next token w, at each order k:

    p_k(w | h) = (a(h w) − D(a(h w))) / Σ_x a(h x)  +  γ(h) · p_{k−1}(w | h without its first token)

a is the count in the highest order; below it, the number of different tokens seen before the k-gram (a token
that follows everything is a better guess than a frequent one that follows one word only). K-grams at the start
of a document have no such token and keep their count. D is what each order takes off counts of 1, 2 and ≥ 3, and
γ(h) gives exactly what was taken to the shorter history. A history never seen hands all to the shorter one; below
the unigrams lies 1 / V. So every distribution sums to 1 over the whole vocabulary.

The n-grams form a tree in compressed rows: level k holds the last token and a of each k-gram, sorted by
(prefix, token); ``starts`` says where the continuations of each k-gram begin in level k + 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hepta.config import HeptaError
from hepta.model.cache import Slots
from hepta.model.history import NGramShape
from hepta.model.network import Head, Network

FALLBACK = (0.5, 1.0, 1.5)  # discounts where counts of counts cannot give any (KenLM's default fallback)
ROWS = 256  # distributions computed at once, in float64


@dataclass(frozen=True)
class Level:
    """All k-grams of one length.

    Attributes:
        tokens: last token of each k-gram (G,), sorted inside each prefix; for k = 1 all of the vocabulary.
        counts: a of each k-gram (G,).
        starts: (G + 1,) first continuation of each k-gram in the next level; None in the highest.
    """

    tokens: np.ndarray
    counts: np.ndarray
    starts: np.ndarray | None


@dataclass(frozen=True)
class Discounts:
    """What one order takes off counts of 1, 2 and ≥ 3; ``estimated`` is False where the fallback is used."""

    values: tuple[float, float, float]
    estimated: bool

    def of(self, counts: np.ndarray) -> np.ndarray:
        """D(a) for each count (…,) float64; 0 for a count of 0."""
        return np.array([0.0, *self.values])[np.minimum(counts, 3)]


def estimate_discounts(counts: np.ndarray) -> Discounts:
    """Modified Kneser–Ney's discounts from the counts of counts t₁ … t₄ of one order.

    With Y = t₁ / (t₁ + 2 t₂): D₁ = 1 − 2Y t₂/t₁, D₂ = 2 − 3Y t₃/t₂, D₃ = 3 − 4Y t₄/t₃ (Chen & Goodman 1999, eq. 26).
    Where one of t₁ … t₄ is 0, or a D_k does not lie in [0, k], all three are ``FALLBACK``.
    """
    t = np.bincount(np.minimum(counts, 5).astype(np.int64), minlength=6)[1:5].astype(np.float64)
    if not t.all():
        return Discounts(FALLBACK, estimated=False)
    y = t[0] / (t[0] + 2 * t[1])
    values = tuple(float(k - (k + 1) * y * t[k] / t[k - 1]) for k in (1, 2, 3))
    if any(not 0 <= value <= k for k, value in enumerate(values, 1)):
        return Discounts(FALLBACK, estimated=False)
    return Discounts(values, estimated=True)  # pyright: ignore[reportArgumentType] - three by construction


def smallest(values: np.ndarray) -> np.ndarray:
    """The same whole numbers in the narrowest unsigned dtype that holds them."""
    highest = int(values.max(initial=0))
    return values.astype(next(t for t in (np.uint8, np.uint16, np.uint32, np.uint64) if highest <= np.iinfo(t).max))


def count_ngrams(tokens: np.ndarray, ends: np.ndarray, vocabulary: int, order: int) -> list[Level]:
    """Count all n-grams up to ``order``; none crosses a document. About 50 bytes of memory per token.

    Args:
        tokens: documents end to end (N,), each ``[bos] ids [eos]``; the bos is history only, never counted as next.
        ends: one past the last token of each document (D,).
        vocabulary: V; every token lies below it.
        order: n ≥ 1.

    Returns:
        levels 1 … n.
    """
    begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    depth = np.arange(len(tokens)) - np.repeat(begins, np.diff(np.concatenate([[0], ends])))  # tokens before this one
    node = tokens.astype(np.int64)  # the k-gram that ends at each place, where depth ≥ k − 1
    last, size = np.arange(vocabulary), vocabulary
    levels = []
    for k in range(2, order + 1):
        here = np.flatnonzero(depth >= k - 1)
        keys, first, inverse = np.unique(
            node[here - 1] * vocabulary + tokens[here], return_index=True, return_inverse=True
        )
        different = np.bincount(node[here[first]], minlength=size)  # each distinct k-gram: one more token before
        if k > 2:
            different += np.bincount(node[depth == k - 2], minlength=size)  # those that begin documents: counted
        starts = np.searchsorted(keys, np.arange(size + 1) * vocabulary)
        levels.append(Level(smallest(last), smallest(different), smallest(starts)))
        node = np.zeros_like(node)
        node[here] = inverse
        last, size = keys % vocabulary, len(keys)
    counted = node[depth >= max(order - 1, 1)]
    return [*levels, Level(smallest(last), smallest(np.bincount(counted, minlength=size)), None)]


class Table:
    """Counted n-grams and their probabilities.

    Args:
        levels: from ``count_ngrams``, or as stored.
        discounts: one of each level; None estimates them.
    """

    def __init__(self, levels: Sequence[Level], discounts: Sequence[Discounts] | None = None) -> None:
        self.levels = list(levels)
        self.discounts = list(discounts) if discounts else [estimate_discounts(level.counts) for level in levels]
        self.order, self.vocabulary = len(self.levels), len(self.levels[0].counts)
        counts, taken = self.levels[0].counts.astype(np.float64), self.discounts[0].of(self.levels[0].counts)
        if not counts.any():
            raise HeptaError("no n-grams to make a model of: the documents hold no tokens")
        self._unigrams = ((counts - taken) + taken.sum() / self.vocabulary) / counts.sum()

    @property
    def sizes(self) -> list[int]:
        """Stored n-grams of each order; of unigrams those that were seen."""
        return [int((self.levels[0].counts > 0).sum()), *(len(level.tokens) for level in self.levels[1:])]

    def _child(self, k: int, nodes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The (k + 1)-gram that continues each k-gram (R,) by a token (R,); −1 where it was never seen.

        A binary search in all rows at once.
        """
        starts, following = self.levels[k - 1].starts, self.levels[k].tokens
        assert starts is not None, "the highest order has no continuations"
        known = nodes >= 0
        low, end = (starts[np.where(known, nodes, 0) + shift].astype(np.int64) for shift in (0, 1))
        high = end.copy()
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = (low + high) // 2
            before = (low < high) & (following[np.minimum(middle, len(following) - 1)] < tokens)
            low, high = np.where(before, middle + 1, low), np.where(before | (low >= high), high, middle)
        hit = known & (low < end) & (following[np.minimum(low, len(following) - 1)] == tokens)
        return np.where(hit, low, -1)

    def probabilities(self, histories: np.ndarray) -> np.ndarray:
        """The next token's distribution after each history.

        Args:
            histories: the last tokens before the one to predict (R, H), the latest on the right; −1 where there
                is none. At most n − 1 of them are looked at.

        Returns:
            (R, V) float64; every row sums to 1.
        """
        rows, reach = histories.shape[0], min(self.order - 1, histories.shape[1])
        left = np.ones(rows)  # the part of each row's probability still to be given away
        found = []
        for length in range(reach, 0, -1):
            nodes = histories[:, -length].astype(np.int64)
            for back in range(length - 1, 0, -1):
                nodes = self._child(length - back, nodes, histories[:, -back])
            found.append(self._discounted(length, nodes, left))
        result = left[:, None] * self._unigrams
        for places, tokens, values in found:
            result[places, tokens] += values
        return result

    def _discounted(self, k: int, nodes: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What order k + 1 gives the continuations of k-grams (R,): rows, tokens, values; ``left`` shrinks by γ."""
        starts, level = self.levels[k - 1].starts, self.levels[k]
        assert starts is not None, "the highest order has no continuations"
        low, high = (starts[np.maximum(nodes, 0) + shift].astype(np.int64) for shift in (0, 1))
        rows = np.flatnonzero((nodes >= 0) & (high > low))
        sizes = (high - low)[rows]
        if not len(rows):
            return rows, rows, left[rows]
        heads = np.cumsum(sizes) - sizes
        entries = np.arange(int(sizes.sum())) + np.repeat(low[rows] - heads, sizes)
        counts = level.counts[entries]
        taken = self.discounts[k].of(counts)
        total = np.add.reduceat(counts.astype(np.float64), heads)
        share = left[rows] / total
        left[rows] = share * np.add.reduceat(taken, heads)
        values = (counts - taken) * np.repeat(share, sizes)
        return np.repeat(rows, sizes), level.tokens[entries].astype(np.int64), values


class NGram(Network):
    """An n-gram model as the other models are: ids in, log-probabilities out as logits.

    Its parameters are whole numbers that no optimizer moves: of each level the last tokens, the counts and, below the
    highest, where continuations start. It computes in numpy on the CPU; a history never reaches over a document's edge.
    """

    config: NGramShape

    def __init__(self, config: NGramShape, levels: Sequence[Level] | None = None) -> None:
        """Args: the shape, and what was counted; without that, room for what the shape says is stored."""
        super().__init__(config)
        if not config.ngrams:
            raise HeptaError("an n-gram model is counted, not drawn: make it with hepta pretrain --model ngram")
        self.levels = nn.ModuleList(_Stored(config, k, levels[k] if levels else None) for k in range(config.order))

    @classmethod
    def of(cls, levels: Sequence[Level]) -> "NGram":
        """The model that counted levels make."""
        discounts = [estimate_discounts(level.counts) for level in levels]
        shape = NGramShape(
            vocab_size=len(levels[0].counts), order=len(levels), ngrams=tuple(len(level.counts) for level in levels),
            discounts=tuple(d.values for d in discounts), estimated=tuple(d.estimated for d in discounts),
        )  # fmt: skip
        return cls(shape, levels)

    @cached_property
    def table(self) -> Table:
        """The stored arrays as they lie, and their probabilities."""
        discounts = [Discounts(*pair) for pair in zip(self.config.discounts, self.config.estimated, strict=True)]
        return Table([stored.level() for stored in self.levels], discounts)  # pyright: ignore - they are _Stored

    @property
    def output_weight(self) -> Tensor:
        """Rows of the vocabulary without columns (V, 0): a distribution is looked up, not multiplied."""
        return torch.empty(self.config.vocab_size, 0)

    def make_cache(self, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Any:
        """The ids so far."""
        return Slots(1, rows, capacity, 1, torch.int64, torch.device("cpu"))

    def histories(
        self, input_ids: Tensor, segment_ids: Tensor | None, positions: Tensor | None, cache: Slots | None
    ) -> Tensor:
        """The n − 1 tokens up to each position (B, T, n − 1), −1 where the document had not begun."""
        reach = max(self.config.order - 1, 1)
        if cache is not None:
            assert positions is not None, "a cache needs positions"
            cache.put(0, positions, input_ids[..., None] + 1)  # so that 0, what lies before the first, is none
            there = positions[..., None] - torch.arange(reach - 1, -1, -1)
            return cache.get(0, there.flatten(1)).view(there.shape) - 1
        columns = []
        for back in range(reach - 1, -1, -1):
            column = torch.full_like(input_ids, -1)
            column[:, back:] = input_ids[:, : input_ids.shape[1] - back]
            if segment_ids is not None and back:
                column[:, back:].masked_fill_(segment_ids[:, back:] != segment_ids[:, :-back], -1)
            columns.append(column)
        return torch.stack(columns, -1)

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        segment_ids: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
        head: Head | None = None,
    ) -> Any:
        """Log-probabilities of the next token (B, T, V) float32, or ``head(them, None, None)``.

        Arguments are those of ``Network.forward``; ``weight`` None tells a head that the rows are logits already.
        """
        segments, places = (None if given is None else given.cpu() for given in (segment_ids, positions))
        past = self.histories(input_ids.cpu(), segments, places, cache).flatten(0, 1).numpy()
        logits = torch.empty(len(past), self.config.vocab_size)
        for start in range(0, len(past), ROWS):
            chunk = self.table.probabilities(past[start : start + ROWS])
            torch.log(torch.from_numpy(chunk).float(), out=logits[start : start + ROWS])
        logits = logits.view(*input_ids.shape, -1).to(input_ids.device)
        return logits if head is None else head(logits, None, None)  # pyright: ignore[reportArgumentType] - see above


class _Stored(nn.Module):
    """One level's arrays as parameters, so that they are saved and loaded as every model's are."""

    def __init__(self, config: NGramShape, number: int, level: Level | None) -> None:
        super().__init__()
        count, last = config.ngrams[number], number == config.order - 1
        for name in ("tokens", "counts") if last else ("tokens", "counts", "starts"):
            value = None if level is None else torch.from_numpy(getattr(level, name))
            value = torch.empty(count + (name == "starts"), dtype=torch.int64) if value is None else value
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))

    def level(self) -> Level:
        """As ``Table`` wants it."""
        arrays = {name: parameter.detach().cpu().numpy() for name, parameter in self.named_parameters()}
        return Level(arrays["tokens"], arrays["counts"], arrays.get("starts"))
