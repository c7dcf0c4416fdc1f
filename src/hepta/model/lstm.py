"""An LSTM language model (Hochreiter & Schmidhuber 1997, as in Zaremba et al. 2014): memory carried step by step.

    x = √D E[ids];  i, f, o = σ(W x_t + R h_{t−1} + b);  u = tanh(…);  c_t = f c_{t−1} + i u;  h_t = o tanh(c_t)

W x of all positions is one product before the loop in time, which holds only R h and a few element-wise steps. h and
c are set to zero where a document begins. Dropout acts between layers, never in time. The head is tied, so rows of E
have length 1: the √D lets the gates hear their input, and logits = 4 h Eᵀ makes up for h being about a quarter as large
as a normed hidden state. Without the two, learning begins hundreds of steps later (docs/log.md).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hepta.model.cache import Slots
from hepta.model.history import GATES, LSTMShape
from hepta.model.layers import Embedding, Linear, fill_normal
from hepta.model.network import Network, untied_head

GAIN = 4.0  # of h before the head


class _Recurrence(torch.autograd.Function):
    """The loop in time with its gradient written out, so that autograd keeps no graph of T nodes."""

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, weight: Tensor, keep: Tensor | None, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run a layer over all positions.

        Args:
            gates: W x + b (B, T, 4H), in the order i, f, o, u; their dtype is that of the products.
            weight: R (4H, H).
            keep: (T, B, 1), 0 where a document begins, else 1; None: none begins.
            hidden, cell: (B, H) before the first position, float32.

        Returns:
            h of every position (B, T, H) in the dtype of ``gates``, and c (B, T, H) float32.
        """
        dtype, (B, T, _), H = gates.dtype, gates.shape, weight.shape[1]
        wide = torch.promote_types(dtype, torch.float32)
        active = torch.empty(T, B, GATES * H, dtype=wide, device=gates.device).copy_(gates.transpose(0, 1))
        product, first = weight.to(dtype).T.contiguous(), hidden.to(wide)
        states, cells, squashed = (active.new_empty(T, B, H) for _ in range(3))
        hidden, cell = first, cell.to(wide)
        begun = cell
        for t in range(T):
            if keep is not None:
                hidden, cell = hidden * keep[t], cell * keep[t]
            now = active[t]
            now += hidden.to(dtype) @ product
            now[:, : 3 * H].sigmoid_()
            now[:, 3 * H :].tanh_()
            i, f, o, u = now.chunk(GATES, 1)
            cell = torch.mul(f, cell, out=cells[t]).addcmul_(i, u)
            hidden = torch.mul(o, torch.tanh(cell, out=squashed[t]), out=states[t])
        ctx.save_for_backward(active, weight, keep, states, cells, squashed, first, begun)
        ctx.dtype = dtype
        result = states.transpose(0, 1).to(dtype, copy=True), cells.transpose(0, 1).clone()
        ctx.mark_non_differentiable(result[1])
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        active, weight, keep, states, cells, squashed, first, begun = ctx.saved_tensors
        T, H, dtype = len(states), states.shape[2], ctx.dtype
        flow = grad_outputs[0].transpose(0, 1).to(states.dtype, copy=True)  # d loss / d h of each position
        recurrent = weight.to(dtype)
        sigma, candidate = active[..., : 3 * H], active[..., 3 * H :]
        slope = torch.cat((sigma * (1 - sigma), 1 - candidate * candidate), -1)  # of σ and tanh, from their values
        to_cell = active[..., 2 * H : 3 * H] * (1 - squashed * squashed)  # d h / d c
        gradient = torch.empty_like(active)
        later_hidden, later_cell = torch.zeros_like(first), torch.zeros_like(first)
        for t in range(T - 1, -1, -1):
            i, f, _, u = active[t].chunk(GATES, 1)
            before = cells[t - 1] if t else begun
            d_hidden = flow[t].add_(later_hidden)
            d_cell = torch.addcmul(later_cell, d_hidden, to_cell[t])
            to_i, to_f, to_o, to_u = gradient[t].chunk(GATES, 1)
            torch.mul(d_cell, u, out=to_i)
            torch.mul(d_cell, before if keep is None else before * keep[t], out=to_f)
            torch.mul(d_hidden, squashed[t], out=to_o)
            torch.mul(d_cell, i, out=to_u)
            gradient[t] *= slope[t]
            later_hidden = (gradient[t].to(dtype) @ recurrent).to(states.dtype)
            later_cell = d_cell * f
            if keep is not None:
                later_hidden, later_cell = later_hidden * keep[t], later_cell * keep[t]
        previous = torch.cat((first[None], states[:-1]))
        previous = previous if keep is None else previous * keep
        gates = gradient.to(dtype)
        to_weight = gates.flatten(0, 1).T @ previous.to(dtype).flatten(0, 1)
        return gates.transpose(0, 1), to_weight.to(weight.dtype), None, None, None


class Layer(nn.Module):
    """One LSTM layer: (B, T, D) → (B, T, D)."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.number = number
        self.input = Linear(width, GATES * width)
        self.recurrent = Linear(width, GATES * width, bias=False)

    def forward(self, x: Tensor, keep: Tensor | None, positions: Tensor | None, cache: Slots | None) -> Tensor:
        hidden = cell = torch.zeros(len(x), x.shape[2], device=x.device)
        if cache is not None and positions is not None:  # where the position before the first of these left off
            hidden, cell = cache.get(self.number, positions[:, :1] - 1)[:, 0].chunk(2, -1)
        states, cells = _Recurrence.apply(self.input(x), self.recurrent.weight, keep, hidden, cell)  # pyright: ignore
        if cache is not None and positions is not None:
            cache.put(self.number, positions, torch.cat((states.float(), cells), -1))
        return states


class LSTM(Network):
    """A stack of LSTM layers over tied embeddings."""

    wide = ("recurrent",)
    config: LSTMShape

    def __init__(self, config: LSTMShape) -> None:
        super().__init__(config)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config.hidden_size, number) for number in range(config.num_layers))
        self.lm_head = untied_head(config)

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding (V, D)."""
        return self.embed_tokens

    def body(
        self,
        input_ids: Tensor,
        segment_ids: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """h of every position (B, T, D); of ``positions`` only those with a cache matter, a row's order is time."""
        x = self.embed_tokens(input_ids) * self.config.hidden_size**0.5
        x = x if self.compute_dtype is None else x.to(self.compute_dtype)
        keep = None
        if segment_ids is not None:
            same = F.pad(segment_ids[:, 1:] == segment_ids[:, :-1], (1, 0))
            keep = same.T[..., None].to(torch.promote_types(x.dtype, torch.float32)).contiguous()
        dropout = self.config.dropout
        for layer in self.layers:
            x = layer(F.dropout(x, dropout, self.training), keep, positions, cache)
        return F.dropout(x, dropout, self.training)

    def before_head(self, hidden: Tensor) -> Tensor:
        """h as large as the unembedding wants it."""
        return GAIN * hidden

    def make_cache(self, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Any:
        """h and c of every layer and position, in float32 whatever the products run in."""
        return Slots(self.config.num_layers, rows, capacity, 2 * self.config.hidden_size, torch.float32, device)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw fresh weights: matrices N(0, 1 / 3D) (the variance of torch's uniform), embeddings N(0, 1 / D).

        Biases 0, but 1 for the forget gate, so that memory lasts from the start (Jozefowicz et al. 2015); an untied
        head N(0, 0.02²).
        """
        D = self.config.hidden_size
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.zero_()
                parameter[D : 2 * D] = 1.0
                continue
            std = {"embed_tokens.weight": D**-0.5, "lm_head.weight": 0.02}.get(name, (3 * D) ** -0.5)
            fill_normal(parameter, seed, name, std)
