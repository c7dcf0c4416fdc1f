"""What parts are worth: the loss without a head, without a layer's attention or MLP; neurons and their tokens.

A part is left out by reading its output as 0 (zero ablation): what a linear map adds as its bias stays. The loss is
measured on passages, pieces of text that are read alone, so that what a part costs comes with an interval.
Shapes: B rows, T time, H heads, F neurons of an MLP, A ablations, U units of text.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from hepta.explanation.passages import Passages

RESAMPLES, SEED = 2000, 7
Ablation = tuple[nn.Module, int | None, int]  # what reads the part, the part's number (None: all), parts side by side


@dataclass(frozen=True)
class Costs:
    """What each ablation adds to the loss, in nats per predicted token (per row, for classes): (A,) each.

    ``low`` and ``high`` bound 95 % of paired resamples of the units: text drawn again, both models on the same. One
    unit is no sample: both are NaN.
    """

    cost: np.ndarray
    low: np.ndarray
    high: np.ndarray


@contextmanager
def left_out(part: nn.Module, number: int | None, parts: int) -> Iterator[None]:
    """Inside, the linear map ``part`` reads slice ``number`` of ``parts`` equal ones of its input as 0 (None: all)."""

    def cut(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0].clone()
        if number is None:
            x.zero_()
        else:
            size = x.shape[-1] // parts
            x[..., number * size : (number + 1) * size] = 0
        return (x, *inputs[1:])

    handle = part.register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def ablate(passages: Passages, ablations: Sequence[Ablation], done: Callable[[int], None]) -> Costs:
    """Measure the loss without each part, one after the other.

    Args:
        passages: the text, and the model that reads it.
        ablations: parts to leave out.
        done: told of each pass over the text.
    """
    whole = passages.losses()  # (U,) nats
    changes = np.empty((len(whole), len(ablations)))
    for column, (part, number, parts) in enumerate(ablations):
        with left_out(part, number, parts):
            changes[:, column] = passages.losses() - whole
        done(1)
    weights = passages.weights  # (U,) predicted tokens
    cost = changes.sum(0) / weights.sum()
    if len(whole) < 2:
        return Costs(cost, np.full_like(cost, np.nan), np.full_like(cost, np.nan))
    draws = np.random.default_rng(SEED).multinomial(len(whole), np.full(len(whole), 1 / len(whole)), RESAMPLES)
    resampled = (draws @ changes) / (draws @ weights)[:, None]
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    return Costs(cost, low, high)


@dataclass
class Neuron:
    """One neuron of a layer.

    Attributes:
        number: from 0.
        mean: of |activation| over all tokens.
        norm: length of what it writes to the stream when its activation is 1.
        excited: (activation, batch, row, place) of the tokens that move it most, the strongest first.
    """

    number: int
    mean: float
    norm: float
    excited: list[tuple[float, int, int, int]] = field(default_factory=list)

    @property
    def weight(self) -> float:
        """How much it writes on average: mean |activation| · norm."""
        return self.mean * self.norm


@torch.no_grad()
def top_neurons(passages: Passages, parts: Sequence[nn.Module], most: int, tokens: int) -> list[list[Neuron]]:
    """The neurons of each layer that write most, and the tokens that excite them.

    Args:
        passages: the text, and the model that reads it.
        parts: the linear map that reads each layer's neurons.
        most: neurons of each layer.
        tokens: of each neuron.
    """
    sums: dict[int, Tensor] = {}
    for layers, real in _activations(passages, parts):
        for layer, values in enumerate(layers):
            total = values[real].abs().sum(0, dtype=torch.float64)
            sums[layer] = sums[layer] + total if layer in sums else total
    chosen: list[list[Neuron]] = []
    for part, total in zip(parts, sums.values(), strict=True):
        mean, norms = total / passages.tokens, output_norms(part, len(total))
        best = (mean * norms).topk(min(most, len(total))).indices.tolist()
        chosen.append([Neuron(j, float(mean[j]), float(norms[j])) for j in best])
    for batch, (layers, real) in enumerate(_activations(passages, parts)):
        for neurons, values in zip(chosen, layers, strict=True):
            for neuron in neurons:
                _keep(neuron, values[..., neuron.number].masked_fill(~real, 0), batch, tokens)
    return chosen


def _keep(neuron: Neuron, values: Tensor, batch: int, most: int) -> None:
    """Take a batch's strongest activations (B, T), of either sign, into what is kept of a neuron."""
    width = values.shape[1]
    for place in values.abs().flatten().topk(min(most, values.numel())).indices.tolist():
        row, column = divmod(place, width)
        neuron.excited.append((float(values[row, column]), batch, row, column))
    neuron.excited = heapq.nlargest(most, neuron.excited, key=lambda one: abs(one[0]))


def _activations(passages: Passages, parts: Sequence[nn.Module]) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Of each batch the neurons of every layer (B, T, F), and which positions are text (B, T)."""
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[layer] = inputs[0].float()

        return hook

    handles = [part.register_forward_pre_hook(keep(layer)) for layer, part in enumerate(parts)]
    try:
        for real in passages.read():
            yield [seen[layer] for layer in range(len(parts))], real
    finally:
        for handle in handles:
            handle.remove()


def output_norms(part: nn.Module, inputs: int, chunk: int = 512) -> Tensor:
    """Length of each column of a linear map (F,), whatever its weights are stored as: float64."""
    zero = part(torch.zeros(1, inputs))
    rows = [
        (part(torch.eye(min(chunk, inputs - first), inputs).roll(first, 1)) - zero).double().norm(dim=-1)
        for first in range(0, inputs, chunk)
    ]
    return torch.cat(rows)
