"""Layers whose weights are integers, and the swap that puts them into a model before its weights are read.

On disk they are exactly what compressed-tensors lays down, so that transformers opens them: 8 bits as
``int-quantized`` (``weight`` int8, ``weight_scale``), 4 bits as ``pack-quantized`` (``weight_packed``,
``weight_scale``, ``weight_shape``).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hepta.model.integers import Bytes, HalfBytes, IntegerMatrix
from hepta.model.scheme import PACKED, SCALE, Scheme


def _frozen(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)


class QuantizedLinear(nn.Module):
    """``x Wᵀ + b`` in x's dtype, W held as integers."""

    def __init__(self, inputs: int, outputs: int, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = inputs, outputs, bias

    @property
    def matrix(self) -> IntegerMatrix:
        """W."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = self.matrix.product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class Linear8(QuantizedLinear):
    """A byte for each weight."""

    def __init__(self, inputs: int, outputs: int, bias: nn.Parameter | None) -> None:
        super().__init__(inputs, outputs, bias)
        self.weight = _frozen(outputs, inputs, dtype=torch.int8)
        self.weight_scale = _frozen(outputs, 1)

    @property
    def matrix(self) -> IntegerMatrix:
        """W."""
        return Bytes(self.weight, self.weight_scale)


class Linear4(QuantizedLinear):
    """Half a byte for each weight; once read, in the order the kernel wants (``lace_weights``)."""

    def __init__(self, inputs: int, outputs: int, bias: nn.Parameter | None, group: int) -> None:
        super().__init__(inputs, outputs, bias)
        self.weight_packed = _frozen(outputs, -(-inputs // 8), dtype=torch.int32)
        self.weight_scale = _frozen(outputs, inputs // group)
        self.weight_shape = _frozen(2, dtype=torch.int64)
        self._held: HalfBytes | None = None

    @torch.no_grad()
    def lace_weights(self) -> None:
        """Put what was read into the kernel's order; the order of the file is dropped."""
        self._held = HalfBytes.of(self.weight_packed, self.in_features, self.weight_scale)
        for name in ("weight_packed", "weight_scale", "weight_shape"):
            setattr(self, name, None)

    @property
    def matrix(self) -> IntegerMatrix:
        """W."""
        assert self._held is not None, "lace_weights comes after reading"
        return self._held


class Embedding8(nn.Module):
    """Rows looked up in bytes, each times its scale."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = rows, width
        self.weight = _frozen(rows, width, dtype=torch.int8)
        self.weight_scale = _frozen(rows, 1)

    @property
    def matrix(self) -> IntegerMatrix:
        """The whole table, as a head reads it."""
        return Bytes(self.weight, self.weight_scale)

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids] * self.weight_scale[ids]


def is_quantized(model: nn.Module) -> bool:
    """Whether a model holds integers."""
    return any(isinstance(module, QuantizedLinear | Embedding8) for module in model.modules())


def swap_layers(model: Any, stored: Iterable[str], scheme: Scheme) -> None:
    """Put integer layers where a directory stores integers, in place; the model is on the meta device.

    Args:
        model: a ``Network`` or a ``Classifier``.
        stored: names of the tensors on disk.
        scheme: what ``config.json`` says about them.
    """
    nothing = torch.empty(0, 0)
    names = [found[0] for name in stored if (found := model.from_disk(name, nothing)) is not None]
    packed = {name.removesuffix(PACKED) for name in names if name.endswith(PACKED)}
    modules = dict(model.named_modules())
    for name in (name.removesuffix(SCALE) for name in names if name.endswith(SCALE)):
        old = modules.get(name)
        if isinstance(old, nn.Embedding):
            new: nn.Module = Embedding8(old.num_embeddings, old.embedding_dim)
        elif isinstance(old, nn.Linear) and name in packed:
            new = Linear4(old.in_features, old.out_features, old.bias, scheme.group)
        elif isinstance(old, nn.Linear):
            new = Linear8(old.in_features, old.out_features, old.bias)
        else:
            continue  # a tied head's copy of the embedding's scales; what fits nowhere is told when it is read
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new)


def settle(model: nn.Module) -> None:
    """After reading: weights into the kernel's order, and nothing left that could be trained."""
    for module in model.modules():
        if isinstance(module, Linear4):
            module.lace_weights()
    model.requires_grad_(False)
