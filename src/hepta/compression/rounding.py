"""Which integers stand for a matrix: each weight to its nearest, or rounding whose errors the later weights repair.

The second is Frantar et al. 2023 (GPTQ; after Hassibi & Stork 1993): of all integer matrices, look for the one whose
outputs differ least on real inputs, ‖(W − Ŵ) X‖². Columns are rounded one by one, and what a column's rounding
changed in the outputs is taken back, as far as it can be, by the columns still to come; how much each of them helps is
told by the inverse of X Xᵀ. Columns that carry the largest inputs come first, while there are many left to repair them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hepta.model.integers import EXTREME, HIGH, LOW, pack, round_rows, scales

DAMPING = 0.01  # of the mean of X Xᵀ's diagonal, added to it: inputs never seen stay harmless
BLOCK = 128  # columns whose repairs of the rest are put off and done in one product
SHARES = [sign * (0.7 + 0.025 * i) for sign in (1, -1) for i in range(19)]  # of a group's range, tried in turn


@dataclass
class Rounded:
    """A matrix as integers: ``w = s q``.

    Attributes:
        values: q (N, K) int8, of 4 bits in [−8, 7].
        scale: s (N, G) bfloat16; one for a whole row with 8 bits.
        bits: 8 or 4.
    """

    values: Tensor
    scale: Tensor
    bits: int

    def dequantized(self) -> Tensor:
        """The matrix (N, K) float32 that the integers stand for."""
        N, G = self.scale.shape
        return (self.values.float().view(N, G, -1) * self.scale.float()[..., None]).view(N, -1)

    def stored(self) -> dict[str, Tensor]:
        """The tensors on disk, by the ends of their names."""
        if self.bits == 8:
            return {"weight": self.values.contiguous(), "weight_scale": self.scale}
        packed, shape = pack(self.values), torch.tensor(self.values.shape)
        return {"weight_packed": packed, "weight_scale": self.scale, "weight_shape": shape}


def nearest_bytes(weight: Tensor) -> Rounded:
    """Each weight of (N, K) to the nearest of 255 steps of its row."""
    return Rounded(*round_rows(weight), bits=8)


def group_scales(weight: Tensor, group: int, importance: Tensor | None = None) -> Tensor:
    """A scale for each group of columns: the one of several tried that leaves the least squared error.

    Sixteen steps lie from −8 to 7, so the side of the larger extreme should get the eight: a scale may be negative.

    Args:
        weight: (N, K) float32.
        group: columns that share a scale.
        importance: of each column's error (K,): Σ x² of its inputs; None: all alike.

    Returns:
        s (N, K / group) bfloat16.
    """
    w = weight.view(len(weight), -1, group)
    weights = torch.ones(weight.shape[1]) if importance is None else importance
    extreme = w.gather(-1, w.abs().argmax(-1, keepdim=True))[..., 0]
    best, scale = torch.full(extreme.shape, torch.inf), scales(extreme)
    for share in SHARES:
        s = scales(extreme * (share / LOW))
        wide = s.float()[..., None]
        q = (w / wide).round_().clamp_(LOW, HIGH)
        error = (q.mul_(wide).sub_(w).square_() * weights.view(-1, group)).sum(-1)
        best, scale = torch.minimum(error, best), torch.where(error < best, s, scale)
    return scale


def nearest_half_bytes(weight: Tensor, group: int) -> Rounded:
    """Each weight of (N, K) to the nearest of its group's 16 steps."""
    wide = weight.float()
    scale = group_scales(wide, group)
    q = (wide / scale.float().repeat_interleave(group, 1)).round_().clamp_(LOW, HIGH)
    return Rounded(q.to(torch.int8), scale, bits=4)


def repaired(weight: Tensor, products: Tensor, group: int | None) -> Rounded:
    """Round column by column, each error repaired by the columns still to come.

    Args:
        weight: (N, K).
        products: Σ x xᵀ of the inputs (K, K) float32.
        group: columns that share a scale; None: 8 bits, one scale a row.
    """
    W, H = weight.float().clone(), products.clone()
    diagonal = H.diagonal()
    diagonal[diagonal == 0] = 1.0  # an input that was always 0
    scale = round_rows(W)[1] if group is None else group_scales(W, group, diagonal)
    low, high = (-EXTREME, EXTREME) if group is None else (LOW, HIGH)
    order = diagonal.argsort(descending=True)
    steps = scale.float().repeat_interleave(group or W.shape[1], 1)[:, order]
    q = _columns(W[:, order], _inverse_factor(H[order][:, order]), steps, low, high)
    values = torch.empty_like(q).index_copy_(1, order, q)
    return Rounded(values.to(torch.int8), scale, bits=8 if group is None else 4)


def _inverse_factor(H: Tensor) -> Tensor:
    """U (K, K) upper with Uᵀ U = (H + damping)⁻¹: row k says how later columns repair column k."""
    K = len(H)
    H.diagonal().add_(DAMPING * H.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    return torch.linalg.cholesky(inverse + 1e-12 * torch.eye(K) * inverse.diagonal().mean(), upper=True)


def _columns(W: Tensor, U: Tensor, steps: Tensor, low: int, high: int) -> Tensor:
    """Integers of W (N, K), whose columns are in the order of rounding; W is used up."""
    N, K = W.shape
    q = torch.empty_like(W)
    for start in range(0, K, BLOCK):
        end = min(start + BLOCK, K)
        part, errors = W[:, start:end].clone(), torch.empty(N, end - start)
        for k in range(end - start):
            column, step = part[:, k], steps[:, start + k]
            rounded = (column / step).round_().clamp_(low, high)
            q[:, start + k] = rounded
            errors[:, k] = (column - rounded * step) / U[start + k, start + k]
            part[:, k + 1 :] -= torch.outer(errors[:, k], U[start + k, start + k + 1 : end])
        W[:, end:] -= errors @ U[start:end, end:]
    return q
