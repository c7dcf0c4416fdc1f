"""Text that a model is measured on again and again: batches made once, losses per unit of text."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hepta.catalog.documents import Document, is_corpus, iter_documents, language_by_script
from hepta.config import HeptaError
from hepta.data.masking import WordUnits, mask_words
from hepta.data.permutation import key_of
from hepta.data.rows import TextEncoder
from hepta.data.tables import load_labelled
from hepta.evaluation.perplexity import encode_framed
from hepta.explanation.reading import Subject
from hepta.objectives.causal import IGNORE, token_losses

FEW_DOCUMENTS = 12  # fewer are no sample: their windows are then the units
LONGEST = 512
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Batch:
    """Passages read together: ids (B, T) padded on the right, labels (B, T), classes (B,) instead for a classifier."""

    ids: Tensor
    lengths: Tensor
    labels: Tensor
    units: Tensor  # unit of each row (B,)


class Passages:
    """A model and the text it is measured on.

    Attributes:
        weights: predictions of each unit (U,).
        tokens: real tokens read.
        bytes: UTF-8 of what is predicted; 0 where what is predicted is no text to be spelled out.
        unit: what a unit is: documents, windows or rows.
    """

    def __init__(self, subject: Subject, batches: list[Batch], unit: str, size: int) -> None:
        self.subject, self.batches, self.unit, self.bytes = subject, batches, unit, size
        count = 1 + max(int(batch.units.max()) for batch in batches)
        self.weights = np.zeros(count)
        for batch in batches:
            wanted = (batch.labels != IGNORE).reshape(len(batch.ids), -1).sum(1)
            np.add.at(self.weights, batch.units.numpy(), wanted.numpy())
        self.tokens = sum(int(batch.lengths.sum()) for batch in batches)

    @torch.no_grad()
    def losses(self) -> np.ndarray:
        """Summed loss of each unit (U,), nats."""
        sums = np.zeros(len(self.weights))
        for batch in self.batches:
            np.add.at(sums, batch.units.numpy(), self._row_losses(batch).double().numpy())
        return sums

    def read(self) -> Iterator[Tensor]:
        """Let the model read each batch; gives which positions are text (B, T)."""
        for batch in self.batches:
            self._row_losses(batch)
            yield torch.arange(batch.ids.shape[1]) < batch.lengths[:, None]

    def _row_losses(self, batch: Batch) -> Tensor:
        """(B,)"""
        if self.subject.classifier is not None:
            logits = self.subject.classifier(batch.ids, batch.lengths)
            return torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
        masked = self.subject.kind == "masked"
        segments = (torch.arange(batch.ids.shape[1]) >= batch.lengths[:, None]).long() if masked else None
        found = self.subject.network(
            batch.ids, segments, head=lambda hidden, head, bias: token_losses(hidden, head, batch.labels, bias)
        )
        return found.losses.sum(1)


def read_passages(subject: Subject, text: str, split: str, tokens: int) -> Passages:
    """The first ``tokens`` tokens of a corpus's split, of a file, or of the text itself; for a classifier a table.

    Raises:
        HeptaError: nothing to read, or a classifier without a table.
    """
    path = Path(text)
    there = os.path.exists(text)  # Path.exists raises where a text is too long for a name
    if subject.classifier is not None:
        if not there:
            raise HeptaError(f"{subject.directory}: a classifier is measured on labelled rows; give --text TABLE")
        return _rows(subject, path, tokens)
    if there or _names_a_file(text):
        documents = iter_documents(path, split if is_corpus(path) else None)
    else:
        documents = iter([Document("0", text, "text", language_by_script(text), "")])
    return _documents(subject, documents, tokens)


def _names_a_file(text: str) -> bool:
    """Whether a text is meant as a path: it ends like a file, or is one Latin word with a slash inside."""
    slashed = "/" in text and text.isascii() and not any(c.isspace() for c in text)
    return slashed or text.endswith((".txt", ".jsonl"))


def _documents(subject: Subject, documents: Iterator[Document], tokens: int) -> Passages:
    tokenizer, vocabulary = subject.tokenizer, subject.network.config.vocab_size
    length = min(LONGEST, subject.network.config.longest or LONGEST)
    words = WordUnits(tokenizer) if subject.kind == "masked" else None
    rows: list[tuple[int, np.ndarray, np.ndarray]] = []  # document, ids, labels
    left, names = tokens, []
    for document in documents:
        if left <= 0:
            break
        if not document.text:
            continue
        framed = np.array(encode_framed([document], tokenizer, vocabulary)[0][: left + 1], np.int64)
        left -= len(framed) - 1
        names.append(document.doc_id)
        for start in range(0, len(framed) - (words is None), length):
            ids = framed[start : start + length + (words is None)]
            if words is None:
                rows.append((len(names) - 1, ids[:-1], ids[1:]))
            else:
                assert tokenizer.mask_id is not None
                key = key_of("eval", names[-1], start)
                rows.append((len(names) - 1, *mask_words(ids, words, tokenizer.mask_id, key)))
    if not rows:
        raise HeptaError("no text to measure on; give --text a corpus, a file or some sentences")
    unit = "documents" if len(names) >= FEW_DOCUMENTS else "windows"
    units = [row[0] if unit == "documents" else number for number, row in enumerate(rows)]
    predicted = [i for _, _, labels in rows for i in labels.tolist() if i not in tokenizer.special_ids]
    size = 0 if words is not None else sum(len(tokenizer.token_bytes(i)) for i in predicted)
    return Passages(subject, _batches([row[1:] for row in rows], units, tokenizer.pad_id), unit, size)


def _rows(subject: Subject, path: Path, tokens: int) -> Passages:
    classifier = subject.classifier
    assert classifier is not None
    if classifier.task.is_number:
        raise HeptaError(f"{subject.directory}: tells a number; only what costs nats, classes and tokens, is measured")
    labelled, _ = load_labelled(path, "classify")
    known = {label: number for number, label in enumerate(classifier.task.labels)}
    encoder = TextEncoder(subject.tokenizer, classifier.task.sequence_length)
    rows, left = [], tokens
    for row in labelled:
        if left <= 0:
            break
        if str(row.label) in known:
            ids = encoder(row.text).astype(np.int64)
            left -= len(ids)
            rows.append((ids, np.array([known[str(row.label)]])))
    if not rows:
        raise HeptaError(f"{path}: no row has one of the classes {', '.join(known)}; give the table it was tuned for")
    return Passages(subject, _batches(rows, list(range(len(rows))), subject.tokenizer.pad_id, True), "rows", 0)


def _batches(rows: list[tuple[Any, Any]], units: list[int], pad: int, classes: bool = False) -> list[Batch]:
    """Rows of about equal length together; ``classes``: a row's one label is of the whole row."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number][0]))
    batches: list[Batch] = []
    while order:
        count = max(1, BATCH_TOKENS // len(rows[order[-1]][0]))
        part, order = order[-count:], order[:-count]
        longest = len(rows[part[-1]][0])
        ids, labels = torch.full((len(part), longest), pad), torch.full((len(part), longest), IGNORE)
        for place, number in enumerate(part):
            found, wanted = rows[number]
            ids[place, : len(found)] = torch.from_numpy(found)
            labels[place, : len(wanted)] = torch.from_numpy(wanted)
        lengths = torch.tensor([len(rows[number][0]) for number in part])
        batches.append(Batch(ids, lengths, labels[:, 0] if classes else labels, torch.tensor([units[n] for n in part])))
    return batches
