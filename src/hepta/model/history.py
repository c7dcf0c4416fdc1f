"""The shapes of the models before attention: n-gram, feed-forward and LSTM (no torch here).

transformers knows none of them, so their ``model_type`` begins with ``hepta-``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hepta.config import HeptaError
from hepta.model.shape import Shape, need, special_ids

HIGHEST_ORDER = 7
GATES = 4  # of an LSTM cell: input, forget, output, candidate


@dataclass(frozen=True, kw_only=True)
class NGramShape(Shape):
    """An n-gram model: what it stores and what its smoothing takes off.

    Attributes:
        order: n; the last n − 1 tokens decide the next one.
        ngrams: stored n-grams of each order (of unigrams the whole vocabulary); empty before counting.
        discounts: per order, what is taken off counts of 1, 2 and ≥ 3.
        estimated: per order, whether these come from its counts (else: the fallback).
    """

    hidden_size: int = 1
    num_layers: int = 1
    order: int
    ngrams: tuple[int, ...] = ()
    discounts: tuple[tuple[float, float, float], ...] = ()
    estimated: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.order, int) or not 1 <= self.order <= HIGHEST_ORDER:
            raise HeptaError(f"model config: order must be 1 to {HIGHEST_ORDER}, found {self.order!r}")
        if {len(self.ngrams), len(self.discounts), len(self.estimated)} not in ({0}, {self.order}):
            found = len(self.ngrams), len(self.discounts), len(self.estimated)
            raise HeptaError(f"model config: order {self.order} with {found} ngrams, discounts, estimated")

    def parameters(self) -> dict[str, int]:
        """Stored n-grams by order: what stands where other models have parameters."""
        return {f"{k}-grams": count for k, count in enumerate(self.ngrams, 1)}

    def linear_shapes(self) -> list[tuple[int, int]]:
        """None: it looks up and adds."""
        return []


@dataclass(frozen=True, kw_only=True)
class FeedForwardShape(Shape):
    """The neural probabilistic language model: ``context`` embeddings side by side into one hidden layer."""

    sizes: ClassVar[tuple[str, ...]] = (*Shape.sizes, "intermediate_size", "context")
    num_layers: int = 1
    intermediate_size: int
    context: int

    def linear_shapes(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the hidden layer, the map back to D, and the direct connection."""
        D, F, wide = self.hidden_size, self.intermediate_size, self.context * self.hidden_size
        return [(wide, F), (F, D), (wide, D)]

    def parameters(self) -> dict[str, int]:
        """Parameter counts by class."""
        (wide, F), (_, D), _ = self.linear_shapes()
        return {
            "embedding": self.vocab_size * D, "hidden": wide * F + F, "output": F * D, "direct": wide * D,
            "head": 0 if self.tied else self.vocab_size * D,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LSTMShape(Shape):
    """A stack of LSTM layers, all D wide; ``dropout`` acts between layers, never in time."""

    dropout: float = 0.0

    def linear_shapes(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of one layer's maps: from the layer below, and from its own last state."""
        return [(self.hidden_size, GATES * self.hidden_size)] * 2

    def parameters(self) -> dict[str, int]:
        """Parameter counts by class."""
        D = self.hidden_size
        return {
            "embedding": self.vocab_size * D, "input": self.num_layers * (GATES * D * D + GATES * D),
            "recurrent": self.num_layers * GATES * D * D, "head": 0 if self.tied else self.vocab_size * D,
        }  # fmt: skip


NGRAM_PRESETS: dict[str, dict[str, Any]] = {
    "ngram": {"order": 5},
    **{f"ngram-{n}": {"order": n} for n in range(1, HIGHEST_ORDER + 1)},
}
FEEDFORWARD_PRESETS: dict[str, dict[str, Any]] = {
    "feedforward": {"hidden_size": 192, "intermediate_size": 960, "context": 6},
}
LSTM_PRESETS: dict[str, dict[str, Any]] = {"lstm": {"hidden_size": 256, "num_layers": 2, "dropout": 0.0}}


def ngram_from_hf(hf: Mapping[str, Any], where: str) -> NGramShape:
    """Read an n-gram's ``config.json``."""
    vocabulary, order, ngrams, discounts, estimated = need(
        hf, ("vocab_size", "order", "ngrams", "discounts", "estimated"), where
    )
    return NGramShape(
        vocab_size=vocabulary, order=order, ngrams=tuple(ngrams), discounts=tuple(map(tuple, discounts)),
        estimated=tuple(estimated), **special_ids(hf),
    )  # fmt: skip


def ngram_to_hf(shape: NGramShape) -> dict[str, Any]:
    """An n-gram's own keys of ``config.json``."""
    return {key: getattr(shape, key) for key in ("order", "ngrams", "discounts", "estimated")}


def feedforward_from_hf(hf: Mapping[str, Any], where: str) -> FeedForwardShape:
    """Read a feed-forward model's ``config.json``."""
    vocabulary, width, inner, context = need(hf, ("vocab_size", "hidden_size", "intermediate_size", "context"), where)
    return FeedForwardShape(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, context=context,
        max_positions=hf.get("max_position_embeddings", 2048), tied=bool(hf.get("tie_word_embeddings", True)),
        **special_ids(hf),
    )  # fmt: skip


def feedforward_to_hf(shape: FeedForwardShape) -> dict[str, Any]:
    """A feed-forward model's own keys of ``config.json``."""
    return {
        "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size, "context": shape.context,
        "max_position_embeddings": shape.max_positions,
    }  # fmt: skip


def lstm_from_hf(hf: Mapping[str, Any], where: str) -> LSTMShape:
    """Read an LSTM's ``config.json``."""
    vocabulary, width, layers = need(hf, ("vocab_size", "hidden_size", "num_hidden_layers"), where)
    return LSTMShape(
        vocab_size=vocabulary, hidden_size=width, num_layers=layers, dropout=hf.get("dropout", 0.0),
        max_positions=hf.get("max_position_embeddings", 2048), tied=bool(hf.get("tie_word_embeddings", True)),
        **special_ids(hf),
    )  # fmt: skip


def lstm_to_hf(shape: LSTMShape) -> dict[str, Any]:
    """An LSTM's own keys of ``config.json``."""
    return {
        "hidden_size": shape.hidden_size, "num_hidden_layers": shape.num_layers, "dropout": shape.dropout,
        "max_position_embeddings": shape.max_positions,
    }  # fmt: skip
