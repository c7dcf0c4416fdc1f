"""Score documents with a model that sees both sides: how well it knows masked words.

What it says of masked words multiplies to no probability of the text, so there are no bits per byte: the scores are
nats and accuracy over the masked tokens. Which words are masked depends on the document alone, so that two models
with one tokenizer are asked the same.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hepta.catalog.documents import Document
from hepta.data.masking import WordUnits, mask_words
from hepta.data.permutation import key_of
from hepta.evaluation.perplexity import Scores, Totals, buffered, encode_framed, of_document
from hepta.objectives.causal import IGNORE, token_losses
from hepta.tokenizer.load import Tokenizer

Part = tuple[int, np.ndarray, np.ndarray]  # document number, ids with masks, labels


def only_masked(scores: Scores) -> Scores:
    """The same without the definitions that a masked model has no part in."""
    return replace(
        scores, nats_per_token_sliding=None, perplexity_per_token_sliding=None, perplexity_per_word=None,
        bits_per_byte=None, bits_per_byte_sliding=None, bits_per_character=None, xz_bits_per_byte=None,
    )  # fmt: skip


def _windows(framed: list[list[int]], documents: list[Document], words: WordUnits, mask: int, T: int) -> Iterator[Part]:
    for number, (ids, document) in enumerate(zip(framed, documents, strict=True)):
        for start in range(0, len(ids), T):
            window = np.array(ids[start : start + T])
            yield number, *mask_words(window, words, mask, key_of("eval", document.doc_id, start))


@torch.no_grad()
def score_masked(
    model: Any, tokenizer: Tokenizer, documents: Iterable[Document], sequence_length: int, batch_tokens: int = 8192
) -> dict[tuple[str, str], Totals]:
    """Score masked words of documents, one bounded buffer at a time.

    Args: as ``score_documents``; ``model`` is a masked one.

    Returns:
        sums by (language, source), over masked tokens.

    Raises:
        HeptaError: token ids outside the model's vocabulary.
    """
    assert tokenizer.mask_id is not None
    found: dict[tuple[str, str], Totals] = defaultdict(Totals)
    words, training = WordUnits(tokenizer), model.training
    model.eval()
    for kept in buffered(documents, found):
        framed = encode_framed(kept, tokenizer, model.output_weight.shape[0])
        parts = sorted(_windows(framed, kept, words, tokenizer.mask_id, sequence_length), key=lambda part: len(part[1]))
        sums = [Totals() for _ in kept]
        while parts:
            rows = max(1, batch_tokens // len(parts[-1][1]))
            _score_batch(model, parts[-rows:], sums, tokenizer.pad_id)
            parts = parts[:-rows]
        for document, part in zip(kept, sums, strict=True):
            found[document.lang, document.source].add(of_document(document, part))
    model.train(training)
    return dict(found)


def _score_batch(model: Any, parts: list[Part], sums: list[Totals], pad: int) -> None:
    """Add each window's sums to its document's; rows are padded on the right, in a segment of its own."""
    shape, device = (len(parts), max(len(ids) for _, ids, _ in parts)), model.output_weight.device
    inputs, labels, segments = torch.full(shape, pad), torch.full(shape, IGNORE), torch.ones(shape, dtype=torch.long)
    for row, (_, ids, wanted) in enumerate(parts):
        inputs[row, : len(ids)], labels[row, : len(ids)] = torch.from_numpy(ids), torch.from_numpy(wanted)
        segments[row, : len(ids)] = 0
    labels = labels.to(device)
    result = model(
        inputs.to(device), segments.to(device), head=lambda hidden, head, bias: token_losses(hidden, head, labels, bias)
    )
    for row, (number, _, wanted) in enumerate(parts):
        sums[number].nats += float(result.losses[row].double().sum())
        sums[number].correct += int(result.correct[row].sum())
        sums[number].tokens += int((wanted != IGNORE).sum())
