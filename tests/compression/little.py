"""Sizes of the small models and runs of this folder's tests, and a crash."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hepta.data.order import TokenOrder
from hepta.model.config import ModelConfig

KEYS = {
    "sequence_length": 64, "batch_tokens": 512, "compile": False, "threads": 1, "precision": "fp32",
    "sample_prompts": [], "eval": {"tokens": 2048, "every": 1000},
}  # fmt: skip
SHAPE = ModelConfig(
    vocab_size=640, hidden_size=36, intermediate_size=48, num_layers=4, num_heads=6, num_kv_heads=2, head_dim=8
)  # fmt: skip


class Stopped(Exception):
    """Ends a run as a crash does."""


@contextmanager
def crash_at(sequence: int) -> Iterator[None]:
    """Training ends here as in a crash, where it would read this sequence of its training split."""
    batch = TokenOrder.batch

    def mortal(order: TokenOrder, start: int, count: int) -> Any:
        if order.split == "train" and start >= sequence:
            raise Stopped
        return batch(order, start, count)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(TokenOrder, "batch", mortal)
        yield
