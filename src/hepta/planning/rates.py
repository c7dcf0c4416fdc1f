"""What ``lr: auto`` means: peak learning rates by width, swept on this house's own models (docs/training.md)."""

from hepta.model.shape import Shape


def automatic_lr(config: Shape) -> float:
    """Peak rate of training from fresh weights by width: 0.75 / D, so 3.9e-3 for 192 and 1.8e-4 for 4,096.

    Masked models, which norm after each part, learn nothing at that rate: 0.3 / D, so 1.6e-3 for 192.
    """
    return (0.3 if config.kind == "masked" else 0.75) / config.hidden_size


def automatic_tuning_lr(config: Shape) -> float:
    """Peak rate of tuning all weights: 5.2 / D^1.5, so 2.0e-3 for 192, 3.8e-4 for 576 and 2.0e-5 for 4,096."""
    return 5.2 / config.hidden_size**1.5
