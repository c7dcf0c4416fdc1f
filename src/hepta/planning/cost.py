"""Multiply-adds of a model, counted as FLOPs of its matrix products (a multiply-add is two FLOPs).

Only matrix products count: projections, the two attention products and the head. Norms, softmax, rotary
positions and the embedding look-up are left out, as is usual, and are far below one per cent at real widths.
Attention is causal: position t meets t keys, so a window of T tokens meets (T + 1) / 2 keys on average. That
halving counts *useful* work; a kernel that computes the whole square and masks half of it does more.
"""

from hepta.model.shape import Shape

MUON_ROUNDS = 5  # of Newton and Schulz's iteration
TRAINING_FACTOR = 3  # one forward, and a backward that makes two products for each of the forward's


def flops_per_token(config: Shape, sequence_length: int) -> float:
    """FLOPs of the matrix products of one token's forward pass, attention (causal half) and head included.

    Training costs ``TRAINING_FACTOR`` times as much. Without attention this is twice the parameters that
    multiply: all but norms and an untied input embedding.

    Args:
        config: the model's shape.
        sequence_length: T.
    """
    return config.forward_flops(sequence_length)


def training_flops(config: Shape, tokens: float, sequence_length: int) -> float:
    """FLOPs of training on ``tokens`` tokens: forward and backward, nothing recomputed."""
    return TRAINING_FACTOR * tokens * flops_per_token(config, sequence_length)


def step_flops(config: Shape, sequence_length: int, adapters: int | None = None, recompute: bool = False) -> float:
    """FLOPs of one token of a training step.

    All weights: one forward and a backward of two. With adapters on a frozen base, the base's maps and head need no
    gradient of their own, so their backward is one product; attention has no weights and keeps both.

    Args:
        config: the model's shape.
        sequence_length: T.
        adapters: parameters of the adapters where the base is frozen; None trains all weights.
        recompute: every layer's forward is done twice.
    """
    parts = config.token_flops(sequence_length)
    again = parts.total if recompute else 0.0
    if adapters is None:
        return TRAINING_FACTOR * parts.total + again
    return 2 * parts.total + parts.attention + 2.0 * TRAINING_FACTOR * adapters + again


def muon_flops(config: Shape) -> float:
    """FLOPs of Muon's products in one step, whatever its tokens: X Xᵀ, its square, and that times X, five times."""
    sides = [sorted(shape) for shape in config.linear_shapes()]
    return config.num_layers * sum(MUON_ROUNDS * 2.0 * short * short * (2 * long + short) for short, long in sides)


def rule_of_thumb_flops(parameters: float, tokens: float) -> float:
    """The literature's 6·N·D: six FLOPs per parameter and token, attention's products left out."""
    return 6.0 * parameters * tokens
