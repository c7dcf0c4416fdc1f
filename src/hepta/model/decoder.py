"""The decoder: token ids to logits. Llama, Mistral, Qwen2 and Qwen3 are its settings.

    x = E[ids];  per layer  x += Attention(Norm(x));  x += SwiGLU(Norm(x));  logits = Norm(x) Wᵀ

Parameter names are those of the Hugging Face classes, in memory as on disk. Weights are kept in
whatever dtype they were loaded in (float32 masters when training); ``compute_dtype`` decides what the
products run in. Shapes: B batch, T time, S keys, D width, H heads, K head width, V vocabulary.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F

from hepta.model.attention import as_bias, attend, visible
from hepta.model.config import ModelConfig

Head = Callable[[Tensor, Tensor], Tensor]


class Cache(Protocol):
    """Keys and values of earlier positions, one slot per position."""

    def extend(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, H, T, K) at ``positions`` (B, T); give all slots in use (B, H, S, K)."""
        ...


class Linear(nn.Linear):
    """``x Wᵀ + b`` in x's dtype: float32 masters are cast here, and their gradients come back in float32."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


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


def rope_tables(config: ModelConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, T, K) of each position's angles.

    Computed from the positions themselves, in float32, so no table limits the length (trap R17).
    """
    frequencies = torch.tensor(config.rope_frequencies(), dtype=torch.float32, device=positions.device)
    angles = positions[:, None, :, None].float() * torch.cat((frequencies, frequencies))
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i+K/2}) of x (B, H, T, K) by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention with RoPE; QK-norm, biases and a sliding window where the config says."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width, wide = config.hidden_size, config.num_heads * config.head_dim
        narrow = config.num_kv_heads * config.head_dim
        self.layer, self.head_dim, self.window = layer, config.head_dim, config.window(layer)
        self.q_proj = Linear(width, wide, bias=config.attention_bias)
        self.k_proj = Linear(width, narrow, bias=config.attention_bias)
        self.v_proj = Linear(width, narrow, bias=config.attention_bias)
        self.o_proj = Linear(wide, width, bias=config.output_bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], bias: Tensor | None, positions: Tensor, cache: Cache | None
    ) -> Tensor:
        split = (*x.shape[:2], -1, self.head_dim)
        q, k, v = self.q_proj(x).view(split), self.k_proj(x).view(split), self.v_proj(x).view(split)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, K)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.extend(self.layer, positions, k, v)
        y = attend(q, k, v, bias)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU: ``down(silu(gate x) · up x)``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: attention, then MLP, each on a normed copy added back to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], bias: Tensor | None, positions: Tensor, cache: Cache | None = None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, bias, positions, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Embedding, layers and final norm: ids (B, T) → hidden states (B, T, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(
        self,
        input_ids: Tensor,
        segment_ids: Tensor | None,
        positions: Tensor | None,
        cache: Cache | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        x = self.embed_tokens(input_ids)
        x = x if dtype is None else x.to(dtype)
        rope = rope_tables(self.config, positions, x.dtype)
        length, windows = input_ids.shape[1], [self.config.window(i) for i in range(self.config.num_layers)]
        biases = {w: make_bias(length, segment_ids, positions, cache, w, x.dtype) for w in set(windows)}
        for block, window in zip(self.layers, windows, strict=True):
            x = block(x, rope, biases[window], positions, cache)
        return self.norm(x)


def make_bias(
    length: int,
    segment_ids: Tensor | None,
    positions: Tensor,
    cache: Cache | None,
    window: int | None,
    dtype: torch.dtype,
) -> Tensor | None:
    """What is added to attention scores (B or 1, 1, T, S), −∞ where not seen; None is plain causal.

    With a cache a key's slot is its position, so slots not yet written, or written by padding, lie in
    the future of every query and need no mask of their own. Without one, order in the row is time.
    """
    if cache is not None:
        slots = torch.arange(int(positions.max()) + 1, device=positions.device)
        return as_bias(visible(positions, slots, window)[:, None], dtype)
    if segment_ids is None and (window is None or window >= length):
        return None
    index = torch.arange(length, device=positions.device)
    mask = visible(index, index, window)[None]
    if segment_ids is not None:
        mask = mask & (segment_ids[:, :, None] == segment_ids[:, None, :])
    return as_bias(mask[:, None], dtype)


class Decoder(nn.Module):
    """A causal language model.

    ``compute_dtype`` None computes in the embedding's dtype; ``torch.bfloat16`` computes in bfloat16 on
    weights of any dtype, whose gradients keep the weights' dtype.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.model = Trunk(config)
        self.lm_head = None if config.tied else Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def output_weight(self) -> Tensor:
        """The unembedding matrix (V, D): the head's own, or the embedding when tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self,
        input_ids: Tensor,
        segment_ids: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        head: Head | None = None,
    ) -> Tensor:
        """Predict the next token at every position.

        Args:
            input_ids: token ids (B, T).
            segment_ids: document of each position (B, T); tokens see their own document only. None: one
                document per row, the fast path.
            positions: position of each token in its document (B, T); None counts from 0 in each row.
            cache: earlier keys and values; ``positions`` then name the slots these tokens take.
            head: called as ``head(hidden (B, T, D), weight (V, D))`` inside this forward in place of the
                product with the unembedding, so that a chunked loss never sees all logits.

        Returns:
            logits (B, T, V) in the compute dtype, or what ``head`` returned.
        """
        hidden = self.model(input_ids, segment_ids, positions, cache, self.compute_dtype)
        if head is not None:
            return head(hidden, self.output_weight)
        return F.linear(hidden, self.output_weight.to(hidden.dtype))

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw fresh weights, each from a stream keyed by (seed, name), so the order of parameters is free.

        Matrices: N(0, 2 / 5D) (Nguyen & Salazar 2019), those that write to the residual stream divided by
        √(2 layers) (GPT-2); embeddings N(0, 1 / D), since smaller ones hold narrow models at the unigram loss
        for hundreds of steps; an untied head N(0, 0.02²); norms 1, biases 0.
        """
        small = (2 / (5 * self.config.hidden_size)) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if "norm" in name else 0.0)
                continue
            std = {"model.embed_tokens.weight": self.config.hidden_size**-0.5, "lm_head.weight": 0.02}.get(name, small)
            if "o_proj" in name or "down_proj" in name:
                std /= (2 * self.config.num_layers) ** 0.5
            generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(f"{seed}/{name}".encode()) >> 1)
            drawn = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_(drawn)
