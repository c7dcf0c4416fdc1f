"""From logits to the next token: penalty, temperature, top-k, top-p, min-p, and one uniform number.

The order is that of transformers: repetition penalty, temperature, top-k, top-p, min-p.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hepta.config import HeptaError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the defaults are greedy.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens until their probabilities reach this sum; 1 keeps all.
        min_p: keep tokens at least this share as likely as the most likely one; 0 keeps all.
        repetition_penalty: above 1 makes tokens of the prompt and the text so far less likely (CTRL).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        rules = {
            "temperature": (math.isfinite(self.temperature) and self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0, at most 1"),
            "min_p": (0 <= self.min_p < 1, "0 or more, below 1"),
            "repetition_penalty": (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0, "above 0"),
        }
        for key, (holds, rule) in rules.items():
            if not holds:
                raise HeptaError(f"{key}: must be {rule}, found {getattr(self, key)}")


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make seen tokens less likely: positive logits are divided by ``penalty``, negative ones multiplied.

    Args:
        logits: (B, V) float32.
        seen: which ids row b has had (B, V), bool.
        penalty: above 1 discourages.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that is drawn from, (B, V) float32, rows sum to 1; for temperature above 0."""
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if sampling.top_p < 1:
        order = logits.sort(dim=-1, descending=True)
        sorted_p = order.values.softmax(-1)
        before = sorted_p.cumsum(-1) - sorted_p  # probability of all likelier tokens
        cut = (before >= sampling.top_p).scatter(-1, order.indices, before >= sampling.top_p)
        logits = logits.masked_fill(cut, -math.inf)
    p = logits.softmax(-1)
    if sampling.min_p > 0:
        p = p.masked_fill(p < sampling.min_p * p.amax(-1, keepdim=True), 0.0)
        p = p / p.sum(-1, keepdim=True)
    return p


def draw(p: Tensor, uniform: Tensor) -> Tensor:
    """The token where the cumulated distribution passes ``uniform``: one number in [0, 1) a row.

    Args:
        p: distribution (B, V).
        uniform: (B,) float64, from each request's own generator, so the rest of the batch has no say.

    Returns:
        ids (B,); a token of probability 0 is never drawn.
    """
    total = p.double().cumsum(-1)
    last = total[:, -1:]
    target = torch.minimum(uniform[:, None] * last, torch.nextafter(last, torch.zeros_like(last)))
    return torch.searchsorted(total, target, right=True).squeeze(-1)
