"""Beam search: the most probable targets of many sources at once.

Each source keeps ``beam`` unfinished targets. A step extends every one by every token and keeps the best that go on;
those that end compete by Σ log p / lengthᵅ. A source is done when nothing under way can still beat its ``beam``
finished targets (as far as the present length tells: transformers' ``early_stopping=False``). ``beam=1`` is greedy.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from hepta.config import HeptaError
from hepta.model.network import unembed
from hepta.model.translator import Translator

SPARE_TOKENS = 50  # targets may be this much longer than their source (Vaswani et al. 2017)


@dataclass(frozen=True)
class Hypothesis:
    """A finished target: ``ids`` without bos and eos; ``score`` = Σ log p (eos included) / lengthᵅ."""

    ids: list[int]
    score: float


@dataclass
class _Search:
    """One source on its way."""

    place: int  # in the list of sources
    limit: int  # most tokens of its target, eos included
    finished: list[Hypothesis] = field(default_factory=list)  # best first, at most ``beam``


class _Extension(NamedTuple):
    """One target by one token longer: which of the source's targets it extends, the token, its Σ log p."""

    parent: int
    token: int
    total: float


@torch.inference_mode()
def beam_search(
    model: Translator,
    sources: Sequence[Sequence[int]],
    beam: int = 4,
    length_penalty: float = 1.0,
    max_new_tokens: int | None = None,
    banned: Collection[int] = (),
) -> list[Hypothesis]:
    """The best target found for each source.

    Args:
        model: in evaluation mode, or dropout speaks too.
        sources: ids of each, ending with the eos id; computed together, so of similar lengths at best.
        beam: unfinished targets kept for each source.
        length_penalty: α; 0 compares sums, which favours short targets, 1 means per token.
        max_new_tokens: of each target, eos included; None: 50 more than its source has.
        banned: ids that are never chosen.

    Raises:
        HeptaError: an empty source, a beam below 1, or a model that names no bos or eos id.
    """
    bos, eos, words = model.config.bos_token_id, model.config.eos_token_id, model.config.vocab_size
    if beam < 1 or any(not source for source in sources):
        raise HeptaError(f"beam search: beam must be at least 1 and no source empty, found beam {beam}")
    if bos is None or not isinstance(eos, int):
        raise HeptaError(f"beam search: the model's config needs one bos and one eos id, found {bos} and {eos}")
    if not sources:
        return []
    live = [_Search(i, max_new_tokens or len(source) + SPARE_TOKENS) for i, source in enumerate(sources)]
    results = {}
    device = model.output_weight.device
    barred = torch.zeros(words).index_fill_(0, torch.tensor([*banned], dtype=torch.long), -torch.inf)
    memory = model.remember(*_pad(sources, device))
    memory = memory.select(torch.arange(len(sources), device=device).repeat_interleave(beam))
    cache = model.make_cache(len(live) * beam, max(search.limit for search in live), model.output_weight.dtype, device)
    targets = torch.full((len(live) * beam, 1), bos)  # (rows, tokens so far), ``beam`` rows for each source
    totals = torch.tensor([0.0, *[-torch.inf] * (beam - 1)]).repeat(len(live))  # one empty target, not ``beam``
    while live:
        positions = torch.full((len(targets), 1), targets.shape[1] - 1, device=device)
        hidden = model.decode(targets[:, -1:].to(device), memory, positions, cache)[:, -1]
        logits = unembed(hidden, model.output_weight, None).float()
        extended = logits.log_softmax(-1).cpu() + barred + totals[:, None]  # (rows, V)
        best = extended.view(len(live), -1).topk(min(2 * beam, extended[:beam].numel()))
        going: dict[int, list[_Extension]] = {}
        for n, search in enumerate(live):
            pairs = zip(best.values[n].tolist(), best.indices[n].tolist(), strict=True)
            ranked = [_Extension(index // words, index % words, total) for total, index in pairs]
            kept = _judge(search, ranked, targets[n * beam : (n + 1) * beam, 1:], beam, eos, length_penalty)
            if kept:
                going[n] = kept
            else:
                results[search.place] = search.finished[0]
        if len(going) < len(live):  # a source's rows are alike, so any of them will do
            of_source = [n * beam for n in going for _ in range(beam)]
            memory = memory.select(torch.tensor(of_source, dtype=torch.long, device=device))
        rows = torch.tensor([n * beam + one.parent for n, kept in going.items() for one in kept], dtype=torch.long)
        tokens = torch.tensor([one.token for kept in going.values() for one in kept], dtype=torch.long)
        totals = torch.tensor([one.total for kept in going.values() for one in kept])
        targets = torch.cat((targets[rows], tokens[:, None]), 1)
        cache.select(rows.to(device))
        live = [live[n] for n in going]
    return [results[place] for place in range(len(sources))]


def _judge(
    search: _Search, ranked: list[_Extension], targets: Tensor, beam: int, eos: int, length_penalty: float
) -> list[_Extension]:
    """Sort the best extensions of one source into finished and going on; empty when the source is done.

    Only those ranked within ``beam`` may finish; twice as many are looked at, so that ``beam`` always go on.

    Args:
        search: receives what finished.
        ranked: best first.
        targets: the source's targets so far (beam, tokens), bos left out.
        beam, eos, length_penalty: as in ``beam_search``.
    """
    length = targets.shape[1] + 1
    kept: list[_Extension] = []
    for rank, one in enumerate(ranked):
        ends = one.token == eos or length == search.limit
        if one.total == -torch.inf:
            break
        if ends and rank < beam:
            ids = targets[one.parent].tolist() + [one.token] * (one.token != eos)
            search.finished.append(Hypothesis(ids, one.total / length**length_penalty))
        elif not ends and len(kept) < beam:
            kept.append(one)
    search.finished = sorted(search.finished, key=lambda h: -h.score)[:beam]
    full = len(search.finished) == beam
    if not kept or (full and kept[0].total / length**length_penalty <= search.finished[-1].score):
        return []
    return kept + [_Extension(0, eos, -torch.inf)] * (beam - len(kept))


def _pad(sources: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Sources (B, S) and which of their positions are real."""
    longest = max(map(len, sources))
    ids = torch.tensor([[*source] + [0] * (longest - len(source)) for source in sources], device=device)
    return ids, torch.arange(longest, device=device) < torch.tensor([[len(s)] for s in sources], device=device)
