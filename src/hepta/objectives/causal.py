"""Language modelling: cross-entropy of the tokens that a batch's labels name; causal, where token t's label is t+1."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hepta.config import HeptaError
from hepta.model.integers import IntegerMatrix
from hepta.model.network import unembed

IGNORE = -100  # label of a position that is not supervised
CHUNK = 1024  # rows of logits alive at a time
WIDE = 1 << 23  # logits that are float32 at a time
GATHER = 256  # supervised rows come in multiples of this


class LabelError(HeptaError):
    """A label lies outside the vocabulary: tokens and model do not belong together."""


class LossSum(NamedTuple):
    """A loss not yet divided: so that micro-batches and ranks can be added before one division."""

    total: Tensor  # sum over supervised positions in nats, float32 scalar
    weight: int  # number of supervised positions
    parts: Mapping[str, Tensor] = MappingProxyType({})  # sums that ``total`` is made of, shown beside it
    losses: Tensor | None = None  # its terms (B, T), without gradient; None where it is no sum over tokens


class TokenScores(NamedTuple):
    """What evaluation needs of every position; 0 and False where a position is not supervised."""

    losses: Tensor  # (B, T) nats, float32
    correct: Tensor  # (B, T) bool: the label was the most probable token


def softmax_gradient(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """Loss and its gradient for one chunk of logits, with as few visits to memory as plain torch allows.

    A large vocabulary's rows are taken some at a time: two float32 copies of all would be the most that a step holds.

    Args:
        logits: (N, V), any float dtype; read as float32.
        targets: (N,) ids in [0, V), or ``IGNORE``: loss and gradient of that row are 0.
        z_loss: weight of the squared log-partition, which keeps logits from drifting.

    Returns:
        the loss of each row (N,) float32 and d loss / d logits (N, V) in the dtype of ``logits``.
    """
    rows = max(1, WIDE // logits.shape[1])
    if rows >= len(logits):
        return _softmax_gradient(logits, targets, z_loss)
    losses, gradient = logits.new_empty(len(logits), dtype=torch.float32), torch.empty_like(logits)
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        losses[part], gradient[part] = _softmax_gradient(logits[part], targets[part], z_loss)
    return losses, gradient


def _softmax_gradient(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    supervised = targets != IGNORE
    columns = torch.where(supervised, targets, 0)[:, None]
    values = torch.log_softmax(logits.float(), -1)
    picked = values.gather(1, columns)[:, 0]
    partition = logits.gather(1, columns)[:, 0].float() - picked  # log Σ exp, from any column
    gradient = values.exp_()
    if z_loss:
        gradient *= (1.0 + 2.0 * z_loss * partition)[:, None]
    gradient.scatter_add_(1, columns, gradient.new_full(columns.shape, -1.0))
    gradient.index_fill_(0, (~supervised).nonzero()[:, 0], 0.0)
    loss = torch.where(supervised, z_loss * partition * partition - picked, 0.0)
    return loss, gradient.to(logits.dtype)


def fusible_softmax_gradient(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """``softmax_gradient`` without scatters, which ``torch.compile`` turns into two visits to memory."""
    values = logits.float()
    partition = torch.logsumexp(values, -1)
    supervised = targets != IGNORE
    columns = torch.where(supervised, targets, 0)
    loss = partition - values.gather(1, columns[:, None])[:, 0] + z_loss * partition * partition
    pull = torch.where(supervised, 1.0, 0.0)
    push = torch.where(supervised, 1.0 + 2.0 * z_loss * partition, 0.0)
    softmax = torch.exp(values - partition[:, None])
    onehot = torch.arange(values.shape[1], device=values.device)[None, :] == columns[:, None]
    gradient = softmax * push[:, None] - torch.where(onehot, pull[:, None], 0.0)
    return torch.where(supervised, loss, 0.0), gradient.to(logits.dtype)


Kernel = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


class ChunkedLoss(torch.autograd.Function):
    """Head, softmax and their gradients chunk by chunk, all in forward; backward only scales.

    ``of_chunk(logits (N, V), part)`` gives the losses (N,) of the rows ``part`` and the gradient of their sum (N, V).
    What comes out is the sum, and all its terms without gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        head: Any,  # Tensor | IntegerMatrix
        bias: Tensor | None,
        chunk: int,
        of_chunk: Callable[[Tensor, slice], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        wants_rows, wants_head, wants_bias = ctx.needs_input_grad[:3]
        weight: Any = head.to(rows.dtype)  # (V, D), cast once
        total = torch.zeros((), dtype=torch.float32, device=rows.device)
        losses = torch.zeros(rows.shape[0], dtype=torch.float32, device=rows.device)
        grad_rows = torch.empty_like(rows) if wants_rows else None
        alone = 0 < rows.shape[0] <= chunk  # one chunk's gradient needs no sum to be added to
        grad_head = torch.zeros_like(head, dtype=torch.float32) if wants_head and not alone else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants_bias else None
        for start in range(0, rows.shape[0], chunk):
            part = slice(start, start + chunk)
            x = rows[part]
            losses[part], gradient = of_chunk(unembed(x, weight, bias), part)
            total += losses[part].sum()
            if grad_rows is not None:
                if hasattr(weight, "pull_back"):  # of integers
                    grad_rows[part] = weight.pull_back(gradient)
                else:
                    torch.mm(gradient, weight, out=grad_rows[part])
            if wants_head:  # summed in float32: bfloat16 sums would lose small chunks
                product = gradient.T @ x
                grad_head = product if grad_head is None else grad_head.add_(product)
            if grad_bias is not None:
                grad_bias += gradient.sum(0, dtype=torch.float32)
        ctx.save_for_backward(grad_rows, grad_head, grad_bias)
        ctx.head_dtype = head.dtype
        ctx.mark_non_differentiable(losses)
        return total, losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        grad_rows, grad_head, grad_bias = ctx.saved_tensors
        scale = grad_outputs[0]
        rows = grad_rows * scale.to(grad_rows.dtype) if grad_rows is not None else None
        head = None
        if grad_head is not None:
            wide = torch.promote_types(grad_head.dtype, ctx.head_dtype)
            head = (grad_head.to(wide) * scale).to(ctx.head_dtype)
        bias = (grad_bias * scale).to(ctx.head_dtype) if grad_bias is not None else None
        return rows, head, bias, None, None


def check_labels(labels: Tensor, vocabulary: int) -> None:
    """Refuse labels that are neither ``IGNORE`` nor in [0, vocabulary)."""
    wrong = labels[(labels >= vocabulary) | ((labels < 0) & (labels != IGNORE))]
    if wrong.numel():
        found = f"token id {int(wrong[0])} is outside the model's vocabulary of {vocabulary}"
        raise LabelError(f"{found}; the tokens were made with another tokenizer")


def _gathers(weight: int, positions: int) -> bool:
    """Whether only supervised rows meet the head: that pays where it saves a good part of it."""
    return weight < positions * 0.9


def head_rows(labels: Tensor) -> int:
    """Rows that meet the head of a batch with these labels."""
    weight = int((labels != IGNORE).sum())
    return weight + -weight % GATHER if _gathers(weight, labels.numel()) else labels.numel()


def _gather(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Supervised rows, their targets, and where they were; filled up with ignored rows to a multiple of ``GATHER``.

    Kernels and their memory are kept per shape: a new number of rows in each step made a run grow by gigabytes.
    """
    places = (targets != IGNORE).nonzero()[:, 0]
    spare = -len(places) % GATHER
    return F.pad(rows[places], (0, 0, 0, spare)), F.pad(targets[places], (0, spare), value=IGNORE), places


def causal_loss(
    hidden: Tensor,
    head: Tensor | IntegerMatrix,
    labels: Tensor,
    bias: Tensor | None = None,
    chunk: int = CHUNK,
    z_loss: float = 0.0,
    kernel: Kernel = softmax_gradient,
) -> LossSum:
    """Summed cross-entropy of the next token, head and softmax taken in chunks.

    The (B·T, V) logits never exist at once: each chunk's logits, loss and gradient are computed and
    dropped before the next, which saves 4·B·T·V bytes and, on a CPU, a trip to main memory. Rows that
    are not supervised never meet the head.

    Args:
        hidden: last hidden states (B, T, D), any float dtype.
        head: unembedding matrix (V, D); used in the dtype of ``hidden``. One of integers learns nothing.
        labels: target ids (B, T) already shifted; ``IGNORE`` where not supervised.
        bias: of the logits (V,), or None.
        chunk: rows of logits alive at a time.
        z_loss: weight of the squared log-partition.
        kernel: ``softmax_gradient`` or a compiled form of it.

    Returns:
        The loss summed over supervised positions in nats (float32 scalar), their count, and the terms of the sum.

    Raises:
        LabelError: a label lies outside [0, V).
    """
    check_labels(labels, head.shape[0])
    rows, targets = hidden.flatten(0, -2), labels.flatten()
    supervised = targets != IGNORE
    weight = int(supervised.sum())
    places = None
    if _gathers(weight, targets.numel()):
        rows, targets, places = _gather(rows, targets)
    if not torch.is_grad_enabled():
        rows, head, bias = rows.detach(), head.detach(), None if bias is None else bias.detach()
    found: Any = ChunkedLoss.apply(
        rows, head, bias, chunk, lambda logits, part: kernel(logits, targets[part], z_loss)
    )
    total, losses = found
    if places is not None:
        losses = losses.new_zeros(labels.numel()).index_copy_(0, places, losses[: len(places)])
    return LossSum(total, weight, losses=losses.view(labels.shape))


@torch.no_grad()
def token_losses(
    hidden: Tensor, head: Tensor | None, labels: Tensor, bias: Tensor | None = None, chunk: int = CHUNK
) -> TokenScores:
    """Loss of every position and whether the label came first; for evaluation, without gradients.

    Args: as ``causal_loss``; without a ``head``, ``hidden`` (B, T, V) holds log-probabilities. Raises: LabelError.
    """
    check_labels(labels, hidden.shape[-1] if head is None else head.shape[0])
    rows, targets = hidden.flatten(0, -2), labels.flatten()
    losses = torch.zeros(targets.shape, dtype=torch.float32, device=rows.device)
    correct = torch.zeros(targets.shape, dtype=torch.bool, device=rows.device)
    rows, targets, places = _gather(rows, targets)
    weight = None if head is None else head.to(rows.dtype)  # cast once
    for start in range(0, len(places), chunk):
        logits = unembed(rows[start : start + chunk], weight, bias).float()
        here = places[start : start + chunk]
        logits, wanted = logits[: len(here)], targets[start : start + len(here)]
        losses[here] = torch.logsumexp(logits, -1) - logits.gather(1, wanted[:, None])[:, 0]
        correct[here] = logits.argmax(-1) == wanted
    return TokenScores(losses.view(labels.shape), correct.view(labels.shape))


@dataclass(frozen=True)
class Causal:
    """The objective of pretraining and instruction tuning: a batch's ``labels`` say what is supervised."""

    z_loss: float = 0.0
    kernel: Kernel = softmax_gradient

    def weight(self, batch: Mapping[str, Tensor]) -> int:
        """Supervised positions of a batch, known before any forward pass."""
        return int((batch["labels"] != IGNORE).sum())

    def __call__(self, model: Callable[..., Any], batch: Mapping[str, Tensor]) -> LossSum:
        """Run ``model`` on everything but the labels and take the loss inside its head."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        labels = batch["labels"]

        def head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> LossSum:
            return causal_loss(hidden, weight, labels, bias, z_loss=self.z_loss, kernel=self.kernel)

        return model(**inputs, head=head)

    def scores(self, model: Callable[..., Any], batch: Mapping[str, Tensor]) -> TokenScores:
        """Loss and correctness of every position of a batch, for evaluation."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return model(**inputs, head=lambda hidden, head, bias: token_losses(hidden, head, batch["labels"], bias))
