"""Multiply-adds of a decoder, counted as FLOPs of its matrix products (a multiply-add is two FLOPs).

Only matrix products count: projections, the two attention products and the head. Norms, softmax, rotary
positions and the embedding look-up are left out, as is usual, and are far below one per cent at real widths.
Attention is causal: position t meets t keys, so a window of T tokens meets (T + 1) / 2 keys on average. That
halving counts *useful* work; a kernel that computes the whole square and masks half of it does more.
"""

from dataclasses import dataclass

from hepta.model.config import ModelConfig

TRAINING_FACTOR = 3  # one forward, and a backward that makes two products for each of the forward's


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


def layer_windows(config: ModelConfig) -> list[int | None]:
    """Each layer's sliding window, None where attention is full."""
    return [config.window(layer) for layer in range(config.num_layers)]


def token_flops(config: ModelConfig, sequence_length: int) -> TokenFlops:
    """FLOPs of one token's forward pass inside sequences of ``sequence_length``, by part.

    Args:
        config: widths of the decoder.
        sequence_length: T; longer sequences cost more per token through attention alone.
    """
    D, L = config.hidden_size, config.num_layers
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = sum(4 * queries * mean_keys(sequence_length, window) for window in layer_windows(config))
    return TokenFlops(
        projections=2 * L * D * (2 * queries + 2 * keys),
        attention=attention,
        mlp=2 * L * 3 * D * config.intermediate_size,
        head=2 * D * config.vocab_size,
    )


def flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """FLOPs of the matrix products of one token's forward pass, attention (causal half) and head included.

    Training costs ``TRAINING_FACTOR`` times as much. Without attention this is twice the parameters that
    multiply: all but norms and an untied input embedding.

    Args:
        config: widths of the decoder.
        sequence_length: T.
    """
    return token_flops(config, sequence_length).total


def training_flops(config: ModelConfig, tokens: float, sequence_length: int) -> float:
    """FLOPs of training on ``tokens`` tokens: forward and backward, nothing recomputed."""
    return TRAINING_FACTOR * tokens * flops_per_token(config, sequence_length)


def rule_of_thumb_flops(parameters: float, tokens: float) -> float:
    """The literature's 6·N·D: six FLOPs per parameter and token, attention's products left out."""
    return 6.0 * parameters * tokens
