"""Single weights set to zero: which ones, in which pattern, and how they stay zero while the rest is trained."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hepta.config import HeptaError
from hepta.model.layers import Linear
from hepta.model.network import Network


def linear_maps(model: Network) -> dict[str, Linear]:
    """The linear maps of a model's layers by name; embeddings and heads are no part of it.

    Raises:
        HeptaError: there are none, as in an n-gram model.
    """
    inside = {id(module) for block in model.blocks for module in block.modules()}
    maps = {
        name: module for name, module in model.named_modules()
        if isinstance(module, Linear) and (id(module) in inside if inside else module is not model.lm_head)
    }  # fmt: skip
    if not maps:
        raise HeptaError("the model has no linear maps, so there is nothing to prune; choose another model")
    return maps


def importance(weight: Tensor, squares: Tensor | None) -> Tensor:
    """How much each weight matters (out, in): |w|, or |w| · ‖x‖₂ (Wanda, Sun et al. 2023).

    Args:
        weight: (out, in).
        squares: Σ x² of each input on calibration text (in,); None: magnitude alone.
    """
    size = weight.detach().float().abs()
    return size if squares is None else size * squares.sqrt()


def least_important(scores: Tensor, sparsity: float, by_row: bool) -> Tensor:
    """The share ``sparsity`` of a matrix with the lowest scores, as a mask (out, in), true where a weight goes.

    Args:
        scores: (out, in).
        sparsity: in (0, 1); the count is rounded to a whole number, of each row or of the matrix.
        by_row: weights compete with those of their own row (one output), else with the whole matrix.
    """
    table = scores if by_row else scores.reshape(1, -1)
    order = table.argsort(dim=1, stable=True)[:, : round(sparsity * table.shape[1])]
    return torch.zeros_like(table, dtype=torch.bool).scatter_(1, order, True).view(scores.shape)


def two_of_four(scores: Tensor, name: str = "matrix") -> Tensor:
    """The two least important of each four neighbours along the input: the pattern that sparse tensor cores take.

    Raises:
        HeptaError: the inputs are no multiple of four.
    """
    outputs, inputs = scores.shape
    if inputs % 4:
        raise HeptaError(f"{name}: has {inputs} inputs, and 2:4 needs a multiple of 4; use pattern=free")
    order = scores.view(outputs, inputs // 4, 4).argsort(dim=2, stable=True)[..., :2]
    gone = torch.zeros(outputs, inputs // 4, 4, dtype=torch.bool, device=scores.device)
    return gone.scatter_(2, order, True).view(scores.shape)


@torch.no_grad()
def set_zero(maps: Mapping[str, nn.Module], gone: Mapping[str, Tensor]) -> None:
    """Zero what the masks name."""
    for name, mask in gone.items():
        maps[name].get_parameter("weight").masked_fill_(mask, 0.0)


def zeros_of(maps: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Masks of the weights that are zero now."""
    return {name: module.get_parameter("weight").detach() == 0 for name, module in maps.items()}


def hold(maps: Mapping[str, nn.Module], gone: Mapping[str, Tensor]) -> None:
    """Keep zeroed weights at zero while the others learn, by giving them no gradient.

    AdamW moves a weight that is 0 and never had a gradient by nothing at all: its moments stay 0 and decay scales it.
    """
    for name, mask in gone.items():
        maps[name].get_parameter("weight").register_hook(
            lambda gradient, mask=mask: gradient.masked_fill(mask.to(gradient.device), 0.0)
        )
