"""Promises of the chunked causal loss, against the plain one of torch."""

import pytest
import torch
from torch.nn import functional as F

from hepta.objectives import causal
from hepta.objectives.causal import (
    IGNORE,
    Kernel,
    LabelError,
    causal_loss,
    fusible_softmax_gradient,
    softmax_gradient,
    token_losses,
)  # fmt: skip

B, T, D, V = 3, 37, 24, 131


def make(masked: float = 0.3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    hidden = torch.randn(B, T, D, requires_grad=True)
    head = torch.randn(V, D, requires_grad=True)
    labels = torch.randint(0, V, (B, T)).masked_fill(torch.rand(B, T) < masked, IGNORE)
    return hidden, head, labels


def plain(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, z_loss: float, bias: torch.Tensor | None = None
) -> torch.Tensor:
    logits = F.linear(hidden, head, bias).flatten(0, 1)
    loss = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction="sum")
    return loss + z_loss * (torch.logsumexp(logits, -1) ** 2)[labels.flatten() != IGNORE].sum()


@pytest.mark.parametrize("masked", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("chunk", [7, 1024])
@pytest.mark.parametrize("kernel", [softmax_gradient, fusible_softmax_gradient])
def test_chunked_loss_and_gradients_equal_the_full_ones(
    masked: float, z_loss: float, chunk: int, kernel: Kernel
) -> None:
    """Trap R12: any chunk size, ignored labels or none, z-loss, a bias of the logits."""
    hidden, head, labels = make(masked)
    bias = torch.randn(V, requires_grad=True)
    expected = plain(hidden, head, labels, z_loss, bias)
    wanted = torch.autograd.grad(expected / 5, (hidden, head, bias))
    loss = causal_loss(hidden, head, labels, bias, chunk, z_loss, kernel)
    found = torch.autograd.grad(loss.total / 5, (hidden, head, bias))
    assert loss.weight == int((labels != IGNORE).sum())
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-4)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_tied_head_gathers_both_gradients() -> None:
    """Trap R12: the embedding used as head gets the gradient of both uses."""
    torch.manual_seed(2)
    ids, labels = torch.randint(0, V, (B, T)), torch.randint(0, V, (B, T))
    weight = torch.randn(V, D, requires_grad=True)
    (wanted,) = torch.autograd.grad(plain(torch.tanh(weight[ids]), weight, labels, 0.0), weight)
    (found,) = torch.autograd.grad(causal_loss(torch.tanh(weight[ids]), weight, labels, chunk=16).total, weight)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_fully_masked_batch_has_weight_zero_and_zero_gradients() -> None:
    """Trap R4: backward works, nothing is NaN."""
    hidden, head, labels = make()
    loss = causal_loss(hidden, head, torch.full_like(labels, IGNORE))
    gradients = torch.autograd.grad(loss.total, (hidden, head))
    assert (loss.weight, loss.total.item()) == (0, 0.0)
    assert all(not gradient.any() for gradient in gradients)


def test_frozen_head_gets_no_gradient_and_none_is_made_without_grad() -> None:
    hidden, head, labels = make()
    head.requires_grad_(False)
    causal_loss(hidden, head, labels).total.backward()
    assert head.grad is None
    assert hidden.grad is not None
    with torch.no_grad():
        assert not causal_loss(hidden, head, labels).total.requires_grad


def test_full_logits_never_exist() -> None:
    """No tensor of (B·T, V) elements is allocated, forward or backward."""
    rows, vocabulary = 512, 4096
    hidden = torch.randn(1, rows, 8, requires_grad=True)
    head = torch.randn(vocabulary, 8, requires_grad=True)
    labels = torch.randint(0, vocabulary, (1, rows))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        causal_loss(hidden, head, labels, chunk=32).total.backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < rows * vocabulary * 4 / 2


def test_token_losses_are_the_terms_of_the_sum() -> None:
    hidden, head, labels = make()
    scores = token_losses(hidden, head, labels, chunk=10)
    logits = hidden @ head.T
    wanted = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none").view(B, T)
    torch.testing.assert_close(scores.losses, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(scores.correct, (logits.argmax(-1) == labels) & (labels != IGNORE))
    torch.testing.assert_close(scores.losses.sum(), causal_loss(hidden, head, labels).total)


@pytest.mark.parametrize("wrong", [V, -1])
def test_label_outside_the_vocabulary_is_an_error_that_names_it(wrong: int) -> None:
    hidden, head, labels = make()
    labels[1, 2] = wrong
    with pytest.raises(LabelError, match=str(wrong)):
        causal_loss(hidden, head, labels)


def test_masked_batches_of_any_count_use_few_shapes() -> None:
    """Kernels are kept per shape: a new one in each step of instruction tuning once took 3 GB of memory."""
    shapes = set()

    def spy(logits: torch.Tensor, targets: torch.Tensor, z_loss: float) -> tuple[torch.Tensor, torch.Tensor]:
        shapes.add(logits.shape[0])
        return softmax_gradient(logits, targets, z_loss)

    hidden, head = torch.randn(1, 2000, 8), torch.randn(64, 8)
    for kept in range(1, 1700, 37):
        labels = torch.randint(0, 64, (1, 2000))
        labels[:, kept:] = IGNORE
        causal_loss(hidden, head, labels, kernel=spy)
    assert shapes <= {256, 512, 768, 1024}


def test_rows_of_a_large_vocabulary_taken_some_at_a_time_have_the_same_losses_and_gradients(monkeypatch):
    logits, targets = torch.randn(10, 64), torch.randint(0, 64, (10,))
    targets[4] = IGNORE
    whole = softmax_gradient(logits, targets, 0.01)
    monkeypatch.setattr(causal, "WIDE", 3 * 64)
    for ours, expected in zip(softmax_gradient(logits, targets, 0.01), whole, strict=True):
        assert torch.equal(ours, expected)
