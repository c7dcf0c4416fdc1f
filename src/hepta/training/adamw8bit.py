"""AdamW whose two moments take 8 bits each, in blocks of 256 values.

A code is a sign and a power: values lie at absmax · 2^(−k/8), eight to an octave, below the largest of their block.
So every value is off by at most a factor 2^(1/16), 4.4 %, however small it is beside its block, down to 2^−15.75
(first moment: 127 powers and a sign) or 2^−31.75 (second: 255 powers). Smaller ones round to the last power or to
zero (first), always up to the last power (second: a second moment of zero would let its first one explode).

Nearest rounding lets the second moment sink: with β₂ = 0.95 a step takes 5 % off where gradients have ceased, more
than the 4.2 % at which the next code begins, so it sinks by one code, 8.3 %. A coarser code, or a β₂ nearer to 1,
would hold it up forever. Where gradients come at random its mean is off by 2 to 5 %, which moves a step by half that.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 256  # values that share a scale
OCTAVE = 8  # powers in an octave
POWERS = {True: 127, False: 255}  # signed, unsigned; code 0 is zero
SLICE = BLOCK * 512  # values worked on at a time: floats of a whole tensor never exist, and these stay in the cache


def decoding_table(signed: bool) -> Tensor:
    """What each of the 256 codes stands for, in units of its block's largest value (256,)."""
    powers = torch.exp2((torch.arange(1, POWERS[signed] + 1) - POWERS[signed]) / OCTAVE)
    zero = torch.zeros(1)
    return torch.cat([zero, powers, zero, -powers]) if signed else torch.cat([zero, powers])


def encode(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes and scales of values.

    Args:
        values: (N,) float32; not below 0 unless ``signed``.
        signed: whether a bit of the code is the sign's.

    Returns:
        codes (N,) uint8, and the largest magnitude of each block (⌈N / 256⌉,) float32.
    """
    blocks = F.pad(values, (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    sizes = blocks.abs()
    largest = sizes.amax(1)
    below = torch.log2(sizes / largest.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).mul_(-OCTAVE).round_()
    powers = POWERS[signed]
    codes = (powers - below).clamp_(0 if signed else 1, powers)  # log2(0) is −inf: code 0, or 1
    if signed:
        codes.add_(blocks < 0, alpha=128)
    else:
        codes.mul_(sizes > 0)
    return codes.to(torch.uint8).view(-1)[: values.numel()], largest


def decode(codes: Tensor, largest: Tensor, table: Tensor) -> Tensor:
    """The values (N,) float32 that codes (N,), scales (⌈N / 256⌉,) and ``decoding_table`` (256,) stand for."""
    count = codes.numel()
    blocks = table.index_select(0, F.pad(codes, (0, -count % BLOCK)).int()).view(-1, BLOCK)
    return (blocks * largest[:, None]).view(-1)[:count]


class AdamW8bit(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) on block-wise moments of 8 bits (Dettmers et al. 2022), 2.03 bytes a weight."""

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    def _fresh_state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = {"step": torch.zeros((), dtype=torch.float32)}
        for moment in ("exp_avg", "exp_avg_sq"):
            state[moment] = torch.zeros(parameter.numel(), dtype=torch.uint8, device=parameter.device)
            blocks = -(-parameter.numel() // BLOCK)
            state[f"{moment}_absmax"] = torch.zeros(blocks, dtype=torch.float32, device=parameter.device)
        return state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        assert closure is None, "the loss is known already"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    if not self.state[parameter]:
                        self.state[parameter] = self._fresh_state(parameter)
                    self._update(parameter, self.state[parameter], group)

    def _update(self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        (beta1, beta2), rate = group["betas"], group["lr"]
        state["step"] += 1
        done = float(state["step"])
        size, root = rate / (1 - beta1**done), (1 - beta2**done) ** 0.5
        weights, gradient = parameter.view(-1), parameter.grad.reshape(-1)  # pyright: ignore[reportOptionalMemberAccess]
        tables = [decoding_table(signed).to(weights.device) for signed in (True, False)]
        for start in range(0, weights.numel(), SLICE):
            part, blocks = slice(start, start + SLICE), slice(start // BLOCK, (start + SLICE) // BLOCK)
            now, g = weights[part], gradient[part].float()
            m = decode(state["exp_avg"][part], state["exp_avg_absmax"][blocks], tables[0]).lerp_(g, 1 - beta1)
            v = decode(state["exp_avg_sq"][part], state["exp_avg_sq_absmax"][blocks], tables[1])
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            now.mul_(1 - rate * group["weight_decay"])
            state["exp_avg"][part], state["exp_avg_absmax"][blocks] = encode(m, True)
            state["exp_avg_sq"][part], state["exp_avg_sq_absmax"][blocks] = encode(v, False)
            now.addcdiv_(m, v.sqrt_().div_(root).add_(group["eps"]), value=-size)
