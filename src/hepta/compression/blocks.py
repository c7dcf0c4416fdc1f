"""Calibrated rounding of a whole model, one block at a time, so that the sums of one block are alive at once.

What a block reads is known; its maps are rounded by what they read; what it then gives out, with the rounded maps, is
what the next block reads. So each block is rounded for the inputs it will really meet.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hepta.compression.calibrate import watching
from hepta.compression.rounding import Rounded, repaired
from hepta.console import progress
from hepta.model.classifier import is_classifier, load_classifier
from hepta.model.load import load_model
from hepta.model.scheme import Scheme


class _Stop(Exception):
    """Ends a forward pass whose rest nobody wants."""


@torch.no_grad()
def round_by_blocks(
    directory: Path, linear: Sequence[str], scheme: Scheme, batches: Sequence[Tensor]
) -> tuple[dict[str, Rounded], dict[str, float]]:
    """Round every block's maps by what they read.

    Args:
        directory: of the model (resolved).
        linear: names of the maps to round; those outside of blocks are left to others.
        scheme: how.
        batches: calibration text, ids (B, T).

    Returns:
        the rounded matrices, and their relative errors on that text, by name.
    """
    model = load_classifier(directory) if is_classifier(directory) else load_model(directory)
    network: Any = getattr(model, "network", model)
    wanted = set(linear)
    names = {id(module): name for name, module in model.named_modules() if name in wanted}
    rounded: dict[str, Rounded] = {}
    errors: dict[str, float] = {}
    with progress("quantize", len(network.blocks), "layers") as bar:
        states, rest = _into_blocks(network, batches)
        for number, block in enumerate(network.blocks):
            maps: dict[str, Any] = {names[id(module)]: module for module in block.modules() if id(module) in names}
            with watching(maps, products=True) as moments:
                for x in states:
                    block(x, *rest[number])
            for name, module in maps.items():
                products, weight = moments[name].products, module.weight
                assert products is not None
                rounded[name] = repaired(weight, products, scheme.group or None)
                errors[name] = relative_error(weight, rounded[name].dequantized(), products)
                weight.copy_(rounded[name].dequantized())
            states = [block(x, *rest[number]) for x in states]
            bar.advance(1)
    return rounded, errors


def _into_blocks(network: Any, batches: Sequence[Tensor]) -> tuple[list[Tensor], list[tuple[Any, ...]]]:
    """What the first block reads of each batch, and what each block gets beside it, the same for all."""
    states: list[Tensor] = []
    rest: list[tuple[Any, ...]] = []
    learned = False

    def watch(number: int) -> Callable[[Any, tuple[Any, ...]], None]:
        def hook(_: Any, inputs: tuple[Any, ...]) -> None:
            if number == 0:
                states.append(inputs[0])
            if learned:
                raise _Stop
            rest.append(inputs[1:])

        return hook

    handles = [block.register_forward_pre_hook(watch(number)) for number, block in enumerate(network.blocks)]
    try:
        network.body(batches[0][:1])
        states.clear()
        learned = True
        for ids in batches:
            with suppress(_Stop):
                network.body(ids)
    finally:
        for handle in handles:
            handle.remove()
    return states, rest


def relative_error(weight: Tensor, other: Tensor, products: Tensor) -> float:
    """‖(W − Ŵ) X‖ / ‖W X‖ from Σ x xᵀ."""
    wide = weight.float()
    difference = wide - other
    above, below = (torch.sum((m @ products) * m).clamp(min=0) for m in (difference, wide))
    return float((above / below.clamp(min=1e-30)).sqrt())
