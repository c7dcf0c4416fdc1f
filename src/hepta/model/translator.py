"""The original Transformer (Vaswani et al. 2017): source ids and the target so far to logits.

    source   x = Dropout(√D · E[ids] + P);  per layer  x = Norm(x + Self(x));  x = Norm(x + MLP(x))
    target   the same with causal Self, and between the two  x = Norm(x + Cross(x, source));  logits = x Eᵀ

Norms come after the sums ("post-norm"), P are fixed waves, one matrix E serves both languages and the output. Parameter
names are those of transformers' MarianMTModel. Shapes: B batch, T target, S source, D width, H heads, K head width.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hepta.config import HeptaError
from hepta.model.attention import as_bias, attend, causal_bias
from hepta.model.layers import Embedding, LayerNorm, Linear, fill_normal, join_heads, split_heads
from hepta.model.marian import TranslatorShape
from hepta.model.network import Cache, Head, Network, Stored, count_positions, unembed

EPS = 1e-5
COPIES = (".embed_positions.weight", ".embed_tokens.weight", ".embed_tokens.weight_scale")


class Memory(NamedTuple):
    """What the decoder sees of the sources: made once, read at every target token."""

    keys: list[Tensor]  # of each decoder layer (B, H, S, K)
    values: list[Tensor]
    bias: Tensor | None  # (B, 1, 1, S), −∞ at padding

    def select(self, rows: Tensor) -> "Memory":
        """The memory of some rows, in that order; a row may come several times."""
        bias = None if self.bias is None else self.bias[rows]
        return Memory([k[rows] for k in self.keys], [v[rows] for v in self.values], bias)


def waves(positions: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The fixed vectors (…, D) of positions (…): sines first, then cosines, as Marian lays them."""
    rates = 10_000.0 ** (-2.0 * torch.arange(width // 2, dtype=torch.float64, device=positions.device) / width)
    angles = positions[..., None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=-1).to(dtype)


class Attention(nn.Module):
    """Multi-head attention from x to itself, or to keys and values given."""

    def __init__(self, shape: TranslatorShape) -> None:
        super().__init__()
        width, self.heads = shape.hidden_size, shape.num_heads
        self.k_proj, self.v_proj = Linear(width, width), Linear(width, width)
        self.q_proj, self.out_proj = Linear(width, width), Linear(width, width)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is looked at: keys and values (B, H, S, K) of x (B, S, D)."""
        return split_heads(self.k_proj(x), self.heads), split_heads(self.v_proj(x), self.heads)

    def queries(self, x: Tensor) -> Tensor:
        """Who looks: (B, H, T, K) of x (B, T, D)."""
        return split_heads(self.q_proj(x), self.heads)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool = False) -> Tensor:
        return self.out_proj(join_heads(attend(self.queries(x), k, v, bias, causal)))


class Layer(nn.Module):
    """What encoder and decoder layers share: self-attention, MLP, and how a sub-layer's output joins the stream."""

    def __init__(self, shape: TranslatorShape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.self_attn = Attention(shape)
        self.self_attn_layer_norm = LayerNorm(shape.hidden_size, EPS)
        self.fc1 = Linear(shape.hidden_size, shape.intermediate_size)
        self.fc2 = Linear(shape.intermediate_size, shape.hidden_size)
        self.final_layer_norm = LayerNorm(shape.hidden_size, EPS)

    def add(self, x: Tensor, y: Tensor, norm: LayerNorm) -> Tensor:
        """``Norm(x + Dropout(y))``"""
        return norm(x + F.dropout(y, self.dropout, self.training))

    def mlp(self, x: Tensor) -> Tensor:
        """``Norm(x + W₂ relu(W₁ x))``"""
        return self.add(x, self.fc2(F.relu(self.fc1(x))), self.final_layer_norm)


class EncoderLayer(Layer):
    """Every source position sees every other."""

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        y = self.self_attn(x, *self.self_attn.keys_values(x), bias)
        return self.mlp(self.add(x, y, self.self_attn_layer_norm))


class DecoderLayer(Layer):
    """A target position sees those before it, then the whole source."""

    def __init__(self, shape: TranslatorShape, layer: int) -> None:
        super().__init__(shape)
        self.layer = layer
        self.encoder_attn = Attention(shape)
        self.encoder_attn_layer_norm = LayerNorm(shape.hidden_size, EPS)

    def past(self, x: Tensor, bias: Tensor | None, positions: Tensor, cache: Cache | None) -> Tensor:
        """``Norm(x + Self(x))``, with the keys and values of earlier positions from ``cache``."""
        k, v = self.self_attn.keys_values(x)
        if cache is not None:
            k, v = cache.extend(self.layer, positions, k, v)
        return self.add(x, self.self_attn(x, k, v, bias, causal=True), self.self_attn_layer_norm)

    def forward(self, x: Tensor, bias: Tensor | None, positions: Tensor, cache: Cache | None, memory: Memory) -> Tensor:
        x = self.past(x, bias, positions, cache)
        y = self.encoder_attn(x, memory.keys[self.layer], memory.values[self.layer], memory.bias)
        return self.mlp(self.add(x, y, self.encoder_attn_layer_norm))


class Stack(nn.Module):
    """The layers of one side."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class Trunk(nn.Module):
    """Everything but the output: the shared embedding, encoder and decoder."""

    def __init__(self, shape: TranslatorShape) -> None:
        super().__init__()
        self.shared = Embedding(shape.vocab_size, shape.hidden_size)
        self.encoder = Stack([EncoderLayer(shape) for _ in range(shape.encoder_layers)])
        self.decoder = Stack([DecoderLayer(shape, layer) for layer in range(shape.num_layers)])


class Translator(Network):
    """An encoder–decoder model; ``compute_dtype`` as in ``Network``."""

    tied_copies = ("lm_head", "model.encoder.embed_tokens", "model.decoder.embed_tokens")
    config: TranslatorShape

    def __init__(self, config: TranslatorShape) -> None:
        super().__init__(config)
        self.model = Trunk(config)

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding (V, D)."""
        return self.model.shared

    @property
    def _layers(self) -> list[nn.Module]:
        return [*self.model.encoder.layers, *self.model.decoder.layers]

    @property
    def attention_outputs(self) -> list[nn.Module]:
        """What reads the heads: of the encoder's layers, of the decoder's to itself, of the decoder's to the source."""
        own = [layer.get_submodule("self_attn.out_proj") for layer in self._layers]
        return [*own, *(layer.encoder_attn.out_proj for layer in self._decoder_layers)]

    @property
    def neuron_outputs(self) -> list[nn.Module]:
        """What reads the neurons: of the encoder's layers, then of the decoder's."""
        return [layer.get_submodule("fc2") for layer in self._layers]

    @property
    def _decoder_layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.model.decoder.layers if isinstance(layer, DecoderLayer)]

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = self.model.shared(ids)
        x = x if self.compute_dtype is None else x.to(self.compute_dtype)
        x = x * math.sqrt(self.config.hidden_size) + waves(positions, self.config.hidden_size, x.dtype)
        return F.dropout(x, self.config.dropout, self.training)

    def encode(self, source_ids: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Hidden states (B, S, D) of sources (B, S); ``source_mask`` (B, S) bool is False at padding."""
        x = self._embed(source_ids, torch.arange(source_ids.shape[1], device=source_ids.device))
        bias = _padding_bias(source_mask, x.dtype)
        for layer in self.model.encoder.layers:
            x = layer(x, bias)
        return x

    def remember(self, source_ids: Tensor, source_mask: Tensor | None = None) -> Memory:
        """Encode the sources and compute what every decoder layer looks at, once for all target tokens."""
        x = self.encode(source_ids, source_mask)
        pairs = [layer.encoder_attn.keys_values(x) for layer in self._decoder_layers]
        return Memory([k for k, _ in pairs], [v for _, v in pairs], _padding_bias(source_mask, x.dtype))

    def decode(
        self, input_ids: Tensor, memory: Memory, positions: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Hidden states (B, T, D) of targets so far (B, T); arguments as in ``forward``."""
        positions = count_positions(input_ids, positions)
        x = self._embed(input_ids, positions)
        bias = causal_bias(input_ids.shape[1], None, positions, cache is not None, None, x.dtype)
        for layer in self.model.decoder.layers:
            x = layer(x, bias, positions, cache, memory)
        return x

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  a translator reads two texts
        self,
        input_ids: Tensor,
        source_ids: Tensor,
        source_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        head: Head | None = None,
    ) -> Any:
        """Predict the next target token at every position.

        Args:
            input_ids: targets so far (B, T), beginning with the bos id.
            source_ids: sources (B, S), each ending with the eos id.
            source_mask: False at the padding of sources (B, S); None: there is none.
            positions: position of each target token (B, T); None counts from 0.
            cache: keys and values of earlier target tokens; ``positions`` then name the slots these tokens take.
            head: called as ``head(hidden (B, T, D), weight (V, D), None)`` in place of the product with the embedding.

        Returns:
            logits (B, T, V) in the compute dtype, or what ``head`` returned.
        """
        hidden = self.decode(input_ids, self.remember(source_ids, source_mask), positions, cache)
        if head is not None:
            return head(hidden, self.output_weight, None)
        return unembed(hidden, self.output_weight, None)

    @torch.no_grad()
    def alignments(self, source_ids: Tensor, target_ids: Tensor) -> Tensor:
        """How much each target token looks at each source token, in every layer and head.

        Args:
            source_ids: one source (S,), ending with the eos id.
            target_ids: its target (T,) as the decoder reads it, beginning with the bos id: row t of the result is
                the look with which token t + 1 is chosen.

        Returns:
            weights (layers, H, T, S) float32; each row sums to 1.
        """
        memory = self.remember(source_ids[None])
        positions = count_positions(target_ids[None], None)
        x, weights = self._embed(target_ids[None], positions), []
        for layer in self._decoder_layers:
            x_past = layer.past(x, None, positions, None)
            scores = layer.encoder_attn.queries(x_past) @ memory.keys[layer.layer].transpose(-1, -2)
            weights.append((scores.float() * self.config.head_dim**-0.5).softmax(-1)[0])
            x = layer(x, None, positions, None, memory)
        return torch.stack(weights)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fresh weights: matrices with Glorot's variance 2 / (inputs + outputs), embeddings N(0, 1 / D), so that √D · E
        has variance 1; norms 1, biases 0.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
                continue
            glorot = (2.0 / sum(parameter.shape)) ** 0.5
            std = self.config.hidden_size**-0.5 if "shared" in name else glorot
            fill_normal(parameter, seed, name, std)

    def from_disk(self, name: str, tensor: Tensor) -> Stored | None:
        """Leave out the waves and the copies of the embedding.

        Raises:
            HeptaError: biases of the output that are not 0, which this model does not have.
        """
        if name == "final_logits_bias" and bool(tensor.any()):
            raise HeptaError("final_logits_bias is not 0; a translator whose output has biases is not supported")
        copied = name.startswith("model.") and name.endswith(COPIES)
        return None if copied or name == "final_logits_bias" else (name, tensor)


def _padding_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What hides the padding of sources from every query (B, 1, 1, S); None where nothing is padded."""
    return None if mask is None or bool(mask.all()) else as_bias(mask[:, None, None], dtype)
