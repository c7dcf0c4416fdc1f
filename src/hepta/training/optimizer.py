"""Optimizers with the right groups: decay only on matrices that are not embeddings."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hepta.config import HeptaError
from hepta.model.whole import by_mesh, placed_like, whole
from hepta.planning.rates import rate_factor
from hepta.training.adamw8bit import AdamW8bit
from hepta.training.muon import MuonMatrices
from hepta.training.rounded import RoundedAdafactor, RoundedAdamW

BETAS, EPSILON = (0.9, 0.95), 1e-8
MOMENTUM = 0.9  # of sgd
SMALLEST = (1e-15, 1e-3)  # adafactor: of gradients and of a weight's size; torch's own 1.2e-7 hides gradients
EMBEDDINGS = 4.0  # rate of embeddings beside that of the matrices that Muon moves (docs/log.md)
HEADS = ("lm_head", "classifier", "score")  # modules whose matrix is no hidden one

Group = dict[str, Any]


def embedding_ids(model: nn.Module) -> set[int]:
    """Ids of the weights of embeddings; a tied head counts as the embedding it is."""
    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}


def layer_shares(model: Any, layer_decay: float) -> dict[int, float]:
    """What share of the rate each parameter gets, by id: ``layer_decay`` to the power of the layers above it.

    Embeddings, and what else comes before the first layer, lie under all layers; norm and head lie above them. A tied
    head is the embedding that it is.
    """
    blocks = model.blocks
    if not blocks:
        raise HeptaError("layer_decay: this model has no stack of layers whose rates could differ; leave the key out")
    places = {id(parameter): place for place, block in enumerate(blocks, 1) for parameter in block.parameters()}
    embeddings, above, shares = embedding_ids(model), False, {}
    for parameter in model.parameters():
        above = above or id(parameter) in places
        outside = len(blocks) + 1 if above and id(parameter) not in embeddings else 0
        shares[id(parameter)] = layer_decay ** (len(blocks) + 1 - places.get(id(parameter), outside))
    return shares


def parameter_groups(
    model: Any, weight_decay: float, layer_decay: float = 1.0, embedding_rate: float = 1.0
) -> list[Group]:
    """Groups of trainable parameters: decayed matrices, and all the rest (trap R11); for each share of the rate.

    Norm weights and biases have one dimension; embeddings are found by their module, so a tied head counts
    as the embedding it is.
    """
    embeddings = embedding_ids(model)
    shares = {} if layer_decay == 1.0 else layer_shares(model, layer_decay)
    groups: dict[tuple[bool, float], Group] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            embeds, share = id(parameter) in embeddings, shares.get(id(parameter), 1.0)
            decayed, share = parameter.ndim >= 2 and not embeds, share * embedding_rate if embeds else share
            group = {"params": [], "weight_decay": weight_decay if decayed else 0.0, "share": share}
            groups.setdefault((decayed, share), group)["params"].append(parameter)
    ordered = [groups[key] for key in sorted(groups, reverse=True)]
    return [{**group, "params": some} for group in ordered for some in by_mesh(group["params"])]


def hidden_matrices(model: nn.Module) -> set[int]:
    """Ids of the trainable matrices between embedding and head, which Muon makes orthogonal."""
    embeddings = embedding_ids(model)
    return {
        id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim == 2 and id(parameter) not in embeddings
        and not set(HEADS) & set(name.split("."))
    }  # fmt: skip


class Muon(torch.optim.Optimizer):
    """Muon on hidden matrices and torch's AdamW on the rest, seen as one optimizer."""

    def __init__(self, groups: list[Group], hidden: set[int]) -> None:
        matrices, others = (_only(groups, hidden, inside) for inside in (True, False))
        if not matrices:
            raise HeptaError("optimizer muon: nothing that is trained is a hidden matrix; use adamw")
        self.parts: list[torch.optim.Optimizer] = [MuonMatrices(matrices)]
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=0.0, betas=BETAS, eps=EPSILON, fused=True))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        for part in self.parts:
            part.state = self.state  # the groups are shared already: torch keeps the dictionaries it is given

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        assert closure is None, "the loss is known already"
        for part in self.parts:
            part.step()


def _only(groups: list[Group], ids: set[int], inside: bool) -> list[Group]:
    chosen = [{**group, "params": [p for p in group["params"] if (id(p) in ids) is inside]} for group in groups]
    return [group for group in chosen if group["params"]]


def make_optimizer(
    model: Any, weight_decay: float, name: str = "adamw", layer_decay: float = 1.0, rounding: int | None = None
) -> torch.optim.Optimizer:
    """An optimizer over ``parameter_groups``; the learning rate is set before every step.

    Args:
        model: its trainable parameters are updated.
        weight_decay: share of a matrix taken in a step, in units of AdamW's rate, whatever the optimizer.
        name: the key ``optimizer``.
        layer_decay: see ``layer_shares``.
        rounding: seed of the stochastic rounding of bfloat16 weights; None: weights are not rounded.

    Raises:
        HeptaError: nothing that this optimizer updates, or one that does not round by chance.
    """
    factor, embeddings = rate_factor(name, model.config.hidden_size), EMBEDDINGS if name == "muon" else 1.0
    groups = parameter_groups(model, weight_decay / factor, layer_decay, embeddings)
    if rounding is not None:
        names = {parameter: key for key, parameter in model.named_parameters()}
        if name == "adamw":
            return RoundedAdamW(groups, names, rounding, betas=BETAS, eps=EPSILON)
        if name == "adafactor":
            return RoundedAdafactor(groups, names, rounding)
        raise HeptaError(f"optimizer {name}: does not round bf16-pure weights by chance; use adamw or adafactor")
    if name == "muon":
        return Muon(groups, hidden_matrices(model))
    if name == "adafactor":
        return torch.optim.Adafactor(groups, lr=0.0, eps=SMALLEST)
    if name == "sgd":
        for group in groups:  # torch adds decay to the gradient, so momentum would multiply it
            group["weight_decay"] *= 1 - MOMENTUM
        return torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, nesterov=True)
    if name == "adamw8bit":
        return AdamW8bit(groups, lr=0.0, betas=BETAS, eps=EPSILON)
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPSILON, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["share"]


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Euclidean norm over all gradients (float32 scalar); 0 where there are none."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = [whole(torch.nn.utils.get_total_norm(some)) for some in by_mesh(gradients)]
    return norms[0] if len(norms) == 1 else torch.stack(norms or [torch.zeros(())]).norm()


def clip_gradients(parameters: Iterable[Tensor], norm: Tensor, limit: float) -> None:
    """Scale all gradients so that their norm is at most ``limit``."""
    for some in by_mesh(parameters):
        torch.nn.utils.clip_grads_with_norm_(some, limit, norm)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state keyed ``<parameter>.<state>``, as it is saved."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{key}"] = value
    return tensors


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave; parameters without saved state start anew."""
    parameters = dict(model.named_parameters())
    for full, value in tensors.items():
        name, _, key = full.rpartition(".")
        kept = placed_like(parameters[name], value) if key != "step" else value
        optimizer.state[parameters[name]][key] = kept
