"""The decoder: token ids to logits. Llama, Mistral, Qwen2 and Qwen3 are its settings.

    x = E[ids];  per layer  x += Attention(Norm(x));  x += SwiGLU(Norm(x));  logits = Norm(x) Wᵀ

Parameter names are those of the Hugging Face classes, in memory as on disk. Weights are kept in
whatever dtype they were loaded in (float32 masters when training); ``compute_dtype`` decides what the
products run in. Shapes: B batch, T time, S keys, D width, H heads, K head width, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hepta.model.attention import attend, causal_bias
from hepta.model.config import ModelConfig
from hepta.model.layers import Embedding, Linear, RMSNorm, fill_normal, join_heads
from hepta.model.network import Cache, Network, Stored, count_positions, untied_head


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
        return self.o_proj(join_heads(y))


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
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
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
        positions = count_positions(input_ids, positions)
        x = self.embed_tokens(input_ids)
        x = x if dtype is None else x.to(dtype)
        rope = rope_tables(self.config, positions, x.dtype)
        length, windows = input_ids.shape[1], [self.config.window(i) for i in range(self.config.num_layers)]
        biases = {w: causal_bias(length, segment_ids, positions, cache is not None, w, x.dtype) for w in set(windows)}
        for block, window in zip(self.layers, windows, strict=True):
            x = block(x, rope, biases[window], positions, cache)
        return self.norm(x)


class Decoder(Network):
    """A causal language model of the Llama line."""

    delicate = ("v_proj",)  # small where heads share them, and all that attention hands on (docs/compress.md)
    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    tied_copies = ("lm_head",)
    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.model = Trunk(config)
        self.lm_head = untied_head(config)

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding (V, D)."""
        return self.model.embed_tokens

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers."""
        return list(self.model.layers)

    @property
    def attention_outputs(self) -> list[nn.Module]:
        """What reads each layer's heads."""
        return [block.get_submodule("self_attn.o_proj") for block in self.blocks]

    @property
    def neuron_outputs(self) -> list[nn.Module]:
        """What reads each layer's neurons."""
        return [block.get_submodule("mlp.down_proj") for block in self.blocks]

    def body(
        self,
        input_ids: Tensor,
        segment_ids: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Last hidden states (B, T, D)."""
        return self.model(input_ids, segment_ids, positions, cache, self.compute_dtype)

    def after_layers(self, residual: Tensor) -> Tensor:
        """The final norm of (B, T, D)."""
        return self.model.norm(residual)

    def from_disk(self, name: str, tensor: Tensor) -> Stored | None:
        """The stored names are ours; old checkpoints also stored a buffer of the rotary positions."""
        return None if name.endswith("rotary_emb.inv_freq") else (name, tensor)

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
            fill_normal(parameter, seed, name, std)
