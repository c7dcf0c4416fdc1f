"""Training loss by source: the terms of a step's loss, summed by where their tokens came from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hepta.objectives.causal import IGNORE
from hepta.training.step import Batch
from hepta.training.world import ALONE, World


def loss_by_source(
    order: Any, names: Sequence[str], first: int, batches: Sequence[Batch], losses: Sequence[Tensor],
    world: World = ALONE,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """What a step's row says of each source that it read; weighed by their tokens, the losses make the step's.

    Args:
        order: what was read; ``order.sources(n)`` names the source of each segment of the n-th sequence.
        names: of all sources there are, the same list in every process.
        first: number of the sequence that the first batch begins with.
        batches: of this process; their ``segment_ids`` (B, T) count segments from 0, padding is the one after the last.
        losses: nats of each position (B, T) of each batch, 0 where not supervised.
        world: the processes that share the step.

    Returns:
        ``loss_by_source``, mean nats per supervised token, and ``tokens_by_source``, how many those are; sources of
        which nothing is supervised in this step are left out.
    """
    numbers = {name: number for number, name in enumerate(names)}
    nats, tokens = np.zeros(len(names) + 1), np.zeros(len(names) + 1)  # the last is padding's
    for batch, terms in zip(batches, losses, strict=True):
        found = [order.sources(n) for n in range(first, first + len(terms))]
        first += len(terms)
        table = np.full((len(found), max(map(len, found)) + 1), len(names))
        for row, sources in enumerate(found):
            table[row, : len(sources)] = [numbers[source] for source in sources]
        of_token = np.take_along_axis(table, batch["segment_ids"].numpy(), 1).ravel()
        nats += np.bincount(of_token, terms.cpu().numpy().ravel(), len(nats))
        tokens += np.bincount(of_token, batch["labels"].numpy().ravel() != IGNORE, len(nats))
    count = len(names)
    sums = world.sum(*nats[:count].tolist(), *tokens[:count].tolist())
    known = [(name, sums[i], int(sums[count + i])) for name, i in numbers.items() if sums[count + i]]
    return {
        "loss_by_source": {name: spent / met for name, spent, met in known},
        "tokens_by_source": {name: met for name, _, met in known},
    }
