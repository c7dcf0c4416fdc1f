"""Which input tokens a score rests on: integrated gradients, gradient × input, occlusion.

    integrated   a_t = (x_t − b) · ∫₀¹ ∂f/∂x_t (b + α (x − b)) dα    Sundararajan, Taly, Yan 2017
    gradient     a_t = x_t · ∂f/∂x_t
    occlusion    a_t = f(x) − f(x with b in place of x_t)            Zeiler & Fergus 2014

f is a number that a model makes of a text, x_t the token embeddings before positions are added, b the baseline: an
embedding that says nothing. Only the tokens asked about move; a text's frame ([CLS], a chat template) stays as it is.
Shapes: N rows, T time, D width, P tokens asked about.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

GAP = 0.01  # of what is explained: integration is fine enough below it
LEAST_CHANGE = 1e-3  # nats or logits: a smaller change of the score is no scale to measure a gap by
PIECE_STEPS, MOST_STEPS = 8, 1024
Done = Callable[[int], None]  # told after each batch how many rows it had


@dataclass(frozen=True)
class Question:
    """A score of a model for one text, and the tokens that shall account for it.

    Attributes:
        ids: what the model reads (T,).
        places: positions of the tokens asked about, in order (P,).
        score: ids (N, T) → f (N,), float32, differentiable by what ``embedding`` gave.
        embedding: the model's token embedding; None where it has none.
        batch_tokens: of one pass; bounds the memory.
    """

    ids: Tensor
    places: Tensor
    score: Callable[[Tensor], Tensor]
    embedding: nn.Embedding | None
    batch_tokens: int = 512

    @property
    def rows(self) -> int:
        """Rows of one pass."""
        return max(1, self.batch_tokens // len(self.ids))

    def at(self, values: Tensor) -> Tensor:
        """The score (N,) where the embeddings are ``values`` (N, T, D)."""
        assert self.embedding is not None
        with replaced(self.embedding, values):
            return self.score(self.ids.expand(len(values), -1))

    def embedded(self) -> Tensor:
        """x (T, D)."""
        assert self.embedding is not None
        return self.embedding(self.ids).detach()


@dataclass(frozen=True)
class Attribution:
    """What each token asked about adds to a score.

    Attributes:
        values: of each token (P,), in the score's unit, float64.
        score: f of the text.
        baseline_score: f where the baseline stands for every token asked about; None where the method needs none.
        steps: gradients taken for the integration; 0 for other methods.
        bound: the sum of its pieces' gaps, which is at least |gap|.
    """

    values: np.ndarray
    score: float
    baseline_score: float | None = None
    steps: int = 0
    bound: float = 0.0

    @property
    def gap(self) -> float | None:
        """Σ a − (f(x) − f(b)): what the integration missed; other methods promise nothing of their sum."""
        if self.baseline_score is None or not self.steps:
            return None
        return float(self.values.sum()) - (self.score - self.baseline_score)

    @property
    def gap_share(self) -> float | None:
        """|gap| as a share of |f(x) − f(b)|, or of ``LEAST_CHANGE`` where that is smaller."""
        if self.gap is None or self.baseline_score is None:
            return None
        return abs(self.gap) / max(abs(self.score - self.baseline_score), LEAST_CHANGE)


@contextmanager
def replaced(embedding: nn.Embedding, values: Tensor) -> Iterator[None]:
    """Inside, the embedding gives ``values`` (N, T, D) whatever the ids."""
    handle = embedding.register_forward_hook(lambda module, inputs, output: values)
    try:
        yield
    finally:
        handle.remove()


def integrated_gradients(
    question: Question, baseline: Tensor, steps: int | None = None, done: Done | None = None
) -> Attribution:
    """Integrated gradients by Gauss–Legendre's rule.

    Left alone, it cuts the way into pieces of 8 steps and halves those whose own gap is large, since f changes by
    leaps on it: doubling the steps of the whole way instead left 100 % of a 135M Llama at 512 steps (docs/log.md). The
    gaps of the pieces cannot cancel, so their sum is a bound that the gap of the whole is not.

    Args:
        question: its parameters must not require gradients, which would cost memory for nothing.
        baseline: b (D,).
        steps: nodes of one rule over the whole way; None: pieces, until their gaps sum to less than 1 % of
            f(x) − f(b), at most 1,024 steps.
        done: told of each pass.
    """
    x = question.embedded()
    start = x.clone()
    start[question.places] = baseline
    way = Way(question, start, x, done)
    whole = way.pieces([(0.0, 1.0)], steps or PIECE_STEPS)
    base, score = whole[0].from_score, whole[0].to_score
    found: list[Piece] = whole
    while steps is None and (room := (MOST_STEPS - way.steps) // (2 * PIECE_STEPS)):
        allowed = GAP * max(abs(score - base), LEAST_CHANGE)
        if sum(piece.gap for piece in found) < allowed:
            break
        poor = [piece for piece in found if piece.gap > allowed / len(found)]
        poor.sort(key=lambda piece: -piece.gap)
        poor = poor[:room]
        halves = [half for piece in poor for half in piece.halves()]
        found = [piece for piece in found if piece not in poor] + way.pieces(halves, PIECE_STEPS)
    values = np.sum([piece.values for piece in found], axis=0)
    return Attribution(values, score, base, way.steps, sum(piece.gap for piece in found))


@dataclass(frozen=True, eq=False)
class Piece:
    """The part of the way from the baseline to the text that lies between two α, and what its gradients sum to."""

    first: float
    last: float
    from_score: float
    to_score: float
    values: np.ndarray  # (P,)

    @property
    def gap(self) -> float:
        """|Σ a − (f at its end − f at its beginning)|"""
        return abs(float(self.values.sum()) - (self.to_score - self.from_score))

    def halves(self) -> list[tuple[float, float]]:
        """The α of its two halves."""
        middle = (self.first + self.last) / 2
        return [(self.first, middle), (middle, self.last)]


class Way:
    """The straight way from the baseline's embeddings to the text's (T, D), and the steps taken on it."""

    def __init__(self, question: Question, start: Tensor, end: Tensor, done: Done | None) -> None:
        self._question, self._start, self._change, self._done = question, start, end - start, done
        self._scores: dict[float, float] = {}
        self.steps = 0

    def pieces(self, bounds: list[tuple[float, float]], steps: int) -> list[Piece]:
        """Integrate between each two α with ``steps`` nodes."""
        nodes, weights = (part / 2 for part in np.polynomial.legendre.leggauss(steps))  # of [−½, ½]
        alphas = np.concatenate([low + (high - low) * (nodes + 0.5) for low, high in bounds])
        sums = np.split(self._products(alphas), len(bounds))
        self.steps += len(alphas)
        ends = self._scores_at([alpha for pair in bounds for alpha in pair])
        return [
            Piece(low, high, ends[low], ends[high], (high - low) * (weights @ part))
            for (low, high), part in zip(bounds, sums, strict=True)
        ]

    def _products(self, alphas: np.ndarray) -> np.ndarray:
        """(x − b) · ∂f/∂x at each α, of each token asked about (N, P)."""
        found = []
        for values in self._at(alphas):
            products = (_gradient(self._question, values).double() * self._change).sum(-1)
            found.append(products[:, self._question.places].cpu().numpy())
        return np.concatenate(found)

    @torch.no_grad()
    def _scores_at(self, alphas: list[float]) -> dict[float, float]:
        """f at each α; the ends of a half piece are mostly known."""
        new = [alpha for alpha in dict.fromkeys(alphas) if alpha not in self._scores]
        scores = [float(score) for values in self._at(np.array(new)) for score in self._question.at(values)]
        self._scores |= dict(zip(new, scores, strict=True))
        return self._scores

    def _at(self, alphas: np.ndarray) -> Iterator[Tensor]:
        """Embeddings (N, T, D) at each α, as many at once as the memory is to hold."""
        for part in torch.from_numpy(alphas).to(self._start).split(self._question.rows):
            yield self._start + part[:, None, None] * self._change
            if self._done is not None:
                self._done(len(part))


def _gradient(question: Question, values: Tensor) -> Tensor:
    """∂f/∂x of each row (N, T, D)."""
    with torch.enable_grad():
        leaf = values.detach().requires_grad_()
        return torch.autograd.grad(question.at(leaf).sum(), leaf)[0]


def gradient_input(question: Question, done: Done | None = None) -> Attribution:
    """Gradient × input: one pass, exact where the score is linear in the embeddings, a first guess elsewhere."""
    x = question.embedded()
    with torch.no_grad():
        score = float(question.at(x[None]))
    values = (_gradient(question, x[None])[0].double() * x).sum(-1)
    if done is not None:
        done(1)
    return Attribution(values[question.places].cpu().numpy(), score)


@torch.no_grad()
def occlusion(
    question: Question, baseline: Tensor | None, groups: Sequence[Sequence[int]] | None = None, done: Done | None = None
) -> Attribution:
    """The change of the score when one token after the other is hidden.

    Args:
        question: whatever its model is.
        baseline: b (D,), what stands for a hidden token; None: it is left out and the text closes up.
        groups: positions that are hidden together; None: each token asked about alone.
        done: told of each pass.

    Returns:
        a value for each group.
    """
    asked = [[place] for place in question.places.tolist()] if groups is None else groups
    score, hidden = float(question.score(question.ids[None])), []
    if baseline is None:
        hidden = [_left_out(question, places) for places in asked]
        base = _left_out(question, question.places.tolist())
        return Attribution(score - np.array(hidden), score, base)
    for first in range(0, len(asked), question.rows):
        part = asked[first : first + question.rows]
        values = question.embedded().repeat(len(part), 1, 1)
        for row, places in enumerate(part):
            values[row, places] = baseline
        hidden += question.at(values).tolist()
        if done is not None:
            done(len(part))
    empty = question.embedded()
    empty[question.places] = baseline
    return Attribution(score - np.array(hidden), score, float(question.at(empty[None])))


def _left_out(question: Question, places: Sequence[int]) -> float:
    """f of the text without the tokens at these places."""
    kept = torch.ones(len(question.ids), dtype=torch.bool)
    kept[list(places)] = False
    return float(question.score(question.ids[kept][None]))
