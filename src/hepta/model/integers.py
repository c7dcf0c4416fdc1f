"""Matrices of small integers: rounding to a grid, packing, and products that read the integers themselves.

    w ≈ s · q      s one number for each row (8 bits), or for each group of columns of a row (4 bits)

Few rows of x (a step of decoding) go through torch's integer kernels, which read each weight once, in 1 byte or half
a one, where bfloat16 takes 2. Many rows (a prompt, a training text) go through tiles turned to floats in a bounded
scratch and plain products, since there the arithmetic is what costs; see docs/log.md for where the two meet.
Shapes: N outputs, K inputs, M rows of x, G columns that share a scale.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

KERNEL_ROWS = 16  # up to here the kernels win
TILE = 1 << 20  # weights turned to floats at a time
NARROWEST = 64  # columns of a tile at least: a line of the cache, where each is a byte
LANES = 64  # rows of W that the 4-bit kernel keeps side by side
EXTREME, LOW, HIGH = 127, -8, 7  # of a byte (−128 is left out, so that both sides are alike); of half a byte


def round_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to multiples of its largest value / 127.

    Args:
        weight: (N, K).

    Returns:
        q (N, K) int8 in [−127, 127], and s (N, 1) bfloat16, rounded before q is, so that it costs nothing.
    """
    wide = weight.float()
    scale = scales(wide.abs().amax(1, keepdim=True) / EXTREME)
    return (wide / scale.float()).round_().clamp_(-EXTREME, EXTREME).to(torch.int8), scale


def scales(values: Tensor) -> Tensor:
    """Step sizes as bfloat16; 1 where everything is 0, so that nothing is divided by 0."""
    return torch.where(values != 0, values, 1.0).to(torch.bfloat16)


def pack(values: Tensor) -> Tensor:
    """Half bytes as compressed-tensors lays them: eight in an int32, the first in the lowest bits.

    Args:
        values: q (R, C) in [−8, 7]; what is stored is q + 8.

    Returns:
        (R, ⌈C / 8⌉) int32.
    """
    padded = F.pad((values - LOW).to(torch.uint8), (0, -values.shape[1] % 8))
    return (padded[:, 0::2] | padded[:, 1::2] << 4).contiguous().view(torch.int32)


def unpack(packed: Tensor, columns: int) -> Tensor:
    """Back from ``pack``, but for the 8: q + 8 (R, columns) uint8 in [0, 15]."""
    pairs = packed.contiguous().view(torch.uint8)
    return torch.stack((pairs & 15, pairs >> 4), -1).flatten(1)[:, :columns]


@functools.cache
def lanes_known() -> bool:
    """Whether the 4-bit kernel of this machine keeps its weights as ``unlace`` thinks; another may not."""
    values = torch.arange(LANES * 32, dtype=torch.int32).view(LANES, 32) * 7 % 16
    laced = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)
    return torch.equal(unlace(laced, 0, LANES), values.T.to(torch.uint8))


def lace(packed: Tensor, columns: int) -> Tensor:
    """What ``pack`` laid, in the order the kernel wants (N filled up to ``LANES``, columns / 2) uint8.

    A few rows at a time, since the kernel's own function wants four bytes for each half.
    """
    laced = torch.empty(-(-len(packed) // LANES) * LANES, columns // 2, dtype=torch.uint8)
    for start in range(0, len(packed), LANES):
        values = unpack(packed[start : start + LANES], columns).to(torch.int32)
        padded = F.pad(values, (0, 0, 0, LANES - len(values)))
        laced[start : start + LANES] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(padded, 1)
    return laced


def unlace(laced: Tensor, start: int, end: int, first: int = 0, last: int | None = None) -> Tensor:
    """Rows [start, end) of W, and columns [first, last) of them, out of the kernel's order, transposed: (columns, rows)
    uint8. Rows are multiples of ``LANES``."""
    K = laced.shape[1] * 2
    bytes_ = laced[start:end].view(-1, K, LANES // 2)[:, first:last]
    return torch.cat((bytes_ & 15, bytes_ >> 4), -1).transpose(0, 1).flatten(1)


class _Fixed(torch.autograd.Function):
    """A product with a matrix that learns nothing: gradients go to x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: "IntegerMatrix") -> Tensor:
        ctx.matrix = matrix
        return matrix.plain_product(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (dy,) = grads
        dx = ctx.matrix.pull_back(dy.reshape(-1, dy.shape[-1]))
        return dx.view(*dy.shape[:-1], -1), None


class IntegerMatrix:
    """What stands where a weight (N, K) stood: it has a shape, a dtype that its scales are in, and a product."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    row_scale: Tensor | None = None  # (N, 1), where each row has one scale

    def to(self, *_: Any, **__: Any) -> "IntegerMatrix":
        """Itself: products come in the dtype of what is multiplied, whatever the scales are in."""
        return self

    def detach(self) -> "IntegerMatrix":
        """Itself: it never learns."""
        return self

    def tiles(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        """(first row, Wᵀ of some rows (K, n)) in turn; each is gone when the next comes."""
        raise NotImplementedError

    def columns(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        """(first column, some columns (N, n)) in turn, of W without ``row_scale``; each is gone when the next comes."""
        raise NotImplementedError

    def kernel(self, x: Tensor) -> Tensor:
        """x (M, K) → (M, N) for few rows."""
        raise NotImplementedError

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        """The whole matrix (N, K) as floats, for tests and for what looks at single weights."""
        return torch.cat([tile.T.clone() for _, tile in self.tiles(dtype or self.dtype)])

    def product(self, x: Tensor) -> Tensor:
        """x (…, K) → x Wᵀ (…, N) in the dtype of x."""
        if torch.is_grad_enabled() and x.requires_grad:
            found: Any = _Fixed.apply(x, self)
            return found
        return self.plain_product(x)

    def pull_back(self, dy: Tensor) -> Tensor:
        """The gradient of x from that of ``product``: dy (M, N) → dy W (M, K). Each sum is one product's own."""
        dx = dy.new_empty(len(dy), self.shape[1])
        if self.row_scale is not None:  # dy W = (dy s) q: fewer values to multiply than W has
            dy = dy * self.row_scale[:, 0].to(dy.dtype)
        for start, tile in self.columns(dy.dtype):
            dx[:, start : start + tile.shape[1]] = dy @ tile
        return dx

    def plain_product(self, x: Tensor) -> Tensor:
        """``product``, of which autograd knows nothing."""
        flat = x.reshape(-1, self.shape[1])
        if len(flat) <= KERNEL_ROWS and x.device.type == "cpu":
            return self.kernel(flat).view(*x.shape[:-1], -1)
        y = x.new_empty(len(flat), self.shape[0])
        for start, tile in self.tiles(x.dtype):
            y[:, start : start + tile.shape[1]] = flat @ tile
        return y.view(*x.shape[:-1], -1)


class Bytes(IntegerMatrix):
    """One byte for each weight, one scale for each row.

    Args:
        values: q (N, K) int8.
        scale: s (N, 1).
    """

    def __init__(self, values: Tensor, scale: Tensor) -> None:
        self.values, self.scale, self.row_scale = values, scale, scale
        self.shape, self.dtype, self.device = (values.shape[0], values.shape[1]), scale.dtype, values.device

    def tiles(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        N, K = self.shape
        step = max(1, TILE // K)
        scratch = torch.empty(min(step, N), K, dtype=dtype, device=self.device)
        for start in range(0, N, step):
            part = self.values[start : start + step]
            tile = torch.mul(part, self.scale[start : start + step].to(dtype), out=scratch[: len(part)])
            yield start, tile.T

    def columns(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        N, K = self.shape
        step = max(NARROWEST, 2 * TILE // N)
        scratch = torch.empty(N * min(step, K), dtype=dtype, device=self.device)
        for start in range(0, K, step):
            part = self.values[:, start : start + step]
            yield start, scratch[: part.numel()].view(part.shape).copy_(part)

    def kernel(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm(x.contiguous(), self.values, self.scale[:, 0].to(x.dtype))


class HalfBytes(IntegerMatrix):
    """Half a byte for each weight, one scale for each group of columns.

    Args:
        laced: q + 8 in the kernel's order (N filled up to ``LANES``, K / 2) uint8.
        scale: s (K / group, N filled up, 2); the second of the two is a zero point of the kernel's, and 0.
        rows: N.
    """

    def __init__(self, laced: Tensor, scale: Tensor, rows: int) -> None:
        self.laced, self.scale = laced, scale
        self.shape, self.dtype, self.device = (rows, laced.shape[1] * 2), scale.dtype, laced.device
        self.group = self.shape[1] // len(scale)

    @classmethod
    def of(cls, packed: Tensor, columns: int, scale: Tensor) -> "HalfBytes":
        """From what lies on disk: q (N, K) packed, K, and s (N, K / group)."""
        laced = lace(packed, columns)
        pairs = torch.zeros(scale.shape[1], len(laced), 2, dtype=scale.dtype)
        pairs[:, : len(scale), 0] = scale.T
        return cls(laced, pairs, len(scale))

    def tiles(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        N, K = self.shape
        step = min(max(1, TILE // K // LANES) * LANES, len(self.laced))
        scratch = torch.empty(step * K, dtype=dtype)
        for start in range(0, len(self.laced), step):
            end = min(start + step, len(self.laced))
            if lanes_known():
                q = unlace(self.laced, start, end).view(torch.int8).add_(LOW)
                scale = self.scale[:, None, start:end, 0].to(dtype).contiguous()  # (K / group, 1, n); strides are slow
                tile = scratch[: K * (end - start)].view(-1, self.group, end - start)
                tile = torch.mul(q.view(tile.shape), scale, out=tile).view(K, -1)
            else:  # the kernel itself says what it holds
                part = self.scale[:, start:end].to(dtype).contiguous()
                tile = self._multiply(torch.eye(K, dtype=dtype), self.laced[start:end], part)
            yield start, tile[:, : min(end, N) - start]

    def columns(self, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
        N, K = self.shape
        step = max(1, TILE // len(self.laced) // self.group) * self.group
        scratch = torch.empty(min(step, K) * len(self.laced), dtype=dtype)
        for start in range(0, K, step):
            end = min(start + step, K)
            if lanes_known():
                q = unlace(self.laced, 0, len(self.laced), start, end).contiguous().view(torch.int8).add_(LOW)
                scale = self.scale[start // self.group : end // self.group, None, :, 0].to(dtype).contiguous()
                shape = (-1, self.group, len(self.laced))
                tile = torch.mul(q.view(shape), scale, out=scratch[: q.numel()].view(shape)).view(end - start, -1)
            else:  # the kernel itself says what it holds
                tile = self._multiply(torch.eye(K, dtype=dtype)[start:end], self.laced, self.scale.to(dtype))
            yield start, tile[:, :N].T

    def kernel(self, x: Tensor) -> Tensor:
        return self._multiply(x.contiguous(), self.laced, self.scale.to(x.dtype))[:, : self.shape[0]]

    def _multiply(self, x: Tensor, laced: Tensor, scale: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, laced, self.group, scale)
