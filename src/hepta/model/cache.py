"""What generation keeps of earlier tokens: a slot per position, so prompts of any length share it without a mask."""

import torch
from torch import Tensor

from hepta.model.shape import TransformerShape


class KVCache:
    """Keys and values of every layer, (B, H, S, K) each, allocated once.

    Row b's token at position p lies in slot p. Prompts are padded on the right: what padding wrote lies
    after every query of its row until a real token overwrites it, so causality alone hides it.
    """

    def __init__(
        self, config: TransformerShape, rows: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        width = config.query_width // config.num_heads
        shape = (config.num_layers, rows, config.key_width // width, capacity, width)
        self.rows, self.capacity, self.used = rows, capacity, 0
        self._k = torch.zeros(shape, dtype=dtype, device=device)  # zeros: a hidden slot times weight 0 must be 0
        self._v = torch.zeros(shape, dtype=dtype, device=device)

    def extend(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, H, T, K) at ``positions`` (B, T); give all slots up to the last in use (B, H, S, K)."""
        row = torch.arange(self.rows, device=positions.device)[:, None]
        used = self.used = int(positions.max()) + 1
        keys, values = self._k[layer, : self.rows], self._v[layer, : self.rows]
        keys[row, :, positions] = k.transpose(1, 2)
        values[row, :, positions] = v.transpose(1, 2)
        return keys[:, :, :used], values[:, :, :used]

    def drop(self, row: int) -> None:
        """Free a row: the last row takes its place."""
        self.rows -= 1
        if row != self.rows:
            self._k[:, row] = self._k[:, self.rows]
            self._v[:, row] = self._v[:, self.rows]

    def select(self, rows: Tensor) -> None:
        """Row i takes what row ``rows[i]`` held; there are then as many rows as given, at most as many as before."""
        for kept in (self._k, self._v):
            kept[:, : len(rows), :, : self.used] = kept[:, rows, :, : self.used]
        self.rows = len(rows)


class Slots:
    """One vector per layer and position, read back by position: what models without attention keep.

    Row b's token at position p lies in slot p, as in ``KVCache``; a row never reads a slot that it has not reached.
    """

    def __init__(
        self, layers: int, rows: int, capacity: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.rows = rows
        self._kept = torch.zeros((layers, rows, capacity, width), dtype=dtype, device=device)

    def put(self, layer: int, positions: Tensor, values: Tensor) -> None:
        """Store values (B, T, W) at ``positions`` (B, T)."""
        row = torch.arange(self.rows, device=positions.device)[:, None]
        self._kept[layer][row, positions] = values.to(self._kept.dtype)

    def get(self, layer: int, positions: Tensor) -> Tensor:
        """What lies at ``positions`` (B, N) as (B, N, W); zeros for positions before the first."""
        row = torch.arange(self.rows, device=positions.device)[:, None]
        return self._kept[layer][row, positions.clamp(min=0)] * (positions >= 0)[..., None].to(self._kept.dtype)

    def drop(self, row: int) -> None:
        """Free a row: the last row takes its place."""
        self.rows -= 1
        if row != self.rows:
            self._kept[:, row] = self._kept[:, self.rows]
