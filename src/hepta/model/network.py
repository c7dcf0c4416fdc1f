"""What every language model is to the rest of the house: ids in, hidden states or logits out."""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hepta.model.cache import KVCache
from hepta.model.integers import IntegerMatrix
from hepta.model.layers import Linear
from hepta.model.shape import Shape, TransformerShape

Head = Callable[[Tensor, Tensor, Tensor | None], Any]
Stored = tuple[str, Tensor]  # a tensor and the name it has on disk


class Cache(Protocol):
    """What is kept of earlier positions, one slot per position: keys and values, in a Transformer."""

    def select(self, rows: Tensor) -> None:
        """Row i takes what row ``rows[i]`` held; there are then as many rows as given."""
        ...

    def drop(self, row: int) -> None:
        """Free a row: the last row takes its place."""
        ...

    def extend(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, H, T, K) at ``positions`` (B, T); give all slots in use (B, H, S, K)."""
        ...


class Network(nn.Module):
    """A language model. Families say what their body is; the head is the same for all.

    ``compute_dtype`` None computes in the weights' dtype; ``torch.bfloat16`` computes in bfloat16 on weights of any
    dtype, whose gradients keep the weights' dtype.
    """

    lora_targets: ClassVar[tuple[str, ...]] = ()  # ends of the names of the linear maps that LoRA adapts
    transposed: ClassVar[bool] = False  # those maps lie as (in, out) on disk
    tied_copies: ClassVar[tuple[str, ...]] = ()  # names that a tied embedding has on disk besides its own
    delicate: ClassVar[tuple[str, ...]] = ()  # ends of the names of linear maps that never take fewer than 8 bits
    wide: ClassVar[tuple[str, ...]] = ()  # ends of the names of linear maps that are read as floats, not called
    config: Any  # of the family's own class of shapes

    def __init__(self, config: Shape) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.lm_head: Linear | None = None  # where the head is not tied, set by the family

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding (V, D)."""
        raise NotImplementedError

    @property
    def output_weight(self) -> Any:
        """The unembedding matrix (V, D): the head's own, or the embedding when tied; it may be an ``IntegerMatrix``."""
        owner: Any = self.embedding if self.lm_head is None else self.lm_head
        return owner.matrix if hasattr(owner, "matrix") else owner.weight

    @property
    def output_bias(self) -> Tensor | None:
        """What the head adds to the logits (V,), if anything."""
        return None

    @property
    def blocks(self) -> list[nn.Module]:
        """Layers of equal shape, each of which may be compiled alone."""
        return []

    @property
    def attention_outputs(self) -> list[nn.Module]:
        """Of each attention, the linear map that reads all its heads side by side (…, H · K), head 0 first."""
        return []

    @property
    def neuron_outputs(self) -> list[nn.Module]:
        """Of each MLP, the linear map that reads its neurons (…, F)."""
        return []

    def body(
        self,
        input_ids: Tensor,
        segment_ids: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Last hidden states (B, T, D), which a task's head reads; arguments as in ``forward``."""
        raise NotImplementedError

    def make_cache(self, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Cache:
        """An empty cache for ``rows`` texts of at most ``capacity`` tokens."""
        assert isinstance(self.config, TransformerShape)
        return KVCache(self.config, rows, capacity, dtype, device)

    def after_layers(self, residual: Tensor) -> Tensor:
        """The last hidden states, from what the last layer leaves (B, T, D): the final norm, where there is one."""
        return residual

    def before_head(self, hidden: Tensor) -> Tensor:
        """What the unembedding reads, from the last hidden states (B, T, D)."""
        return hidden

    def forward(
        self,
        input_ids: Tensor,
        segment_ids: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        head: Head | None = None,
    ) -> Any:
        """Logits of every position.

        Args:
            input_ids: token ids (B, T).
            segment_ids: document of each position (B, T); tokens see their own document only. None: one
                document per row, the fast path.
            positions: position of each token in its document (B, T); None counts from 0 in each row.
            cache: earlier keys and values; ``positions`` then name the slots these tokens take.
            head: called as ``head(hidden (B, T, D), weight (V, D) or None, bias (V,) or None)`` inside this forward in
                place of the product with the unembedding, so that a chunked loss never sees all logits.

        Returns:
            logits (B, T, V) in the compute dtype, or what ``head`` returned.
        """
        hidden = self.before_head(self.body(input_ids, segment_ids, positions, cache))
        if head is not None:
            return head(hidden, self.output_weight, self.output_bias)
        return unembed(hidden, self.output_weight, self.output_bias)

    def init_weights(self, seed: int) -> None:
        """Draw fresh weights, each from a stream keyed by (seed, name)."""
        raise NotImplementedError

    def from_disk(self, name: str, tensor: Tensor) -> Stored | None:
        """A stored tensor under its name in memory; None for one this model has no use for."""
        return name, tensor

    def to_disk(self, name: str, tensor: Tensor) -> Stored:
        """A tensor under the name that Hugging Face's class gives it."""
        return name, tensor


def untied_head(shape: Shape) -> Linear | None:
    """The head's own matrix, None where the embedding serves as head."""
    return None if shape.tied else Linear(shape.hidden_size, shape.vocab_size, bias=False)


def unembed(rows: Tensor, weight: Tensor | IntegerMatrix | None, bias: Tensor | None) -> Tensor:
    """Logits (…, V) in the dtype of rows (…, D); without a weight, rows (…, V) are log-probabilities already."""
    if weight is None:
        return rows
    if isinstance(weight, IntegerMatrix):
        logits = weight.product(rows)
        return logits if bias is None else logits + bias.to(rows.dtype)
    return F.linear(rows, weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype))


def count_positions(input_ids: Tensor, positions: Tensor | None) -> Tensor:
    """``positions``, or where none are given 0, 1, 2 … (1, T)."""
    return torch.arange(input_ids.shape[1], device=input_ids.device)[None] if positions is None else positions
