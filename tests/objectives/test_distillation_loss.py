"""Promises of distillation's loss, against autograd of the formula as it is written in the paper."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hepta.model.config import ModelConfig
from hepta.model.decoder import Decoder
from hepta.objectives.causal import IGNORE, causal_loss
from hepta.objectives.distill import Distill, Mixture, Taught, distillation_loss

B, T, D, WIDE, V = 3, 37, 24, 32, 131


def make(masked: float = 0.2) -> tuple[Tensor, Tensor, Tensor, Tensor, Taught]:
    """A student's hidden states, head, bias, the labels, and a teacher of another width."""
    torch.manual_seed(1)
    hidden, head, bias = (torch.randn(*shape, requires_grad=True) for shape in ((B, T, D), (V, D), (V,)))
    labels = torch.randint(0, V, (B, T)).masked_fill(torch.rand(B, T) < masked, IGNORE)
    return hidden, head, bias, labels, Taught(torch.randn(B, T, WIDE), torch.randn(V, WIDE) / 4, torch.randn(V))


def plain(student: Tensor, teacher: Tensor, labels: Tensor, mixture: Mixture) -> Tensor:
    """The paper's formula on whole logits (B, T, V), with torch's own losses."""
    seen, temperature = labels.flatten() != IGNORE, mixture.temperature
    student, teacher, labels = (value.flatten(0, 1)[seen] for value in (student, teacher, labels))
    soft = F.log_softmax(student / temperature, -1)
    kl = F.kl_div(soft, F.log_softmax(teacher / temperature, -1), reduction="sum", log_target=True)
    data = F.cross_entropy(student, labels, reduction="sum")
    drift = (torch.logsumexp(student, -1) ** 2).sum()
    return mixture.weight * temperature**2 * kl + (1 - mixture.weight) * data + mixture.z_loss * drift


@pytest.mark.parametrize(
    "mixture", [Mixture(), Mixture(1.0, 0.3), Mixture(4.0, 1.0), Mixture(0.5, 0.9, z_loss=0.01)], ids=str
)
@pytest.mark.parametrize("chunk", [7, 40, 512])
def test_loss_and_gradients_equal_autograd_of_the_formula(mixture: Mixture, chunk: int) -> None:
    """In float32 to 1e-5 of the largest entry; any chunk, temperature and weight; a bias on both sides."""
    hidden, head, bias, labels, taught = make()
    teacher = F.linear(taught.hidden, taught.head, taught.bias)
    expected = plain(F.linear(hidden, head, bias), teacher, labels, mixture)
    wanted = torch.autograd.grad(expected / 5, (hidden, head, bias))
    loss = distillation_loss(hidden, head, labels, bias, taught, mixture, chunk)
    found = torch.autograd.grad(loss.total / 5, (hidden, head, bias))
    assert loss.weight == int((labels != IGNORE).sum())
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-4)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_parts_are_the_data_loss_and_the_divergence_and_add_up() -> None:
    hidden, head, bias, labels, taught = make()
    mixture = Mixture(3.0, 0.25)
    loss = distillation_loss(hidden, head, labels, bias, taught, mixture, 16)
    data = causal_loss(hidden, head, labels, bias)
    torch.testing.assert_close(loss.parts["data_loss"], data.total, rtol=1e-5, atol=1e-4)
    whole = 0.25 * 9.0 * loss.parts["kl"] + 0.75 * loss.parts["data_loss"]
    torch.testing.assert_close(loss.total, whole, rtol=1e-5, atol=1e-4)
    assert float(loss.parts["kl"]) > 0


def test_temperature_squared_keeps_the_size_of_the_gradient() -> None:
    """For large T the gradient tends to (z_s − z_t) / V about their means, whatever T is (the paper's section 2.1)."""
    hidden, head, bias, labels, taught = make(0.0)
    student, teacher = F.linear(hidden, head, bias), F.linear(taught.hidden, taught.head, taught.bias)
    difference = (student - teacher).detach()
    limit = (difference - difference.mean(-1, keepdim=True)) / V
    wanted = torch.autograd.grad(student, bias, limit)[0]
    for temperature in (1e3, 2e3):
        loss = distillation_loss(hidden, head, labels, bias, taught, Mixture(temperature, 1.0))
        (found,) = torch.autograd.grad(loss.total, bias)
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))


def test_the_student_itself_as_teacher_teaches_nothing() -> None:
    """KL is 0 and its gradient vanishes; what is left is the data's share."""
    hidden, head, bias, labels, _ = make()
    same = Taught(hidden.detach(), head.detach(), bias.detach())
    alone = distillation_loss(hidden, head, labels, bias, same, Mixture(2.0, 1.0))
    assert float(alone.total) == pytest.approx(0.0, abs=1e-4)
    assert all(float(g.abs().max()) < 1e-4 for g in torch.autograd.grad(alone.total, (hidden, head, bias)))
    half = distillation_loss(hidden, head, labels, bias, same, Mixture(2.0, 0.5))
    wanted = torch.autograd.grad(causal_loss(hidden, head, labels, bias).total / 2, (hidden, head, bias))
    for ours, theirs in zip(torch.autograd.grad(half.total, (hidden, head, bias)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_teacher_that_gives_log_probabilities_needs_no_head() -> None:
    hidden, head, bias, labels, taught = make()
    teacher = F.linear(taught.hidden, taught.head, taught.bias)
    told = Taught(torch.log_softmax(teacher, -1), None, None)
    ours = distillation_loss(hidden, head, labels, bias, told, Mixture(), 16).total
    torch.testing.assert_close(ours, distillation_loss(hidden, head, labels, bias, taught, Mixture(), 50).total)


def test_labels_that_are_not_supervised_count_for_nothing() -> None:
    hidden, head, bias, labels, taught = make()
    loss = distillation_loss(hidden, head, torch.full_like(labels, IGNORE), bias, taught, Mixture())
    assert (loss.weight, float(loss.total), float(loss.parts["kl"])) == (0, 0.0, 0.0)
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss.total, (hidden, head, bias)))


def decoder(layers: int, width: int, seed: int) -> Decoder:
    model = Decoder(ModelConfig(
        vocab_size=V, hidden_size=width, intermediate_size=48, num_layers=layers, num_heads=2, num_kv_heads=1,
        head_dim=8,
    ))  # fmt: skip
    model.init_weights(seed)
    return model


def test_no_logits_of_all_rows_ever_exist_and_the_teacher_gets_no_gradient() -> None:
    """Every tensor that is made is watched: none has B · T rows and V columns, of either model."""
    student, teacher = decoder(1, 16, 1), decoder(2, 24, 2).eval()
    ids = torch.randint(0, V, (4, 160))  # 640 rows, more than a chunk
    batch = {"input_ids": ids, "labels": torch.roll(ids, -1, 1)}

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made = func(*args, **(kwargs or {}))
            for value in made if isinstance(made, tuple | list) else [made]:
                if isinstance(value, Tensor) and value.dim() > 1 and value.shape[-1] == V:
                    Watch.largest = max(Watch.largest, value.shape[:-1].numel())
            return made

    with Watch():
        loss = Distill(teacher=teacher)(student, batch)
        loss.total.backward()
    assert Watch.largest == 512
    assert not Distill(teacher=teacher).ask({"input_ids": ids}, None).hidden.requires_grad, "it keeps no graph"
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
    expected = plain(student(ids), teacher(ids).detach(), batch["labels"], Mixture())
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-3)
