"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each part, GELU, biases everywhere.

    x = E[ids] + P[positions];  per layer  x += Attention(Norm(x));  x += MLP(Norm(x));  logits = Norm(x) Eᵀ

Parameter names are those of Hugging Face's ``GPT2LMHeadModel``, whose matrices lie transposed on disk.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hepta.model.attention import attend, causal_bias
from hepta.model.layers import Embedding, LayerNorm, Linear, fill_normal, join_heads, split_heads
from hepta.model.learned import GPT2Shape
from hepta.model.network import Cache, Network, Stored, count_positions, untied_head

MATRICES = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
MASKS = (".attn.bias", ".attn.masked_bias")  # buffers that old checkpoints stored


class Attention(nn.Module):
    """Causal attention; q, k and v come from one product."""

    def __init__(self, shape: GPT2Shape, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, shape.num_heads
        self.c_attn = Linear(shape.hidden_size, 3 * shape.hidden_size)
        self.c_proj = Linear(shape.hidden_size, shape.hidden_size)

    def forward(self, x: Tensor, bias: Tensor | None, positions: Tensor, cache: Cache | None) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.c_attn(x).chunk(3, dim=-1))  # (B, H, T, K)
        if cache is not None:
            k, v = cache.extend(self.layer, positions, k, v)
        return self.c_proj(join_heads(attend(q, k, v, bias)))


class MLP(nn.Module):
    """``proj(gelu(fc x))``, GELU in its tanh form."""

    def __init__(self, shape: GPT2Shape) -> None:
        super().__init__()
        self.c_fc = Linear(shape.hidden_size, shape.intermediate_size)
        self.c_proj = Linear(shape.intermediate_size, shape.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """One layer: attention, then MLP, each on a normed copy added back to the residual stream."""

    def __init__(self, shape: GPT2Shape, layer: int) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.ln_1, self.attn = LayerNorm(shape.hidden_size, shape.norm_eps), Attention(shape, layer)
        self.ln_2, self.mlp = LayerNorm(shape.hidden_size, shape.norm_eps), MLP(shape)

    def forward(self, x: Tensor, bias: Tensor | None, positions: Tensor, cache: Cache | None = None) -> Tensor:
        x = x + F.dropout(self.attn(self.ln_1(x), bias, positions, cache), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.ln_2(x)), self.dropout, self.training)


class Trunk(nn.Module):
    """Embeddings, layers and final norm: ids (B, T) → hidden states (B, T, D)."""

    def __init__(self, shape: GPT2Shape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.wte = Embedding(shape.vocab_size, shape.hidden_size)
        self.wpe = Embedding(shape.max_positions, shape.hidden_size)
        self.h = nn.ModuleList(Block(shape, layer) for layer in range(shape.num_layers))
        self.ln_f = LayerNorm(shape.hidden_size, shape.norm_eps)

    def forward(
        self,
        input_ids: Tensor,
        segment_ids: Tensor | None,
        positions: Tensor | None,
        cache: Cache | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        positions = count_positions(input_ids, positions)
        x = self.wte(input_ids) + self.wpe(positions)
        x = F.dropout(x if dtype is None else x.to(dtype), self.dropout, self.training)
        bias = causal_bias(input_ids.shape[1], segment_ids, positions, cache is not None, None, x.dtype)
        for block in self.h:
            x = block(x, bias, positions, cache)
        return self.ln_f(x)


class GPT2(Network):
    """GPT-2, a causal language model of at most ``max_positions`` tokens."""

    lora_targets = ("c_attn", "c_proj", "c_fc")
    transposed = True
    tied_copies = ("lm_head",)
    config: GPT2Shape

    def __init__(self, config: GPT2Shape) -> None:
        super().__init__(config)
        self.transformer = Trunk(config)
        self.lm_head = untied_head(config)

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding (V, D)."""
        return self.transformer.wte

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers."""
        return list(self.transformer.h)

    @property
    def attention_outputs(self) -> list[nn.Module]:
        """What reads each layer's heads."""
        return [block.get_submodule("attn.c_proj") for block in self.blocks]

    @property
    def neuron_outputs(self) -> list[nn.Module]:
        """What reads each layer's neurons."""
        return [block.get_submodule("mlp.c_proj") for block in self.blocks]

    def body(
        self,
        input_ids: Tensor,
        segment_ids: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Last hidden states (B, T, D)."""
        return self.transformer(input_ids, segment_ids, positions, cache, self.compute_dtype)

    def after_layers(self, residual: Tensor) -> Tensor:
        """The final norm of (B, T, D)."""
        return self.transformer.ln_f(residual)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw fresh weights as GPT-2's authors did, but the token embedding.

        Matrices and positions N(0, 0.02²), those that write to the residual stream divided by √(2 layers); norms 1,
        biases 0. Token embeddings N(0, 1 / D): see ``Decoder.init_weights``.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
                continue
            std = self.config.hidden_size**-0.5 if name == "transformer.wte.weight" else 0.02
            if "c_proj" in name:
                std /= (2 * self.config.num_layers) ** 0.5
            fill_normal(parameter, seed, name, std)

    def from_disk(self, name: str, tensor: Tensor) -> Stored | None:
        """Turn the transposed matrices (integers lie as (out, in)); a bare body's files lack ``transformer.``."""
        if name.endswith(MASKS):
            return None
        name = f"transformer.{name}" if name.startswith(("wte.", "wpe.", "h.", "ln_f.")) else name
        return name, tensor.T if name.endswith(MATRICES) and tensor.is_floating_point() else tensor

    def to_disk(self, name: str, tensor: Tensor) -> Stored:
        """The same name, matrices transposed."""
        return name, tensor.T if name.endswith(MATRICES) else tensor
