"""Recomputation: activations of a block are dropped after its forward pass and made again in the backward pass.

    none        everything autograd wants is kept
    selective   results of matrix products are kept, what is cheap (norms, attention, SiLU) is made again
    block       a block's input is kept, the whole block runs again: a third more products, least memory

The same operations run on the same numbers with the same random state, so uncompiled losses and gradients are the same
bits (traps R7 and R15).
"""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from hepta.config import HeptaError
from hepta.console import say
from hepta.model.shape import Shape
from hepta.planning.machine import give_back, memory_limit
from hepta.planning.memory import Setting, activation_bytes, layer_activation_bytes

PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)  # what a linear map comes down to
WIDE = 2048  # models of this width have products next to which fetching memory anew is cheap
HOLES = 4  # blocks of such a model after which kept holes, some 25 MB a block of a 7B, are handed back
SPARE = 0.9  # share of the free memory that activations may take


def _keep_products(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    kept = operation in PRODUCTS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def recompute_blocks(model: Any, how: str, compiled: bool = False) -> None:
    """Let every block of a model drop its activations, in place; evaluation and generation are left as they are.

    Args:
        model: its ``blocks`` are changed.
        how: ``none``, ``selective`` or ``block``.
        compiled: compile what runs inside each block.

    Raises:
        HeptaError: a model without blocks, or products to be kept out of compiled code.
    """
    if how == "none":
        return
    if not model.blocks:
        raise HeptaError(f"recompute {how}: a {type(model).__name__} has no blocks to recompute; leave the key out")
    if how == "selective" and compiled:
        raise HeptaError("recompute selective: compiled blocks choose for themselves what to keep; use compile=false")
    contexts = partial(create_selective_checkpoint_contexts, _keep_products)
    options = {"context_fn": contexts} if how == "selective" else {}
    wide = model.config.hidden_size >= WIDE
    for number, block in enumerate(model.blocks):
        block.forward = _recomputed(block, options, compiled, wide and number % HOLES == 0)


def _recomputed(block: Any, options: dict[str, Any], compiled: bool, tidy: bool) -> Any:
    inner = block.forward
    run = torch.compile(inner, dynamic=False) if compiled else inner

    def inside(*args: Any, **kwargs: Any) -> Any:
        if tidy:
            give_back()
        return run(*args, **kwargs)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if block.training and torch.is_grad_enabled():
            return checkpoint(inside, *args, use_reentrant=False, **options, **kwargs)
        return inner(*args, **kwargs)

    return forward


def product_bytes(shape: Shape, setting: Setting) -> float:
    """Bytes that ``selective`` keeps: results of all matrix products, each layer's input, and one layer in full."""
    numbers = shape.num_layers * (shape.hidden_size + sum(outputs for _, outputs in shape.linear_shapes()))
    return setting.tokens * numbers * (2.0 if setting.half else 4.0) + layer_activation_bytes(shape, setting)


def free_bytes(device: str) -> float:
    """Memory that is still to be had on a device."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(memory_limit()[1])


def pick_recompute(shape: Shape, setting: Setting, state: float, device: str, compiled: bool) -> str:
    """What ``recompute: auto`` means: as little as fits beside gradients and moments; said where it is anything.

    Args:
        shape: the model's.
        setting: one micro-batch.
        state: bytes of gradients and moments still to come.
        device: where it runs.
        compiled: whether blocks are compiled.
    """
    room = SPARE * free_bytes(device) - state
    whole = activation_bytes(shape, setting)
    if whole <= room:
        return "none"
    how = "selective" if not compiled and product_bytes(shape, setting) <= room else "block"
    need = f"activations of one micro-batch need {whole / 1e9:.1f} GB, {max(room, 0) / 1e9:.1f} GB are free for them"
    say(f"recompute: {how} ({need})")
    return how
