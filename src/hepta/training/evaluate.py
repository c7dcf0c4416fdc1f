"""Held-out scores of a model as it trains: loss, bits per byte, accuracy, and whether it ends its answers."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hepta.objectives.causal import IGNORE, Causal
from hepta.training.world import ALONE, World


@dataclass
class Totals:
    """Sums over supervised positions; adding sums weights every token alike (trap S13)."""

    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0  # UTF-8 bytes that the supervised tokens spell
    correct: int = 0
    stop_probability: float = 0.0  # summed over the positions whose label is a stop token
    stops: int = 0

    def add(self, other: "Totals") -> None:
        """Add another's sums."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def loss(self) -> float:
        """Nats per supervised token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def bpb(self) -> float:
        """Bits per byte of the text predicted."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def accuracy(self) -> float:
        """Share of tokens whose most probable prediction was right."""
        return self.correct / self.tokens if self.tokens else math.nan

    @property
    def p_stop(self) -> float | None:
        """Mean probability of the stop token where an answer ends; None where no answer ends."""
        return self.stop_probability / self.stops if self.stops else None


@dataclass
class Scores:
    """Totals per language, per source and over all."""

    by_language: dict[str, Totals] = field(default_factory=lambda: defaultdict(Totals))
    by_source: dict[str, Totals] = field(default_factory=lambda: defaultdict(Totals))
    by_document: dict[tuple[str, str, str], Totals] | None = None  # (document, source, language) → sums, if wanted

    def add(self, part: Totals, language: str, source: str, document: str) -> None:
        """Add the sums of one segment."""
        self.by_language[language].add(part)
        self.by_source[source].add(part)
        if self.by_document is not None:
            self.by_document[document, source, language].add(part)

    @property
    def overall(self) -> Totals:
        """The sum over languages."""
        result = Totals()
        for totals in self.by_language.values():
            result.add(totals)
        return result

    def over(self, world: World) -> "Scores":
        """The sums over all processes."""
        if world.size == 1:
            return self
        documents: dict[Any, Totals] = defaultdict(Totals)
        whole = Scores(by_document=None if self.by_document is None else documents)
        tables = [list(table.items()) for table in (self.by_language, self.by_source, self.by_document or {})]
        for languages, sources, names in world.gather([[(key, vars(sums)) for key, sums in t] for t in tables]):
            for table, rows in ((whole.by_language, languages), (whole.by_source, sources)):
                for key, sums in rows:
                    table[key].add(Totals(**sums))
            for key, sums in names:
                documents[tuple(key)].add(Totals(**sums))
        return whole

    def row(self) -> dict[str, Any]:
        """The evaluation row: ``val_loss, val_bpb, val_accuracy`` and, where answers end, ``p_stop``."""
        whole = self.overall
        row: dict[str, Any] = {
            "val_loss": whole.loss,
            "val_bpb": {"all": whole.bpb, **{lang: t.bpb for lang, t in sorted(self.by_language.items()) if t.bytes}},
            "val_accuracy": whole.accuracy,
            "val_tokens": whole.tokens,
        }
        told = {source: totals.loss for source, totals in sorted(self.by_source.items()) if totals.tokens}
        if len(told) > 1:
            row["val_loss_by_source"] = told
        return row if whole.p_stop is None else {**row, "p_stop": whole.p_stop}


def bytes_per_token(tokenizer: Any, vocabulary: int) -> Tensor:
    """UTF-8 bytes that each id spells (V,); special and padded ids spell none."""
    special = tokenizer.special_ids
    return torch.tensor(
        [0 if i >= tokenizer.size or i in special else len(tokenizer.token_bytes(i)) for i in range(vocabulary)]
    )


def _add_batch(
    scores: Scores, losses: Tensor, correct: Tensor, batch: dict[str, Tensor], order: Any, first: int,
    widths: Tensor, stops: Tensor,
) -> None:  # fmt: skip
    """Add what a batch, which begins with sequence ``first``, says of each segment.

    Without a document mask a window is one segment, and counts as its first document's.
    """
    for row in range(len(losses)):
        n = first + row
        languages, sources, names = order.languages(n), order.sources(n), order.where(n)
        labels, segments = batch["labels"][row], batch["segment_ids"][row]
        here = (labels != IGNORE) & (segments < len(languages))
        wanted, nats = labels[here], losses[row][here].double()
        ends = torch.isin(wanted, stops).double()
        columns = (nats, torch.ones_like(nats), widths[wanted], correct[row][here], torch.exp(-nats) * ends, ends)
        sums = torch.zeros(len(languages), len(columns), dtype=torch.float64)
        sums.index_add_(0, segments[here], torch.stack([column.double() for column in columns], 1))
        for place, (spent, tokens, size, right, chance, stopped) in enumerate(sums.tolist()):
            part = Totals(spent, int(tokens), int(size), int(right), chance, int(stopped))
            scores.add(part, languages[place], sources[place], names[place])


@torch.no_grad()
def evaluate(
    model: nn.Module,
    objective: Causal,
    order: Any,
    widths: Tensor,
    stop_ids: Sequence[int],
    micro: int,
    most_tokens: int | None = None,
    world: World = ALONE,
) -> Scores:
    """Score held-out sequences; memory does not grow with their number, but for six sums a document where all are read.

    Several processes take batches in turn and add their totals: each forward pass of a sharded model needs all of
    them, so those that are left without a batch at the end score the last one again, for nothing.

    P(stop) is the probability of the stop token at the position of the last answer token, that is, where
    the label is the stop token that ends an assistant's turn.

    Args:
        model: set to evaluation mode here, and back.
        objective: gives the loss of each position.
        order: held-out sequences, which name the language and document of each segment, and the source.
        widths: see ``bytes_per_token``.
        stop_ids: ids that end a turn.
        micro: sequences per forward pass.
        most_tokens: read about this many tokens at most; None reads all.
        world: the processes that share the work.
    """
    scores, count, training = Scores(), order.sequences_per_epoch, model.training
    if most_tokens is None:
        scores.by_document = defaultdict(Totals)
    model.eval()
    stops = torch.tensor(list(stop_ids))
    device = next(model.parameters()).device
    starts = range(0, count, micro)
    if most_tokens is not None:
        starts = starts[: math.ceil(most_tokens / (micro * order.batch(0, 1)["labels"].size))]
    for turn in range(world.reader, len(starts) + world.reader, world.readers):
        start = starts[min(turn, len(starts) - 1)]
        size = min(micro, count - start)
        batch = {name: torch.from_numpy(np.asarray(value)) for name, value in order.batch(start, size).items()}
        result = objective.scores(model, {name: value.to(device) for name, value in batch.items()})
        if turn < len(starts):
            _add_batch(scores, result.losses.cpu(), result.correct.cpu(), batch, order, start, widths, stops)
    model.train(training)
    return scores.over(world)


def describe_evaluation(row: dict[str, Any], vocabulary: int) -> str:
    """An evaluation row as one line; a language model's with the loss of guessing evenly beside it."""
    parts = [f"step {row['step']}: val_loss {row['val_loss']:.4f}"]
    if "val_tokens" in row:
        parts[0] += f" (even guessing {math.log(vocabulary):.4f})"
    if "val_bpb" in row:
        bpb = "  ".join(f"{lang} {value:.3f}" for lang, value in row["val_bpb"].items() if lang != "all")
        parts.append(f"bits/byte {bpb}")
    if "val_accuracy" in row:
        parts.append(f"accuracy {row['val_accuracy']:.1%}")
    if "p_stop" in row:
        parts.append(f"P(stop) {row['p_stop']:.3f}")
    return "  ".join(parts)
