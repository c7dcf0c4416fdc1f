"""Calibrated rounding of a whole model, one block at a time, so that the sums of one block are alive at once.

What a block reads is known; its maps are rounded by what they read; what it then gives out, with the rounded maps, is
what the next block reads. So each block is rounded for the inputs it will really meet, and the head last.
"""

from collections.abc import Callable, Mapping, Sequence
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


class _Stop(Exception):
    """Ends a forward pass whose rest nobody wants."""


@torch.no_grad()
def round_by_blocks(
    directory: Path, groups: Mapping[str, int | None], head: str | None, batches: Sequence[Tensor]
) -> tuple[dict[str, Rounded], dict[str, float]]:
    """Round every block's maps by what they read.

    Args:
        directory: of the model (resolved).
        groups: columns that share a scale, of each map to round (None: 8 bits); those outside of blocks are left to
            others.
        head: name of the table that gives the logits, rounded to bytes; None: left to others.
        batches: calibration text, ids (B, T).

    Returns:
        the rounded matrices, and their relative errors on that text, by name.
    """
    model = load_classifier(directory) if is_classifier(directory) else load_model(directory)
    network: Any = getattr(model, "network", model)
    names = {id(module): name for name, module in model.named_modules() if name in groups}
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
                rounded[name] = repaired(weight, products, groups[name])
                errors[name] = relative_error(weight, rounded[name].dequantized(), products)
                weight.copy_(rounded[name].dequantized())
            states = [block(x, *rest[number]) for x in states]
            bar.advance(1)
    if head is not None:
        weight = network.output_weight
        products = torch.zeros(weight.shape[1], weight.shape[1])
        for ids in batches:
            x = network.before_head(network.body(ids)).flatten(0, 1).float()
            products.addmm_(x.T, x)
        rounded[head] = repaired(weight, products, None)
        errors[head] = relative_error(weight, rounded[head].dequantized(), products)
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
