"""Layers that several families are built of; weights of any dtype, results in the input's."""

import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F

DRAWN = 1 << 22  # fresh weights drawn at a time


class Linear(nn.Linear):
    """``x Wᵀ + b`` in x's dtype: float32 masters are cast here, and their gradients come back in float32."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class Embedding(nn.Embedding):
    """A table of vectors, left empty on the meta device, where torch's own filling would import half of its compiler:
    a second and 76 MB for every model opened."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class RMSNorm(nn.Module):
    """``x / rms(x) · weight``, computed in float32, returned in x's dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


class LayerNorm(nn.Module):
    """``(x − mean) / std · weight + bias``, computed in float32, returned in x's dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), weight.shape, weight, bias, self.eps).to(x.dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, H · K) → (B, H, T, K)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, K) → (B, T, H · K)."""
    return x.transpose(1, 2).flatten(2)


@torch.no_grad()
def fill_normal(parameter: Tensor, seed: int, name: str, std: float) -> None:
    """Fresh weights N(0, std²) in place, from a stream keyed by (seed, name), so the order of parameters is free.

    A part at a time, so that a large matrix of 16-bit weights never has a 32-bit copy of itself.
    """
    generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(f"{seed}/{name}".encode()) >> 1)
    for part in parameter.view(-1).split(DRAWN):
        part.copy_(torch.randn(part.shape, generator=generator) * std)
