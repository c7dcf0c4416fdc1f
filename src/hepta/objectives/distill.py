"""Distillation (Hinton, Vinyals & Dean 2015): learn a teacher's whole distribution beside the token that followed.

    loss = weight · T² · KL(softmax(z_teacher / T) ‖ softmax(z_student / T)) + (1 − weight) · cross-entropy
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hepta.model.network import unembed
from hepta.objectives.causal import IGNORE, Causal, ChunkedLoss, LossSum, check_labels

CHUNK = 512  # rows whose logits, the teacher's and the student's, are alive at a time


@dataclass(frozen=True)
class Mixture:
    """How the teacher's word and the data's are weighed: temperature T, share of the teacher, weight of ln² Z."""

    temperature: float = 2.0
    weight: float = 0.5
    z_loss: float = 0.0


@dataclass(frozen=True)
class Taught:
    """What the teacher thinks of every position, before its head: with one chunk's rows it becomes logits.

    Attributes:
        hidden: last hidden states (B, T, D'), or log-probabilities (B, T, V) where there is no head.
        head: unembedding (V, D') in the dtype of ``hidden``, or None.
        bias: of the logits (V,), or None.
    """

    hidden: Tensor
    head: Tensor | None
    bias: Tensor | None


def distillation_gradient(
    student: Tensor, teacher: Tensor, targets: Tensor, mixture: Mixture
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss of one chunk of logits and its gradient with respect to the student's.

    Softened by T, the gradient of KL is (softmax(z_s / T) − softmax(z_t / T)) / T and shrinks as 1 / T²; T² makes up
    for it, so that the balance with cross-entropy stays as T changes.

    Args:
        student, teacher: logits (N, V), any float dtype; read as float32.
        targets: (N,) ids in [0, V), or ``IGNORE``: loss and gradient of that row are 0.
        mixture: see ``Mixture``.

    Returns:
        the loss of each row (N,) and, summed over rows, its cross-entropy and its KL (both unweighted), all float32;
        and d loss / d student (N, V) in the dtype of ``student``.
    """
    T, share = mixture.temperature, 1.0 - mixture.weight
    supervised = targets != IGNORE
    columns = torch.where(supervised, targets, 0)[:, None]
    values = student.float()
    partition = torch.logsumexp(values, -1)  # log Z (N,)
    data = partition - values.gather(1, columns)[:, 0]
    softened, wanted = torch.log_softmax(values / T, -1), torch.log_softmax(teacher.float() / T, -1)
    probable = wanted.exp()
    kl = (wanted.sub_(softened).mul_(probable)).sum(-1)
    gradient = softened.exp_().sub_(probable).mul_(mixture.weight * T)
    hard = torch.sub(values, partition[:, None]).exp_()
    gradient.addcmul_(hard, (share + 2.0 * mixture.z_loss * partition)[:, None])
    gradient.scatter_add_(1, columns, gradient.new_full(columns.shape, -share))
    gradient.index_fill_(0, (~supervised).nonzero()[:, 0], 0.0)
    whole = mixture.weight * T * T * kl + share * data + mixture.z_loss * partition * partition
    whole, data, kl = (torch.where(supervised, value, 0.0) for value in (whole, data, kl))
    return whole, data.sum(), kl.sum(), gradient.to(student.dtype)


def distillation_loss(
    hidden: Tensor, head: Tensor, labels: Tensor, bias: Tensor | None, taught: Taught, mixture: Mixture,
    chunk: int = CHUNK,
) -> LossSum:  # fmt: skip
    """Summed loss of a student; both heads are taken in chunks, so that all logits of neither ever exist.

    Args:
        hidden: the student's last hidden states (B, T, D), any float dtype.
        head: its unembedding (V, D).
        labels: target ids (B, T) already shifted; ``IGNORE`` where not supervised.
        bias: of its logits (V,), or None.
        taught: the teacher's side, of the same positions and vocabulary.
        mixture: see ``Mixture``.
        chunk: rows of logits alive at a time.

    Returns:
        the loss with its parts ``data_loss`` (cross-entropy) and ``kl``, in nats; the teacher gets no gradient.

    Raises:
        LabelError: a label lies outside [0, V).
    """
    check_labels(labels, head.shape[0])
    targets, rows, theirs = labels.flatten(), hidden.flatten(0, -2), taught.hidden.flatten(0, -2)
    parts = {name: torch.zeros((), device=rows.device) for name in ("data_loss", "kl")}

    def of_chunk(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        teacher = unembed(theirs[part], taught.head, taught.bias)
        losses, data, kl, gradient = distillation_gradient(logits, teacher, targets[part], mixture)
        parts["data_loss"] += data
        parts["kl"] += kl
        return losses, gradient

    found: Any = ChunkedLoss.apply(rows, head, bias, chunk, of_chunk)
    total, losses = found
    return LossSum(total, int((targets != IGNORE).sum()), parts, losses.view(labels.shape))


@dataclass(frozen=True, kw_only=True)
class Distill(Causal):
    """The objective of a student; held-out scores are those of ``Causal``: what it says of the text, without teacher.

    The teacher follows the student: to its device, and in the dtype of its products.
    """

    teacher: Any = field(compare=False)  # a causal ``Network`` in evaluation mode
    mixture: Mixture = Mixture()

    def __call__(self, model: Callable[..., Any], batch: Mapping[str, Tensor]) -> LossSum:
        """Ask the teacher, run ``model``, and take the loss inside its head."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        labels, taught = batch["labels"], self.ask(inputs, getattr(model, "compute_dtype", None))

        def head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> LossSum:
            return distillation_loss(hidden, weight, labels, bias, taught, self.mixture)

        return model(**inputs, head=head)

    @torch.no_grad()
    def ask(self, inputs: Mapping[str, Tensor], dtype: torch.dtype | None) -> Taught:
        """The teacher's last hidden states and its head, without a graph."""
        self.teacher.to(inputs["input_ids"].device)
        self.teacher.compute_dtype = dtype

        def keep(hidden: Tensor, head: Tensor | None, bias: Tensor | None) -> Taught:
            return Taught(hidden, None if head is None else head.detach().to(hidden.dtype), bias)

        return self.teacher(**inputs, head=keep)
