"""BERT (Devlin, Chang, Lee, Toutanova 2019): every token sees both sides; LayerNorm after each part.

    x = Norm(E[ids] + P[positions] + S[0]);  per layer  x = Norm(x + Attention(x));  x = Norm(x + MLP(x))
    logits = Norm(gelu(W x)) Eᵀ + b

Parameter names are those of Hugging Face's ``BertForMaskedLM``, or of ``BertModel`` where there is no head.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hepta.config import HeptaError
from hepta.model.attention import attend, segment_bias
from hepta.model.layers import Embedding, LayerNorm, Linear, fill_normal, join_heads, split_heads
from hepta.model.learned import BertShape
from hepta.model.network import Cache, Network, Stored, count_positions

OTHER_TASKS = ("cls.seq_relationship.", "bert.embeddings.position_ids", "cls.predictions.decoder.")


class Embeddings(nn.Module):
    """Token, position and sentence vectors, summed and normed."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.word_embeddings = Embedding(shape.vocab_size, shape.hidden_size)
        self.position_embeddings = Embedding(shape.max_positions, shape.hidden_size)
        self.token_type_embeddings = Embedding(shape.token_types, shape.hidden_size)
        self.LayerNorm = LayerNorm(shape.hidden_size, shape.norm_eps)

    def forward(self, input_ids: Tensor, positions: Tensor, dtype: torch.dtype | None) -> Tensor:
        x = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        x = self.LayerNorm(x + self.token_type_embeddings.weight[0])
        return F.dropout(x if dtype is None else x.to(dtype), self.dropout, self.training)


class Projections(nn.Module):
    """Queries, keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (Linear(width, width) for _ in range(3))


class Output(nn.Module):
    """``Norm(x + dense y)``: what a part adds to the residual stream, normed after."""

    def __init__(self, inputs: int, shape: BertShape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.dense = Linear(inputs, shape.hidden_size)
        self.LayerNorm = LayerNorm(shape.hidden_size, shape.norm_eps)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(x + F.dropout(self.dense(y), self.dropout, self.training))


class Attention(nn.Module):
    """Attention to both sides."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.heads = shape.num_heads
        self.self, self.output = Projections(shape.hidden_size), Output(shape.hidden_size, shape)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        maps = (self.self.query, self.self.key, self.self.value)
        q, k, v = (split_heads(project(x), self.heads) for project in maps)  # (B, H, T, K)
        return self.output(join_heads(attend(q, k, v, bias, causal=False)), x)


class Intermediate(nn.Module):
    """``gelu(dense x)``."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.dense = Linear(shape.hidden_size, shape.intermediate_size)
        self.form = "none" if shape.exact_gelu else "tanh"

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x), approximate=self.form)


class Block(nn.Module):
    """One layer: attention, then MLP, each added to its input and normed."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.attention = Attention(shape)
        self.intermediate, self.output = Intermediate(shape), Output(shape.intermediate_size, shape)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = self.attention(x, bias)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    """The layers, under the name they have on disk."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))


class Pooler(nn.Module):
    """``tanh(dense x₀)``: what sentence tasks read of the first token."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.dense = Linear(shape.hidden_size, shape.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden[:, 0]))


class Trunk(nn.Module):
    """Embeddings and layers: ids (B, T) → hidden states (B, T, D)."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.embeddings, self.encoder = Embeddings(shape), Encoder(shape)
        self.pooler = Pooler(shape) if shape.pooler else None

    def forward(
        self, input_ids: Tensor, segment_ids: Tensor | None, positions: Tensor | None, dtype: torch.dtype | None
    ) -> Tensor:
        x = self.embeddings(input_ids, count_positions(input_ids, positions), dtype)
        bias = segment_bias(segment_ids, x.dtype)
        for block in self.encoder.layer:
            x = block(x, bias)
        return x


class Transform(nn.Module):
    """``Norm(gelu(dense x))``, between the last layer and the unembedding."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.dense = Linear(shape.hidden_size, shape.hidden_size)
        self.LayerNorm = LayerNorm(shape.hidden_size, shape.norm_eps)
        self.form = "none" if shape.exact_gelu else "tanh"

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(x), approximate=self.form))


class Predictions(nn.Module):
    """The masked-language-model head: a transform, and a bias for each token."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(shape.vocab_size))
        self.transform = Transform(shape)


class Heads(nn.Module):
    """The heads, under the name they have on disk."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.predictions = Predictions(shape)


class Bert(Network):
    """BERT, which predicts masked tokens from both sides; without its head, an encoder of texts."""

    lora_targets: ClassVar = ("query", "key", "value", "intermediate.dense", "output.dense")
    tied_copies = ("cls.predictions.decoder",)
    config: BertShape

    def __init__(self, config: BertShape) -> None:
        super().__init__(config)
        if not config.tied:
            raise HeptaError("model config: a BERT whose head is not tied to its embedding is not supported")
        self.bert = Trunk(config)
        self.cls = Heads(config) if config.head else None

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding (V, D)."""
        return self.bert.embeddings.word_embeddings

    @property
    def output_bias(self) -> Tensor | None:
        """What the head adds to the logits (V,)."""
        return None if self.cls is None else self.cls.predictions.bias

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers."""
        return list(self.bert.encoder.layer)

    @property
    def attention_outputs(self) -> list[nn.Module]:
        """What reads each layer's heads."""
        return [block.get_submodule("attention.output.dense") for block in self.blocks]

    @property
    def neuron_outputs(self) -> list[nn.Module]:
        """What reads each layer's neurons."""
        return [block.get_submodule("output.dense") for block in self.blocks]

    def body(
        self,
        input_ids: Tensor,
        segment_ids: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Last hidden states (B, T, D). A model that sees both sides has no use for a cache."""
        assert cache is None, "a masked model does not continue text"
        return self.bert(input_ids, segment_ids, positions, self.compute_dtype)

    def before_head(self, hidden: Tensor) -> Tensor:
        """The head's transform of hidden states (B, T, D)."""
        if self.cls is None:
            raise HeptaError("this BERT is an encoder without a masked-language-model head; it can be tuned for a task")
        return self.cls.predictions.transform(hidden)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw fresh weights as BERT's authors did, N(0, 0.02²), norms 1, biases 0; but the token embedding.

        Token embeddings N(0, 1 / D), as in ``Decoder.init_weights``: with 0.02 a narrow model learns later.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if "LayerNorm.weight" in name else 0.0)
                continue
            std = self.config.hidden_size**-0.5 if "word_embeddings" in name else 0.02
            fill_normal(parameter, seed, name, std)

    def from_disk(self, name: str, tensor: Tensor) -> Stored | None:
        """Old files say gamma and beta; files of the bare encoder lack ``bert.``; the decoder's copies are tied."""
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        name = f"bert.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name
        unused = (*OTHER_TASKS, *(() if self.config.pooler else ("bert.pooler.",)))
        return None if name.startswith(unused) else (name, tensor)

    def to_disk(self, name: str, tensor: Tensor) -> Stored:
        """``BertModel``, which has no head, has no prefix either."""
        return name if self.config.head else name.removeprefix("bert."), tensor
