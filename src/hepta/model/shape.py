"""What every model's shape can tell: its sizes, parameters and the work of a token (no torch here)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from hepta.config import HeptaError

Kind = Literal["causal", "masked", "translation"]
MASKED_SHARE = 0.15  # of tokens that a masked model predicts, so that its head meets only these


@dataclass(frozen=True)
class TokenFlops:
    """FLOPs of one token's forward pass, by the part of the model that spends them."""

    projections: float  # q, k, v, o
    attention: float  # scores and weighted values
    mlp: float
    head: float

    @property
    def total(self) -> float:
        """All of one token's forward FLOPs."""
        return self.projections + self.attention + self.mlp + self.head


def mean_keys(sequence_length: int, window: int | None = None) -> float:
    """Keys a causal query meets on average over a sequence, itself included.

    Args:
        sequence_length: T.
        window: width of a sliding window, None for full attention.
    """
    T = sequence_length
    if window is None or window >= T:
        return (T + 1) / 2
    return (window * (window + 1) / 2 + (T - window) * window) / T


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Everything that decides a model's mathematics, in this project's words; each family adds its own.

    ``kind`` says what it predicts: the next token, masked ones, or a translation. ``longest`` is the last position
    it has a learned vector for; None where positions have no end.
    """

    kind: ClassVar[Kind] = "causal"
    sizes: ClassVar[tuple[str, ...]] = ("vocab_size", "hidden_size", "num_layers")
    vocab_size: int
    hidden_size: int
    num_layers: int
    max_positions: int = 2048
    tied: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in self.sizes:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise HeptaError(f"model config: {name} must be a positive whole number, found {value!r}")

    @property
    def longest(self) -> int | None:
        """Most positions of one sequence, None where there is no limit."""
        return None

    def parameters(self) -> dict[str, int]:
        """Parameter counts by class."""
        raise NotImplementedError

    @property
    def num_parameters(self) -> int:
        """All parameters, a tied matrix counted once."""
        return sum(self.parameters().values())

    def linear_shapes(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of one layer's linear maps."""
        raise NotImplementedError

    def token_flops(self, sequence_length: int) -> TokenFlops:
        """FLOPs of one token's forward pass inside sequences of ``sequence_length``, by part."""
        maps = 2.0 * self.num_layers * sum(inputs * outputs for inputs, outputs in self.linear_shapes())
        return TokenFlops(maps, 0.0, 0.0, 2.0 * self.hidden_size * self.vocab_size)

    def forward_flops(self, sequence_length: int) -> float:
        """FLOPs of the matrix products of one token's forward pass."""
        return self.token_flops(sequence_length).total

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class TransformerShape(Shape):
    """A stack of equal blocks of attention and MLP."""

    mlp_matrices: ClassVar[int] = 2  # 3 where the MLP is gated
    sizes: ClassVar[tuple[str, ...]] = (*Shape.sizes, "intermediate_size", "num_heads")
    intermediate_size: int
    num_heads: int

    @property
    def query_width(self) -> int:
        """Width of all heads' queries."""
        return self.hidden_size

    @property
    def key_width(self) -> int:
        """Width of all heads' keys, and of their values."""
        return self.hidden_size

    def window(self, layer: int) -> int | None:
        """The sliding window of one layer, None where it sees everything."""
        return None

    def linear_shapes(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of one layer's linear maps: q, k, v, o, then the MLP's, the one back to D last."""
        D, F, queries, keys = self.hidden_size, self.intermediate_size, self.query_width, self.key_width
        return [(D, queries), (D, keys), (D, keys), (queries, D), *[(D, F)] * (self.mlp_matrices - 1), (F, D)]

    def token_flops(self, sequence_length: int) -> TokenFlops:
        """FLOPs of one token's forward pass inside sequences of ``sequence_length``, by part.

        A causal model's query meets half of the keys on average, a masked one's all; a masked one's head meets
        ``MASKED_SHARE`` of the tokens.
        """
        T, masked = sequence_length, self.kind == "masked"
        keys = [T if masked else mean_keys(T, self.window(layer)) for layer in range(self.num_layers)]
        maps = [inputs * outputs for inputs, outputs in self.linear_shapes()]
        return TokenFlops(
            projections=2.0 * self.num_layers * sum(maps[:4]),
            attention=sum(4.0 * self.query_width * met for met in keys),
            mlp=2.0 * self.num_layers * sum(maps[4:]),
            head=2.0 * self.hidden_size * self.vocab_size * (MASKED_SHARE if masked else 1.0),
        )


def check_heads(shape: TransformerShape) -> None:
    """Refuse a width that heads do not divide."""
    if shape.hidden_size % shape.num_heads:
        width, heads = shape.hidden_size, shape.num_heads
        raise HeptaError(f"model config: hidden_size {width} is no multiple of num_heads {heads}")


def need(hf: Any, keys: Sequence[str], where: str) -> list[Any]:
    """The values of keys a ``config.json`` must have."""
    if missing := [key for key in keys if hf.get(key) is None]:
        raise HeptaError(f"{where}: lacks {', '.join(missing)}")
    return [hf[key] for key in keys]


def special_ids(hf: Any) -> dict[str, Any]:
    """bos, eos and pad ids as a ``config.json`` states them, for a shape's fields."""
    return {key: hf.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
