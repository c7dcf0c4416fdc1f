"""One thread, and a tiny random Llama that can write itself as GGUF."""

from collections.abc import Iterator

import pytest
import torch
from tiny_gguf import Tiny, make_tiny


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are faster on one thread, and threads of neighbours cannot slow them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """Made once; tests write its GGUF in the kinds they need."""
    return make_tiny()
