"""What the weights of one layer of attention tell: links of a word, entropy, habits of heads, pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FULL = 64  # tokens up to which every weight is kept
BINS = 48  # rows and columns of a picture of a longer text
WORD_LINKS, TOKEN_LINKS = 8, 5  # strongest links kept of the word, and of every other token of a long text
HABIT = 0.5  # mean weight on one place from which on a head is said to have that habit
EVEN = 0.9  # share of the greatest possible entropy from which on a head is said to spread evenly


@dataclass
class Layer:
    """One layer: what is kept of its weights (H, T, S).

    Attributes:
        heads: of each head ``entropy`` (mean over tokens, nats), ``habit`` and the mean weights behind it; with a word,
            its ``links`` [[place, weight], …] and ``word_entropy``.
        links: of the word, the mean over heads.
        weights: all of them (H, T, S), where the text is short.
        picture: of long texts (H, bins, bins), the largest weight of each bin in hundredths.
        tokens: of long texts, each token's strongest links, the mean over heads (T, k).
        watchers: how much each query looks at the watched keys (T,), mean over heads; where there are any.
    """

    heads: list[dict[str, Any]]
    links: list[list[float]]
    weights: list[Any] | None = None
    picture: list[Any] | None = None
    tokens: list[Any] | None = None
    watchers: list[float] = field(default_factory=list)


def rounded(weights: Tensor, digits: int = 4) -> Any:
    """Nested lists of few digits; what is exactly 0 stays so, and is written as short as that."""

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(one) for one in value]
        return round(value, digits) or 0

    return short(weights.tolist())


def top_links(row: Tensor, most: int) -> list[list[float]]:
    """[[place, weight], …] of the greatest weights above 0 in a row (S,), the strongest first."""
    values, places = row.topk(min(most, len(row)))
    pairs = zip(places.tolist(), values.tolist(), strict=True)
    return [[place, round(value, 6)] for place, value in pairs if value > 0]


def entropies(weights: Tensor) -> Tensor:
    """−Σ p ln p of each row (…, S), in nats: 0 when all looks at one place."""
    return torch.special.entr(weights).sum(-1)


def habits(weights: Tensor, causal: bool, across: bool) -> list[dict[str, float | str]]:
    """What each head of (H, T, S) does most: its mean weight on fixed places, and the name of its habit.

    The first two tokens are left out of the means of causal models, who have hardly a choice. ``habit`` is the place
    with a mean of at least 0.5, or ``even`` where the entropy reaches 0.9 of what the visible tokens allow, else
    ``mixed``.

    Args:
        weights: (H, T, S).
        causal: whether a token sees nothing after it.
        across: whether keys are another text's, so that "itself" and "previous" mean nothing.
    """
    length, total = weights.shape[1:]
    start = 2 if causal and length > 2 else 0
    rows, index = weights[:, start:], torch.arange(start, length)
    shares = {"first": rows[..., 0].mean(-1)}
    if not causal:
        shares["last"] = rows[..., -1].mean(-1)
    if not across:
        shares["itself"] = weights[:, index, index].mean(-1)
        later, earlier = index[index > 0], index[: -1 if not causal else 0]
        if len(later):
            shares["previous"] = weights[:, later, later - 1].mean(-1)
        if len(earlier):
            shares["next"] = weights[:, earlier, earlier + 1].mean(-1)
    visible = index.float() + 1 if causal else torch.full((length - start,), float(total))
    spread = (entropies(rows).sum(-1) / visible.log().sum().clamp(min=1e-9)).tolist()
    found: list[dict[str, float | str]] = []
    for head in range(len(weights)):
        means = {name: round(float(share[head]), 4) for name, share in shares.items()}
        habit = max(means, key=lambda name: means[name])
        if means[habit] < HABIT:
            habit = "even" if spread[head] >= EVEN else "mixed"
        found.append({**means, "habit": habit})
    return found


def look(
    weights: Tensor, focus: Sequence[int], causal: bool, across: bool = False, watched: Sequence[int] = ()
) -> Layer:
    """Reduce the weights of one layer to what is told of them.

    Args:
        weights: (1, H, T, S).
        focus: queries that make up the word; may be empty.
        causal, across: as in ``habits``.
        watched: keys of whom it is told who looks at them.
    """
    weights = weights[0]
    means = entropies(weights).mean(-1).tolist()
    heads: list[dict[str, Any]] = []
    for number, habit in enumerate(habits(weights, causal, across)):
        one: dict[str, Any] = {"head": number + 1, "entropy": round(means[number], 4), **habit}
        if focus:
            rows = weights[number, focus]
            one |= {
                "word_entropy": round(float(entropies(rows).mean()), 4),
                "links": top_links(rows.mean(0), WORD_LINKS),
            }
        heads.append(one)
    average = weights.mean(0)
    layer = Layer(heads, top_links(average[list(focus)].mean(0), WORD_LINKS) if focus else [])
    if watched:
        layer.watchers = rounded(average[:, list(watched)].sum(-1), 6)
    if max(weights.shape[1:]) <= FULL:
        layer.weights = rounded(weights)
    else:
        layer.picture = (pooled(weights) * 100).round().int().tolist()
        layer.tokens = [top_links(row, TOKEN_LINKS) for row in average]
    return layer


def pooled(weights: Tensor) -> Tensor:
    """The largest weight of each bin of (H, T, S): (H, at most BINS, at most BINS)."""
    sizes = [min(math.ceil(length / bin_size(length)), length) for length in weights.shape[1:]]
    steps = [bin_size(length) for length in weights.shape[1:]]
    padding = [sizes[1] * steps[1] - weights.shape[2], sizes[0] * steps[0] - weights.shape[1]]
    wide = F.pad(weights, (0, padding[0], 0, padding[1]))
    return wide.unflatten(2, (sizes[1], steps[1])).unflatten(1, (sizes[0], steps[0])).amax((2, 4))


def bin_size(length: int) -> int:
    """Tokens in one bin of a picture."""
    return -(-length // BINS)
