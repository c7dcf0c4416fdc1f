"""AdamW and Adafactor for weights that are bfloat16 themselves: float32 arithmetic a part at a time, chance rounding.

They compute what torch's own classes of these names compute (on float32 weights, the same to 1e-6), under the same
names of states. What differs: the sum is rounded stochastically, and nothing as large as a large weight is ever made.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from hepta.training.rounding import PART, Rounder, norm_of

TINY = 1e-30  # below which a squared gradient counts as this
SMALLEST = 1e-3  # of a weight's size, to which Adafactor's steps are relative
DECAY = 0.8  # β₂ = 1 − t^−0.8
LARGEST = 1.0  # root mean square of Adafactor's update before the rate


class Rounded(torch.optim.Optimizer):
    """What both share: one parameter at a time, its updates counted, its chance keyed by its name."""

    def __init__(self, params: Iterable[Any], names: dict[Tensor, str], seed: int, **defaults: Any) -> None:
        """``names`` of all parameters; ``seed`` of the rounding."""
        super().__init__(params, {"lr": 0.0, "weight_decay": 0.0, **defaults})
        self.names, self.seed = names, seed

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        assert closure is None, "the loss is known already"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state["step"] = torch.zeros(())
                    state["step"] += 1
                    rounder = Rounder(parameter, self.seed, self.names[parameter], int(state["step"]))
                    self._update(parameter, parameter.grad, state, group, rounder)

    def _update(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any], rounder: Rounder
    ) -> None:
        raise NotImplementedError


class RoundedAdamW(Rounded):
    """AdamW (Loshchilov & Hutter 2019); both moments float32."""

    def _update(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any], rounder: Rounder
    ) -> None:
        if "exp_avg" not in state:
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
        (beta1, beta2), rate, done = group["betas"], group["lr"], int(state["step"])
        size, root = rate / (1 - beta1**done), (1 - beta2**done) ** 0.5
        whole = (parameter.view(-1), gradient.reshape(-1), state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1))
        parts = zip(*(tensor.split(PART) for tensor in whole), strict=True)
        for number, (p, grad, m, v) in enumerate(parts):
            g = grad.float()
            m.lerp_(g, 1 - beta1)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            scale = torch.sqrt(v).div_(root).add_(group["eps"])
            wide = p.to(torch.float32, copy=True).mul_(1 - rate * group["weight_decay"])
            rounder.write(number * PART, wide.addcdiv_(m, scale, value=-size))


class RoundedAdafactor(Rounded):
    """Adafactor without momentum (Shazeer & Stern 2018): of a matrix, one number for each row and column.

    U = g / √(r cᵀ / mean r), so both roots are taken of vectors; ‖U‖ is needed before the first value is written, and
    comes from r and c too: a second pass over the gradient, no matrix of its own.
    """

    def _update(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any], rounder: Rounder
    ) -> None:
        done, rate = int(state["step"]), group["lr"]
        share = done**-DECAY
        matrix = parameter.ndim > 1
        g = gradient.reshape(gradient.shape[0], -1) if matrix else gradient.reshape(1, -1)
        p = parameter.view(g.shape)
        rows, columns = _mean_squares(g)
        if matrix:
            row = _follow(state, "row_var", rows.view(-1, 1), share)
            column = _follow(state, "col_var", columns.view(1, -1), share)
            down = (row / row.mean().clamp_(min=TINY)).clamp_(min=TINY).rsqrt_()
        else:
            column = _follow(state, "variance", columns, share)
            down = torch.ones(1, 1, device=g.device)
        across = column.view(1, -1).clamp(min=TINY).rsqrt_()
        length = _update_norm(g, down, across) / g.numel() ** 0.5
        size = max(SMALLEST, norm_of(parameter) / g.numel() ** 0.5) * min(rate, done**-0.5)
        size /= max(1.0, float(length) / LARGEST)
        for start, part in _row_parts(g):
            wide = p[start : start + len(part)].to(torch.float32, copy=True).mul_(1 - rate * group["weight_decay"])
            update = part.to(torch.float32, copy=True).mul_(down[start : start + len(part)] * size)
            _write(rounder, start * g.shape[1], wide.addcmul_(update, across, value=-1.0))


def _row_parts(matrix: Tensor) -> list[tuple[int, Tensor]]:
    """(first row, rows) of about ``PART`` values each."""
    rows = max(1, PART // matrix.shape[1])
    return [(start, matrix[start : start + rows]) for start in range(0, len(matrix), rows)]


def _write(rounder: Rounder, start: int, values: Tensor) -> None:
    for number, part in enumerate(values.view(-1).split(PART)):  # a single row may be longer than a part
        rounder.write(start + number * PART, part)


def _mean_squares(g: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of squares of each row (R,) and of each column (C,), float32."""
    rows = torch.empty(len(g), device=g.device)
    columns = torch.zeros(g.shape[1], device=g.device)
    for start, part in _row_parts(g):
        squares = part.to(torch.float32, copy=True).square_()
        torch.mean(squares, 1, out=rows[start : start + len(part)])
        columns += squares.sum(0)
    return rows, columns.div_(len(g))


def _update_norm(g: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Euclidean norm of g · down · across, (R, C), (R, 1) and (1, C), a part at a time."""
    total = torch.zeros((), device=g.device)
    for start, part in _row_parts(g):
        update = part.to(torch.float32, copy=True).mul_(across)
        sums = torch.linalg.vector_norm(update, dim=1)
        total += (sums * down[start : start + len(part), 0]).square().sum()
    return total.sqrt()


def _follow(state: dict[str, Tensor], key: str, seen: Tensor, share: float) -> Tensor:
    """Move a state by ``share`` towards what was seen; it begins as the first seen (then the share is 1)."""
    if key not in state:
        state[key] = torch.zeros_like(seen)
    return state[key].lerp_(seen, share)
