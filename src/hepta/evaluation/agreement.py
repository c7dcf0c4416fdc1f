"""What a changed model still says of the original's text: bits, KL divergence and first choices, document by document.

Both models read the same windows. The divergence is KL(original ‖ changed) of the next token's distribution, in nats:
0 where nothing changed, and what a smaller model costs that its loss on one text may hide.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hepta.catalog.documents import Document
from hepta.evaluation.perplexity import Encoder, Totals, Window, buffered, cut_windows, encode_framed
from hepta.model.network import unembed
from hepta.objectives.causal import CHUNK

RESAMPLES = 2000
SEED = 7  # of the bootstrap


@dataclass
class Agreement:
    """Sums over the predicted tokens of one document, or of many."""

    bytes: int = 0  # UTF-8
    tokens: int = 0
    nats_original: float = 0.0
    nats_changed: float = 0.0
    divergence: float = 0.0  # Σ KL(original ‖ changed), nats
    worst: float = 0.0  # largest KL of a token
    same_choice: int = 0  # the most probable token is the same
    right_original: int = 0  # the most probable token is the one that followed
    right_changed: int = 0

    def add(self, other: "Agreement") -> None:
        """Add another's sums."""
        for entry in fields(self):
            if entry.name != "worst":
                setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))
        self.worst = max(self.worst, other.worst)


@torch.no_grad()
def agreement(
    original: Any,
    changed: Sequence[Any],
    tokenizer: Encoder,
    documents: Iterable[Document],
    length: int,
    batch_tokens: int = 4096,
) -> Iterator[list[Agreement]]:
    """Compare models of one vocabulary with their original on documents, one bounded buffer at a time.

    All read a batch before the next one is made, so the original reads it once.

    Args:
        original: ``forward(input_ids (B, T), head=…)``, in evaluation mode.
        changed: the others, likewise (M).
        tokenizer: of all.
        documents: what to read; those without text give nothing.
        length: T, tokens per window.
        batch_tokens: tokens in one forward pass.

    Yields:
        the sums of each document: of each changed model (M).
    """
    length = max(2, length - length % 2)
    for kept in buffered(documents, defaultdict(Totals)):
        framed = encode_framed(kept, tokenizer, original.config.vocab_size)
        windows = [w for i, ids in enumerate(framed) for w in cut_windows(len(ids), length, i) if w.counted]
        windows.sort(key=lambda window: window.length)
        sizes = [len(document.text.encode("utf-8", "surrogatepass")) for document in kept]
        sums = [[Agreement(bytes=size) for size in sizes] for _ in changed]
        while windows:
            rows = max(1, batch_tokens // windows[-1].length)
            batch, windows = windows[-rows:], windows[:-rows]
            _add(sums, batch, framed, original, changed)
        yield from map(list, zip(*sums, strict=True))


def _add(
    sums: list[list[Agreement]], windows: list[Window], framed: list[list[int]], original: Any, changed: Sequence[Any]
) -> None:
    """Give what every changed model (M) says of some windows to its sums of the documents (M, D)."""
    longest = max(window.length for window in windows)
    inputs = torch.zeros((len(windows), longest), dtype=torch.long)
    targets, owners = inputs.clone(), torch.full((len(windows), longest), -1)
    for row, window in enumerate(windows):
        ids = torch.tensor(framed[window.document][window.start : window.start + window.length + 1])
        inputs[row, : window.length], targets[row, : window.length] = ids[:-1], ids[1:]
        owners[row, : window.length] = window.document
    places = (owners.flatten() >= 0).nonzero()[:, 0]
    first, *others = (model(inputs, head=lambda *given: given) for model in (original, *changed))
    for start in range(0, len(places), CHUNK):
        here = places[start : start + CHUNK]
        owner, target = owners.flatten()[here], targets.flatten()[here]
        hidden, weight, bias = first
        a = _log_probabilities(hidden, weight, bias, here)
        for told, (hidden, weight, bias) in zip(sums, others, strict=True):
            _count(told, owner, target, a, _log_probabilities(hidden, weight, bias, here))


def _log_probabilities(hidden: Tensor, weight: Any, bias: Tensor | None, places: Tensor) -> Tensor:
    return unembed(hidden.flatten(0, -2)[places], weight, bias).float().log_softmax(-1)


def token_figures(targets: Tensor, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """What ``Agreement`` sums, of each token (N,): its target, and log-probabilities a, b (N, V) of the two models."""
    gap = torch.where(a == -math.inf, 0.0, a.exp() * (a - b)).sum(-1).clamp_min(0)  # 0 · log 0 is 0
    first_a, first_b = a.argmax(-1), b.argmax(-1)
    return {
        "nats_original": -a.gather(1, targets[:, None])[:, 0], "nats_changed": -b.gather(1, targets[:, None])[:, 0],
        "divergence": gap, "same_choice": first_a == first_b, "right_original": first_a == targets,
        "right_changed": first_b == targets, "tokens": torch.ones_like(targets),
    }  # fmt: skip


def _count(sums: list[Agreement], owners: Tensor, targets: Tensor, a: Tensor, b: Tensor) -> None:
    """Give the figures of some tokens to their documents."""
    told = token_figures(targets, a, b)
    for number in owners.unique().tolist():
        mine, part = owners == number, sums[number]
        for name, values in told.items():
            total = values[mine].double().sum().item()
            setattr(part, name, getattr(part, name) + (total if values.is_floating_point() else int(total)))
        part.worst = max(part.worst, float(told["divergence"][mine].max()))


def summed(documents: Iterable[Agreement]) -> Agreement:
    """All documents as one."""
    whole = Agreement()
    for document in documents:
        whole.add(document)
    return whole


def bits_interval(documents: list[Agreement]) -> tuple[float, float] | None:
    """95 % interval of the difference in bits per byte, changed − original, over documents drawn again.

    Paired: both models read the same documents in each draw, so what all find hard cancels out. One document is no
    sample: None.
    """
    if len(documents) < 2:
        return None
    more = np.array([d.nats_changed - d.nats_original for d in documents]) / math.log(2)
    size = np.array([d.bytes for d in documents], np.float64)
    generator = np.random.default_rng(SEED)
    drawn = generator.integers(0, len(more), (RESAMPLES, len(more)))
    low, high = np.quantile(more[drawn].sum(1) / size[drawn].sum(1), (0.025, 0.975))
    return float(low), float(high)
