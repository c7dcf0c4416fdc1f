"""Losses of classes and numbers against torch's own and against closed forms."""

import numpy as np
import pytest
import torch
from torch import nn

from hepta.objectives.classify import (
    Classify,
    Regress,
    balanced_weights,
    class_loss,
    normalised_weights,
    penalised,
    penalty,
)


class Toy(nn.Module):
    """Embeds ids, takes their mean, and maps it to classes: any model(input_ids, lengths) → logits."""

    def __init__(self, classes=3):
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(20, 8), nn.LayerNorm(8), nn.Linear(8, classes)

    def forward(self, input_ids, lengths):
        return self.head(self.norm(self.table(input_ids).mean(1)))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 20, (12, 5), generator=generator)
    return {"input_ids": ids, "lengths": torch.full((12,), 5), "labels": torch.arange(12) % 3}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_equals_the_definition(smoothing, weighted):
    """Cross-entropy written out: −Σ_c q_c w_c log p_c with q the smoothed target (as torch and Szegedy et al. 2016)."""
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(9, 4), torch.arange(9) % 4, torch.tensor([0.5, 2.0, 1.0, 3.0])
    found = class_loss(logits, labels, weights if weighted else None, smoothing)
    target = torch.full((9, 4), smoothing / 4).scatter_(1, labels[:, None], 1 - smoothing + smoothing / 4)
    scale = weights if weighted else torch.ones(4)
    by_hand = -(target * scale * logits.log_softmax(-1)).sum()
    assert found == pytest.approx(float(by_hand), rel=1e-5)
    torch_loss = nn.CrossEntropyLoss(weight=weights if weighted else None, label_smoothing=smoothing)
    divisor = scale[labels].sum()
    assert float(found / divisor) == pytest.approx(float(torch_loss(logits, labels)), rel=1e-5)


def test_any_cut_into_micro_batches_gives_the_same_loss_and_gradients_penalties_included(batch):
    """trap R1."""
    torch.manual_seed(0)
    model = Toy()
    objective = Classify((0.5, 1.0, 2.0), 0.1, l1=0.01, l2=0.02)

    def gradients(sizes):
        model.zero_grad()
        start, loss, weight = 0, 0.0, sum(sizes)
        for size in sizes:
            part = {key: value[start : start + size] for key, value in batch.items()}
            assert objective.weight(part) == size
            result = objective(model, part)
            (result.total / weight).backward()
            loss, start = loss + float(result.total.detach()) / weight, start + size
        return loss, [p.grad.clone() for p in model.parameters()]

    whole, parts = gradients([12]), gradients([1, 2, 4, 5])
    assert whole[0] == pytest.approx(parts[0], rel=1e-5)
    for a, b in zip(whole[1], parts[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_penalties_are_their_closed_forms_on_trained_matrices_alone():
    model = Toy()
    assert [tuple(p.shape) for p in penalised(model)] == [(3, 8)]  # no embedding, norm or bias
    w = model.head.weight
    assert float(penalty(model, 0.3, 0.0)) == pytest.approx(0.3 * float(w.abs().sum()), rel=1e-5)
    assert float(penalty(model, 0.0, 0.7)) == pytest.approx(0.7 * float((w**2).sum()), rel=1e-5)
    penalty(model, 0.3, 0.7).backward()
    torch.testing.assert_close(w.grad, 0.3 * w.sign() + 1.4 * w.detach())
    w.requires_grad_(False)
    assert penalised(model) == []


def test_balanced_weights_equal_scikit_learns_and_any_weights_have_mean_one():
    from sklearn.utils.class_weight import compute_class_weight

    counts = [50, 5, 20]
    labels = [0] * 50 + [1] * 5 + [2] * 20
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_weights(counts) == pytest.approx(wanted.tolist())
    given = normalised_weights([1.0, 5.0, 2.0], counts)
    assert sum(w * n for w, n in zip(given, counts, strict=True)) / 75 == pytest.approx(1.0)
    assert given[1] / given[0] == pytest.approx(5.0)


def test_right_answers_are_tallied_on_the_way(batch):
    torch.manual_seed(0)
    model, objective = Toy(), Classify()
    objective(model, batch)
    right = (model(batch["input_ids"], None).argmax(-1) == batch["labels"]).float().mean()
    assert objective.tally.take() == pytest.approx(float(right))
    assert objective.tally.take() is None


def test_numbers_are_learnt_by_squared_error(batch):
    torch.manual_seed(0)
    model, labels = Toy(classes=1), torch.linspace(-2, 2, 12)
    result = Regress()(model, {**batch, "labels": labels})
    wanted = nn.MSELoss()(model(batch["input_ids"], None)[:, 0], labels)
    assert float(result.total) / result.weight == pytest.approx(float(wanted), rel=1e-6)
    more = Regress(l2=0.5)(model, {**batch, "labels": labels})
    extra = 0.5 * float((model.head.weight**2).sum())
    assert float(more.total) / 12 == pytest.approx(float(wanted) + extra, rel=1e-6)
