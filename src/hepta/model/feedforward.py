"""The neural probabilistic language model (Bengio et al. 2003): a fixed number of words into one hidden layer.

    x = √D [E[w_t]; E[w_{t−1}]; … E[w_{t−c+1}]];  y = U tanh(H x + d) + W x;  logits = y Eᵀ

Three choices of ours. The head is tied to the embedding (Press & Wolf 2017), so that the parameters go into looking at
the context and not into a second (V, D) table; so U and the direct connections W end at D numbers instead of V. A row
of E then has length 1, and √D makes its numbers large enough for tanh to bend (Vaswani et al. 2017 scale so too).
Where a document has fewer than c tokens so far, zeros stand for what is missing.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hepta.model.cache import Slots
from hepta.model.history import FeedForwardShape
from hepta.model.layers import Embedding, Linear, fill_normal
from hepta.model.network import Network, untied_head


def shifted(x: Tensor, segment_ids: Tensor | None, back: int) -> Tensor:
    """What stands ``back`` positions earlier in the same document (B, T, D); zeros where nothing does."""
    if back >= x.shape[1]:
        return torch.zeros_like(x)
    moved = F.pad(x[:, : x.shape[1] - back], (0, 0, back, 0))
    if segment_ids is None or back == 0:
        return moved
    same = F.pad(segment_ids[:, back:] == segment_ids[:, :-back], (back, 0))
    return moved * same[..., None].to(x.dtype)


class FeedForward(Network):
    """Next-token prediction from the last ``context`` tokens."""

    config: FeedForwardShape

    def __init__(self, config: FeedForwardShape) -> None:
        super().__init__(config)
        wide = config.context * config.hidden_size
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.hidden = Linear(wide, config.intermediate_size)
        self.output = Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.direct = Linear(wide, config.hidden_size, bias=False)
        self.lm_head = untied_head(config)

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding (V, D)."""
        return self.embed_tokens

    @property
    def neuron_outputs(self) -> list[nn.Module]:
        """What reads the hidden layer."""
        return [self.output]

    def body(
        self,
        input_ids: Tensor,
        segment_ids: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """y of every position (B, T, D); of ``positions`` only those with a cache matter, a row's order is time."""
        x = self.embed_tokens(input_ids) * self.config.hidden_size**0.5
        x = x if self.compute_dtype is None else x.to(self.compute_dtype)
        if cache is None:
            parts = [shifted(x, segment_ids, back) for back in range(self.config.context)]
        else:
            assert positions is not None, "a cache needs positions"
            cache.put(0, positions, x)
            parts = [cache.get(0, positions - back) for back in range(self.config.context)]
        x = torch.cat(parts, -1)
        return self.output(torch.tanh(self.hidden(x))) + self.direct(x)

    def make_cache(self, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Any:
        """The embedding of every position."""
        return Slots(1, rows, capacity, self.config.hidden_size, dtype, device)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw fresh weights: matrices N(0, 1 / inputs), embeddings N(0, 1 / D), an untied head N(0, 0.02²)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.zero_()
                continue
            std = 0.02 if name == "lm_head.weight" else parameter.shape[1] ** -0.5
            fill_normal(parameter, seed, name, std)
