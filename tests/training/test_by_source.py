"""Promises of the training loss by source: a token's loss counts where the token came from, and nothing else moves."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ByteOrder, TwoSources, half_padding, tiny_job, tiny_run
from torch.nn import functional as F

from hepta.data.around import Around
from hepta.data.order import IGNORE
from hepta.objectives.causal import Causal, LossSum, causal_loss
from hepta.objectives.translation import smoothed
from hepta.training.by_source import loss_by_source
from hepta.training.metrics import read_rows


class ThreeSources(ByteOrder):
    """Windows whose second half is of one source and whose first half is of one of two."""

    source_names = ("even", "odd", "tail", "never read")

    def sources(self, n: int) -> list[str]:
        return ["odd" if self.index(n) % 2 else "even", "tail"]


class Noted(Causal):
    """``Causal``, with every token's loss taken again by torch from all logits, kept by window of text."""

    def __call__(self, model: Any, batch: Any) -> LossSum:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            logits = model(**inputs).transpose(1, 2)
            terms = F.cross_entropy(logits, batch["labels"], ignore_index=IGNORE, reduction="none")
        NOTES.extend(zip(batch["labels"].tolist(), terms.tolist(), strict=True))
        return super().__call__(model, batch)


NOTES: list[tuple[list[int], list[float]]] = []  # labels and losses of each sequence trained on


def step_rows(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_rows(run / "metrics.jsonl") if "grad_norm" in row]


@pytest.mark.parametrize("micro", [1, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_each_step_tells_the_mean_loss_of_each_source(tmp_path: Path, micro: int, padded: bool) -> None:
    """Against torch's loss of single tokens, several documents of different sources in a sequence; rel 1e-5."""
    job = tiny_job(tmp_path / "run")
    job.train, job.objective = ThreeSources(32, 19, poison=(5,)), Noted()
    job = half_padding(job) if padded else job
    NOTES.clear()
    tiny_run(tmp_path / "run", job, max_steps=6, micro_batch=micro)
    rows = step_rows(tmp_path / "run")
    assert len(NOTES) == 4 * len(rows) == 24
    for step, row in enumerate(rows):
        found: dict[str, list[float]] = defaultdict(list)
        for n in range(4 * step, 4 * step + 4):
            for place, (label, term) in enumerate(zip(*NOTES[n], strict=True)):
                if label != IGNORE:
                    found[job.train.sources(n)[place // 16]].append(term)
        assert row["tokens_by_source"] == {name: len(terms) for name, terms in found.items()}
        assert row["loss_by_source"] == pytest.approx({name: np.mean(terms) for name, terms in found.items()}, rel=1e-5)
        whole = sum(loss * row["tokens_by_source"][name] for name, loss in row["loss_by_source"].items())
        assert whole / sum(row["tokens_by_source"].values()) == pytest.approx(row["loss"], rel=1e-6)


def test_telling_sources_apart_changes_no_bit_of_a_run(tmp_path: Path) -> None:
    def run(name: str, names: tuple[str, ...]) -> tuple[str, list[dict[str, Any]]]:
        job = tiny_job(tmp_path / name)
        job.train = TwoSources(32, 19)
        job.train.source_names = names
        return tiny_run(tmp_path / name, job, max_steps=5).weights_sha256, step_rows(tmp_path / name)

    (told, rows), (untold, plain) = run("told", ("left", "right")), run("untold", ("left",))
    assert told == untold
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain]
    assert all("loss_by_source" in row for row in rows)
    assert not any("loss_by_source" in row for row in plain), "one source's loss is the loss"


def test_sources_are_told_with_updates_in_the_backward_pass(tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "run")
    job.train = TwoSources(32, 19)
    tiny_run(tmp_path / "run", job, max_steps=3, micro_batch=4, update_in_backward=True)
    assert all(set(row["loss_by_source"]) == {"left", "right"} for row in step_rows(tmp_path / "run"))


def test_what_is_read_around_left_out_sequences_keeps_its_source() -> None:
    """After a rollback the n-th sequence is another one, and its source that one's."""
    order = ThreeSources(32, 19)
    reading = Around(order, [[4, 8]])
    batch = {name: torch.from_numpy(value) for name, value in reading.batch(8, 4).items()}
    rows = torch.arange(1.0, 5.0)[:, None].expand(4, 32)  # nats that tell the sequences apart
    found = loss_by_source(reading, order.source_names, 8, [batch], [rows.masked_fill(batch["labels"] == IGNORE, 0.0)])
    read, unread = ([order.sources(n)[0] for n in range(first, first + 4)] for first in (12, 8))
    assert read != unread
    for name in set(read):
        of_it = [place + 1.0 for place, source in enumerate(read) if source == name]
        assert found["loss_by_source"][name] == np.mean(of_it)
        assert found["tokens_by_source"][name] == 15 * len(of_it)
    assert found["loss_by_source"]["tail"] == 2.5


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_terms_of_the_loss_stand_where_their_labels_stand(share: float) -> None:
    """Chunks, rows gathered or not, and a smoothing kernel; against torch, 1e-5."""
    torch.manual_seed(0)
    hidden, head = torch.randn(2, 300, 8), torch.randn(50, 8)
    labels = torch.randint(0, 50, (2, 300)).masked_fill(torch.rand(2, 300) < share, IGNORE)
    logits = (hidden @ head.T).transpose(1, 2)
    for smoothing in (0.0, 0.1):
        kernel = {"kernel": smoothed(smoothing)} if smoothing else {}
        found = causal_loss(hidden, head, labels, chunk=256, **kernel)
        wanted = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none", label_smoothing=smoothing)
        assert found.losses is not None
        assert not found.losses.requires_grad
        torch.testing.assert_close(found.losses, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.losses.sum(), found.total, rtol=1e-6, atol=1e-3)
