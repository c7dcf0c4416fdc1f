"""Whole heads and neurons cut away, as many in every layer, so that what is left is a standard smaller model."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hepta.compression.calibrate import InputMoments
from hepta.config import HeptaError
from hepta.model.decoder import Decoder
from hepta.model.families import network_class
from hepta.model.network import Network

WRITERS = {  # what reads an MLP's neurons, by the end of its name → what writes them
    "mlp.down_proj": ("mlp.gate_proj", "mlp.up_proj"), "mlp.c_proj": ("mlp.c_fc",),
    "output.dense": ("intermediate.dense",), "output": ("hidden",),
}  # fmt: skip
Moments = Mapping[str, InputMoments] | None
Cuts = dict[str, list[tuple[int, Tensor]]]  # parameter → dimensions and the indices kept of them


def heads_to_remove(model: Network, wanted: float) -> int:
    """How many query heads go in each layer: ``wanted`` itself, or the count nearest to that share.

    Heads that share keys go together, whole groups of them, or as many go from every group: config.json knows no
    other shapes.

    Raises:
        HeptaError: another family, or a number that leaves no such shape.
    """
    if not isinstance(model, Decoder):
        kind = type(model).__name__
        raise HeptaError(f"heads: a {kind} cannot be stored with fewer, its heads must fill its width; use neurons")
    shape = model.config
    heads, shared = shape.num_heads, shape.num_kv_heads
    possible = [n for n in range(1, heads) if n % (heads // shared) == 0 or n % shared == 0]
    if shape.family == "llama":  # transformers refuses a Llama whose width its heads do not divide
        possible = [n for n in possible if shape.hidden_size % (heads - n) == 0]
    if not possible:
        raise HeptaError(f"heads: none of {heads} can be spared in a shape that transformers loads; use neurons")
    if wanted < 1:
        return min(possible, key=lambda n: abs(n - wanted * heads))
    if wanted not in possible:
        listed = ", ".join(map(str, possible))
        raise HeptaError(f"heads {wanted:g}: of {heads} heads that share {shared} keys remove {listed}")
    return int(wanted)


def neurons_to_remove(model: Network, share: float) -> int:
    """How many neurons go in each layer.

    Raises:
        HeptaError: a model without an MLP, or a share that leaves all or none.
    """
    if not model.neuron_outputs:
        raise HeptaError(f"neurons: a {type(model).__name__} has no MLP to take them from; use --sparsity")
    size = model.config.intermediate_size
    count = round(share * size)
    if not 0 < count < size:
        raise HeptaError(f"neurons {share:g}: of {size} neurons that is {count}; choose another share")
    return count


def choose_heads(model: Network, count: int, moments: Moments) -> list[Tensor]:
    """The query heads of each layer that stay, ascending; ``count`` go."""
    names, shape = _names(model), model.config
    group = shape.num_heads // shape.num_kv_heads
    whole = count % group == 0
    kept = []
    for reader in model.attention_outputs:
        scores = _read_scores(model, names[id(reader)], moments)
        if moments is None:
            layer = names[id(reader)].removesuffix("o_proj")
            queries = _squares(model, f"{layer}q_proj").view(shape.num_heads, -1).sum(1)
            shared = _squares(model, f"{layer}k_proj") + _squares(model, f"{layer}v_proj")
            own = queries + shared.view(shape.num_kv_heads, -1).sum(1).repeat_interleave(group) / group
            scores = scores.view(shape.num_heads, -1).sum(1) + own
        else:
            scores = scores.view(shape.num_heads, -1).sum(1)
        table = scores.view(shape.num_kv_heads, group)
        heads = torch.arange(shape.num_heads).view_as(table)
        if whole:
            stay = table.sum(1).argsort(descending=True)[: shape.num_kv_heads - count // group].sort().values
            kept.append(heads[stay].flatten())
        else:
            stay = table.argsort(1, descending=True)[:, : group - count // shape.num_kv_heads].sort(1).values
            kept.append(heads.gather(1, stay).flatten())
    return kept


def choose_neurons(model: Network, count: int, moments: Moments) -> list[Tensor]:
    """The neurons of each layer that stay, ascending; ``count`` go."""
    names, kept = _names(model), []
    for reader in model.neuron_outputs:
        name = names[id(reader)]
        scores = _read_scores(model, name, moments)
        if moments is None:
            scores = scores + sum(_squares(model, writer) for writer in _writers(name))
        kept.append(scores.argsort(descending=True)[: len(scores) - count].sort().values)
    return kept


@torch.no_grad()
def cut(model: Network, heads: Sequence[Tensor] | None, neurons: Sequence[Tensor] | None) -> Network:
    """A smaller model of the heads and neurons kept in each layer (None: all); its own copy of the weights."""
    names, shape, cuts = _names(model), model.config, Cuts()
    changes: dict[str, int] = {}
    if heads is not None:
        group, width = shape.num_heads // shape.num_kv_heads, shape.head_dim
        for reader, stay in zip(model.attention_outputs, heads, strict=True):
            layer = names[id(reader)].removesuffix("o_proj")
            keys = torch.unique(stay // group)
            _rows(cuts, f"{layer}q_proj", _channels(stay, width))
            for name in ("k_proj", "v_proj"):
                _rows(cuts, f"{layer}{name}", _channels(keys, width))
            cuts.setdefault(f"{layer}o_proj.weight", []).append((1, _channels(stay, width)))
            changes |= {"num_heads": len(stay), "num_kv_heads": len(keys)}
    if neurons is not None:
        for reader, stay in zip(model.neuron_outputs, neurons, strict=True):
            for writer in _writers(names[id(reader)]):
                _rows(cuts, writer, stay)
            cuts.setdefault(f"{names[id(reader)]}.weight", []).append((1, stay))
            changes["intermediate_size"] = len(stay)
    shape = shape.replace(**changes)
    smaller, theirs = network_class(shape)(shape), dict(model.named_parameters())
    for name, parameter in smaller.named_parameters():
        value = theirs[name]
        for dimension, stay in cuts.get(name, []):
            value = value.index_select(dimension, stay)
        parameter.copy_(value)
    return smaller.eval()


def _rows(cuts: Cuts, name: str, stay: Tensor) -> None:
    for part in ("weight", "bias"):
        cuts.setdefault(f"{name}.{part}", []).append((0, stay))


def _channels(heads: Tensor, width: int) -> Tensor:
    """The channels (N · K,) of heads (N,), each ``width`` wide."""
    return (heads[:, None] * width + torch.arange(width)).flatten()


def _names(model: Network) -> dict[int, str]:
    return {id(module): name for name, module in model.named_modules()}


def _writers(reader: str) -> list[str]:
    end = next(end for end in WRITERS if reader == end or reader.endswith(f".{end}"))
    return [reader.removesuffix(end) + writer for writer in WRITERS[end]]


def _squares(model: Network, name: str) -> Tensor:
    """Σ w² of each output of a map (out,)."""
    return model.get_parameter(f"{name}.weight").detach().float().square().sum(1)


def _read_scores(model: Network, reader: str, moments: Moments) -> Tensor:
    """What each input of a map gives to its outputs (in,): Σ x² · Σ w² of its column; without text Σ w² alone.

    The first is the squared length of all it writes on calibration text, were it alone to write.
    """
    columns = model.get_parameter(f"{reader}.weight").detach().float().square().sum(0)
    return columns if moments is None else columns * moments[reader].squares
