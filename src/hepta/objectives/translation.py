"""Translation: predict target token t+1 from the source and target tokens ≤ t, with labels smoothed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hepta.objectives.causal import IGNORE, Causal, Kernel, LossSum, TokenScores


def smoothed(smoothing: float) -> Kernel:
    """The loss kernel whose target is (1 − ε) of the label and ε spread evenly over the vocabulary.

    ``loss = log Σ exp x − (1 − ε) x_label − ε mean(x)``, the cross-entropy of Szegedy et al. 2016 as
    ``F.cross_entropy(label_smoothing=ε)`` takes it; even a perfect model keeps the entropy of that target.

    Args:
        smoothing: ε in [0, 1).

    Returns:
        a kernel as ``softmax_gradient``, for ``causal_loss``.
    """

    def kernel(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
        supervised = targets != IGNORE
        columns = torch.where(supervised, targets, 0)[:, None]
        wide = logits.float()
        partition = torch.logsumexp(wide, -1)
        wanted = (1.0 - smoothing) * wide.gather(1, columns)[:, 0] + smoothing * wide.mean(-1)
        loss = torch.where(supervised, partition - wanted + z_loss * partition * partition, 0.0)
        gradient = torch.exp(wide - partition[:, None])
        if z_loss:
            gradient *= (1.0 + 2.0 * z_loss * partition)[:, None]
        gradient -= smoothing / logits.shape[-1]
        gradient.scatter_add_(1, columns, gradient.new_full(columns.shape, smoothing - 1.0))
        gradient.index_fill_(0, (~supervised).nonzero()[:, 0], 0.0)
        return loss, gradient.to(logits.dtype)

    return kernel


@dataclass(frozen=True)
class Translation:
    """The objective of a translator: a batch's ``labels`` are the targets' next tokens; ``smoothing`` is ε."""

    smoothing: float = 0.1
    z_loss: float = 0.0

    def weight(self, batch: Mapping[str, Tensor]) -> int:
        """Supervised positions of a batch."""
        return Causal().weight(batch)

    def __call__(self, model: Callable[..., Any], batch: Mapping[str, Tensor]) -> LossSum:
        """The smoothed loss of a batch."""
        return Causal(self.z_loss, smoothed(self.smoothing))(model, batch)

    def scores(self, model: Callable[..., Any], batch: Mapping[str, Tensor]) -> TokenScores:
        """Loss of every position without smoothing, for evaluation."""
        return Causal().scores(model, batch)
