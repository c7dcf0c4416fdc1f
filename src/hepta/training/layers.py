"""``statistics=EVERY``: each layer's gradients, weights, updates and activations at some of the steps."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hepta.model.whole import whole
from hepta.training.sharding import reshard

SAMPLED = 1 << 16  # values of a tensor whose change is followed: copies of all weights would double their memory


def layer_of(name: str, blocks: dict[str, str]) -> str:
    """The layer that a parameter belongs to: ``layer 3``, or for one outside of the blocks its module's own name."""
    for prefix, layer in blocks.items():
        if name.startswith(prefix):
            return layer
    return name.rpartition(".")[0] or name


def sample(tensor: Tensor) -> Tensor:
    """A copy of at most ``SAMPLED`` values of a tensor, evenly spaced, as float32; every process must ask for it."""
    flat = whole(tensor.detach()).flatten()
    return flat[:: -(-len(flat) // SAMPLED)].to(torch.float32, copy=True)


class LayerStatistics:
    """Statistics per layer of one step: ``with statistics.of(optimizer): take the step``, then ``row()``.

    Nothing of it touches the step: gradients are read where the optimizer is about to use them (so clipping is undone
    in the figures), activations come from a pass of their own, without dropout and without gradients.

    Args:
        model: a network with ``blocks``.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        names = {id(module): name for name, module in model.named_modules()}
        self.blocks = {f"{names[id(block)]}.": f"layer {number}" for number, block in enumerate(model.blocks)}
        self.layers: dict[str, list[Tensor]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.layers[layer_of(name, self.blocks)].append(parameter)
        self.found: dict[str, dict[str, float]] = {layer: {} for layer in self.layers}

    @contextmanager
    def of(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Around the step."""
        before = {layer: [sample(p) for p in parameters] for layer, parameters in self.layers.items()}
        handle = optimizer.register_step_pre_hook(lambda *_: self._gradients())
        try:
            yield
        finally:
            handle.remove()
        for layer, parameters in self.layers.items():
            after = [sample(p) for p in parameters]
            moved = _norm(a - b for a, b in zip(after, before[layer], strict=True))
            self.found[layer] |= {"weight_norm": _norm(parameters), "update_ratio": moved / max(_norm(after), 1e-30)}

    def _gradients(self) -> None:
        for layer, parameters in self.layers.items():
            self.found[layer]["grad_norm"] = _norm(p.grad for p in parameters if p.grad is not None)

    @torch.no_grad()
    def activations(self, objective: Any, batches: Sequence[dict[str, Tensor]]) -> None:
        """Root mean square and largest absolute value of what each block gives on this process's first micro-batch;
        the first process's, which writes the rows, is the step's first one."""
        device, training = next(self.model.parameters()).device, self.model.training
        handles = [block.register_forward_hook(self._activation(n)) for n, block in enumerate(self.model.blocks)]
        self.model.eval()
        try:
            with torch.compiler.set_stance("force_eager"):
                objective(self.model, {name: value.to(device) for name, value in batches[0].items()})
        finally:
            self.model.train(training)
            for handle in handles:
                handle.remove()
            reshard(self.model)

    def _activation(self, number: int) -> Any:
        def measure(module: nn.Module, inputs: Any, output: Any) -> None:
            values = (output[0] if isinstance(output, tuple) else output).float()
            told = {"activation_rms": float(values.square().mean().sqrt()), "activation_max": float(values.abs().max())}
            self.found.setdefault(f"layer {number}", {}).update(told)

        return measure

    def row(self, clipped: float) -> dict[str, dict[str, float]]:
        """Layer → figures; ``clipped`` is what gradients were multiplied by before the optimizer saw them."""
        for figures in self.found.values():
            if "grad_norm" in figures:
                figures["grad_norm"] /= clipped
        return self.found


def _norm(tensors: Iterable[Tensor]) -> float:
    norms = [whole(tensor.detach().float().norm()) for tensor in tensors]
    return float(torch.stack(norms).norm()) if norms else 0.0
