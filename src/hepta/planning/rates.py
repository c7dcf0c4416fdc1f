"""What ``lr: auto`` means: peak learning rates by width and optimizer, swept on our own models (docs/training.md)."""

from hepta.model.shape import Shape


def automatic_lr(config: Shape) -> float:
    """Peak rate of training from fresh weights by width: 0.75 / D, so 3.9e-3 for 192 and 1.8e-4 for 4,096.

    Masked models, which norm after each part, learn nothing at that rate: 0.3 / D, so 1.6e-3 for 192.
    """
    return (0.3 if config.kind == "masked" else 0.75) / config.hidden_size


def rate_factor(name: str, width: int) -> float:
    """What an optimizer's rate is to AdamW's, at its best for the same model (docs/log.md has the sweep).

    In 8 bits AdamW wants the same. Muon's elements, scaled to AdamW's size, stand twice its rate. Adafactor's rate is a
    share of a weight's size, about 1/√width. SGD's multiplies gradients, whose norm is at most ``clip_norm``.
    """
    return {"muon": 2.0, "adafactor": width**0.5, "sgd": 250.0}.get(name, 1.0)


def automatic_tuning_lr(config: Shape) -> float:
    """Peak rate of tuning all weights: 5.2 / D^1.5, so 2.0e-3 for 192, 3.8e-4 for 576 and 2.0e-5 for 4,096."""
    return 5.2 / config.hidden_size**1.5
