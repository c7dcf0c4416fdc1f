"""Classes and numbers from whole texts: cross-entropy and squared error, with penalties on the weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hepta.objectives.causal import LossSum


def class_loss(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy summed over rows, as torch's with ``reduction="sum"``.

    Args:
        logits: (B, C), any float dtype; read as float32.
        labels: class numbers (B,).
        class_weights: (C,); a row counts as much as its class weighs.
        label_smoothing: share of the target spread over all classes.

    Returns:
        float32 scalar.
    """
    return F.cross_entropy(
        logits.float(), labels, weight=class_weights, label_smoothing=label_smoothing, reduction="sum"
    )


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Weights by which every class counts alike: rows / (classes · rows of the class), whose mean over rows is 1."""
    rows, classes = sum(counts), len(counts)
    return [rows / (classes * count) for count in counts]


def normalised_weights(weights: Sequence[float], counts: Sequence[int]) -> list[float]:
    """Weights scaled so that their mean over all training rows is 1: the loss keeps its size, and with it the rate."""
    mean = sum(weight * count for weight, count in zip(weights, counts, strict=True)) / sum(counts)
    return [weight / mean for weight in weights]


def penalised(model: nn.Module) -> list[Tensor]:
    """The trained matrices that penalties see: no norms, biases or embeddings."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return [p for p in model.parameters() if p.requires_grad and p.ndim >= 2 and id(p) not in embeddings]


def penalty(model: nn.Module, l1: float, l2: float) -> Tensor:
    """``l1 · Σ|w| + l2 · Σw²`` over ``penalised`` weights (float32 scalar)."""
    total = torch.zeros(())
    for weights in penalised(model):
        total = total + l1 * weights.abs().sum() + l2 * weights.square().sum()
    return total


@dataclass
class Tally:
    """Rows of training met since it was last read, and how many of them were right."""

    rows: int = 0
    right: int = 0

    def take(self) -> float | None:
        """The share that was right, and begin anew; None where nothing was met."""
        share = self.right / self.rows if self.rows else None
        self.rows = self.right = 0
        return share


@dataclass(frozen=True)
class Classify:
    """The objective of classification; a batch holds ``labels``, class numbers (B,).

    Attributes:
        class_weights: of each class, or None.
        label_smoothing: share of the target spread over all classes.
        l1, l2: see ``penalty``.
        tally: counts right answers on the way, for the accuracy on training rows.
    """

    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    tally: Tally = field(default_factory=Tally, compare=False)

    def weight(self, batch: Mapping[str, Tensor]) -> int:
        """Rows of a batch."""
        return len(batch["labels"])

    def __call__(self, model: Callable[..., Any], batch: Mapping[str, Tensor]) -> LossSum:
        """Run ``model(input_ids, lengths)`` and sum the loss of its logits over rows."""
        labels = batch["labels"]
        logits = model(batch["input_ids"], batch["lengths"])
        weights = None if self.class_weights is None else torch.tensor(self.class_weights, device=logits.device)
        self.tally.rows += len(labels)
        self.tally.right += int((logits.detach().argmax(-1) == labels).sum())
        total = class_loss(logits, labels, weights, self.label_smoothing)
        return LossSum(_with_penalty(total, model, len(labels), self.l1, self.l2), len(labels))


@dataclass(frozen=True)
class Regress:
    """The objective of regression: squared error; a batch holds ``labels``, standardised targets (B,) float32."""

    l1: float = 0.0
    l2: float = 0.0

    def weight(self, batch: Mapping[str, Tensor]) -> int:
        """Rows of a batch."""
        return len(batch["labels"])

    def __call__(self, model: Callable[..., Any], batch: Mapping[str, Tensor]) -> LossSum:
        """Run ``model(input_ids, lengths)`` and sum squared errors over rows."""
        labels = batch["labels"]
        predicted = model(batch["input_ids"], batch["lengths"])[:, 0]
        total = F.mse_loss(predicted.float(), labels.float(), reduction="sum")
        return LossSum(_with_penalty(total, model, len(labels), self.l1, self.l2), len(labels))


def _with_penalty(total: Tensor, model: Any, rows: int, l1: float, l2: float) -> Tensor:
    """Add the penalty once per row, so that it stands once beside the mean loss whatever the micro-batches are."""
    return total + rows * penalty(model, l1, l2) if l1 or l2 else total
