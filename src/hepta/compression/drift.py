"""How far a smaller model's predictions are from those of the model it was made from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hepta.evaluation.agreement import token_figures
from hepta.model.network import Network, unembed

SUMMED = ("divergence", "nats_original", "nats_changed", "same_choice")
ROWS = 256  # distributions compared at once, float32


@dataclass
class Drift:
    """Means over predicted tokens.

    Attributes:
        tokens: predictions compared.
        kl: KL(original ‖ small), nats.
        nats_before, nats_after: of the token that really came.
        agree: share of predictions whose most probable token is the same.
    """

    tokens: int
    kl: float
    nats_before: float
    nats_after: float
    agree: float

    def described(self) -> str:
        """One line for people."""
        change = self.nats_after / self.nats_before - 1
        return (
            f"on {self.tokens:,} tokens not rounded by: {self.nats_before:.4f} → {self.nats_after:.4f} nats per token"
            f" ({change:+.2%}), KL {self.kl:.5f}, same first choice {self.agree:.1%}"
        )


@torch.no_grad()
def drift(original: Network, small: Network, batches: Sequence[Tensor]) -> Drift:
    """Compare the predictions of two causal models of one tokenizer.

    Args:
        original: what the other was made from.
        small: the other.
        batches: ids (B, T); every token after the first of a row is predicted.
    """
    sums, tokens = torch.zeros(4, dtype=torch.float64), 0
    for ids in batches:
        targets = ids[:, 1:].flatten()
        rows = [(m, m.before_head(m.body(ids[:, :-1])).flatten(0, 1)) for m in (original, small)]
        for start in range(0, len(targets), ROWS):
            wanted = targets[start : start + ROWS]
            p, q = (
                F.log_softmax(unembed(x[start : start + ROWS], m.output_weight, m.output_bias).float(), -1)
                for m, x in rows
            )
            told = token_figures(wanted, p, q)
            sums += torch.stack([told[name].double().sum() for name in SUMMED])
            tokens += len(wanted)
    kl, before, after, agree = (sums / max(tokens, 1)).tolist()
    return Drift(tokens, kl, before, after, agree)
