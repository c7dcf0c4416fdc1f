"""Stochastic rounding to bfloat16: up or down by chance, so that the mean of what is stored is what was meant.

A float32 has 16 bits that bfloat16 has not. Adding 16 random bits there and cutting them off carries into what is kept
with exactly the probability that the cut part is of a unit: the rounding is unbiased, for every value. Plain rounding
loses every update smaller than half a unit, for ever (trap R16).

The random bits are a function of (seed, parameter, update): nothing to save, and a resumed run draws the same. One
block of them serves a whole tensor: each part of it reads them from another random place on and turns them by another
random word (exclusive or). That leaves each value's bits uniform and those of any two values independent, for one pass
over a block in cache instead of a generator's work.
"""

import numpy as np
import torch
import xxhash
from torch import Tensor

PART = 1 << 18  # values worked on at a time: a megabyte of float32, so that it stays in cache
KEPT = -65536  # mask of the 16 bits that bfloat16 keeps


class Rounder:
    """Writes float32 values into one tensor, part by part; into float32 as they are, into bfloat16 by chance."""

    def __init__(self, tensor: Tensor, seed: int, name: str, update: int) -> None:
        """``update`` counts the updates of this parameter; with (seed, name) it decides all chance."""
        self.tensor, self.by_chance = tensor.view(-1), tensor.dtype == torch.bfloat16
        if not self.by_chance:
            return
        key = xxhash.xxh3_64_intdigest(f"{seed}/{update}/{name}".encode())
        self._generator = np.random.Generator(np.random.SFC64(key))
        size = min(self.tensor.numel(), PART)
        words = np.frombuffer(self._generator.bytes(4 * size), dtype=np.uint16).astype(np.int32)
        self._bits = torch.from_numpy(words).to(tensor.device)  # twice a part, for room to begin anywhere
        self._turned = torch.empty_like(self._bits[:size])

    def write(self, start: int, values: Tensor) -> None:
        """Store float32 ``values`` (n ≤ ``PART``, contiguous) from place ``start`` on; they are changed themselves."""
        if self.by_chance:
            n, bits = values.numel(), values.view(torch.int32)
            word, place = int(self._generator.integers(1 << 16)), int(self._generator.integers(len(self._turned) + 1))
            turned = torch.bitwise_xor(self._bits[place : place + n], word, out=self._turned[:n])
            bits.add_(turned).bitwise_and_(KEPT)
        self.tensor[start : start + values.numel()].copy_(values)


def norm_of(tensor: Tensor) -> float:
    """Euclidean norm, summed in float32 a part at a time: torch's own makes a float32 copy of all."""
    parts = [torch.linalg.vector_norm(part.float()) for part in tensor.reshape(-1).split(PART)]
    return float(torch.linalg.vector_norm(torch.stack(parts)))


def round_by_chance(values: Tensor, seed: int, name: str, update: int) -> Tensor:
    """A bfloat16 tensor of float32 ``values``, each rounded up or down by chance; ``values`` stay as they are."""
    rounded = torch.empty(values.shape, dtype=torch.bfloat16, device=values.device)
    rounder = Rounder(rounded, seed, name, update)
    for number, part in enumerate(values.reshape(-1).split(PART)):
        rounder.write(number * PART, part.clone())
    return rounded
