"""The smoothed loss is that of torch, in value and gradient."""

import pytest
import torch
from torch.nn import functional as F

from hepta.objectives.causal import IGNORE, causal_loss
from hepta.objectives.translation import Translation, smoothed


def problem(rows: int = 40, width: int = 16, vocabulary: int = 60) -> tuple[torch.Tensor, ...]:
    made = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, rows // 4, width, generator=made, requires_grad=True)
    head = torch.randn(vocabulary, width, generator=made, requires_grad=True)
    labels = torch.randint(0, vocabulary, (4, rows // 4), generator=made)
    labels[1, 3:] = IGNORE
    labels[2] = IGNORE
    return hidden, head, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_smoothed_loss_and_gradients_equal_cross_entropy(smoothing: float, chunk: int) -> None:
    """To 1e-6 of F.cross_entropy(label_smoothing=…), ignored positions and all, whatever the chunks."""
    hidden, head, labels = problem()
    ours = causal_loss(hidden, head, labels, chunk=chunk, kernel=smoothed(smoothing))
    ours.total.backward()
    found = [tensor.grad.clone() for tensor in (hidden, head) if tensor.grad is not None]
    hidden.grad = head.grad = None
    logits = (hidden @ head.T).flatten(0, 1)
    wanted = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
    wanted.backward()
    assert ours.weight == int((labels != IGNORE).sum()) == 23
    assert float(ours.total) == pytest.approx(float(wanted), rel=1e-6)
    for mine, tensor in zip(found, (hidden, head), strict=True):
        assert tensor.grad is not None
        torch.testing.assert_close(mine, tensor.grad, rtol=1e-5, atol=1e-5)


def test_z_loss_adds_the_squared_partition() -> None:
    hidden, head, labels = problem()
    logits = (hidden @ head.T).flatten(0, 1)[labels.flatten() != IGNORE]
    plain = causal_loss(hidden, head, labels, kernel=smoothed(0.1)).total
    with_z = causal_loss(hidden, head, labels, z_loss=0.01, kernel=smoothed(0.1)).total
    assert float(with_z - plain) == pytest.approx(0.01 * float(logits.logsumexp(-1).square().sum()), rel=1e-5)


def test_evaluation_is_not_smoothed() -> None:
    """Held-out losses are those of the labels alone, whatever the run smooths."""
    hidden, weight, labels = problem()
    scores = Translation(0.3).scores(lambda head: head(hidden, weight, None), {"labels": labels})
    logits = (hidden @ weight.T).flatten(0, 1)
    wanted = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(scores.losses.flatten(), wanted.detach(), rtol=1e-5, atol=1e-5)
