"""Score documents: the model's nats over their tokens, kept as sums from which every definition follows.

A document of tokens t₁ … tₙ is read as ``[bos] t₁ … tₙ [eos]``; every token after the first is predicted once,
the end of the document too. Longer documents than the context T are cut into windows, and *perplexity of long
text* depends on how, so one pass keeps two sums:

- *windows*: the document cut every T tokens; the first token of a window sees only the token before it.
- *sliding*: windows every T / 2 tokens, each token taken where it sees the most: at least T / 2 tokens of context.

The windows of the first are every second window of the other, so nothing is computed twice.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, Protocol

import torch

from hepta.catalog.documents import Document
from hepta.config import HeptaError
from hepta.objectives.causal import IGNORE, TokenScores, token_losses

BY_CHARACTER = ("zh", "ja", "yue", "th", "lo", "km", "my")  # written without spaces: a character counts as a word
BUFFERED_DOCUMENTS = 64


class Encoder(Protocol):
    """What scoring needs of a tokenizer."""

    bos_id: int
    eos_id: int

    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...


@dataclass
class Totals:
    """Sums over documents; every score is a ratio of two of them."""

    documents: int = 0
    tokens: int = 0  # predicted, ends of documents included
    bytes: int = 0  # UTF-8
    characters: int = 0
    words: int = 0  # between white space; characters where a language writes without spaces
    nats: float = 0.0  # windows
    nats_sliding: float = 0.0
    correct: int = 0  # windows: the most probable token was the right one
    document_means: float = 0.0  # Σ over documents of nats per token, windows
    empty: int = 0  # documents without text, which are not scored

    def add(self, other: "Totals") -> None:
        """Add another's sums."""
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))


@dataclass
class Scores:
    """Every definition, named. None where nothing was scored, or e^nats is too large for a float."""

    documents: int
    tokens: int
    bytes: int
    characters: int
    words: int
    empty_documents: int
    nats_per_token: float | None
    nats_per_token_sliding: float | None
    perplexity_per_token: float | None
    perplexity_per_token_sliding: float | None
    perplexity_per_document: float | None
    perplexity_per_word: float | None
    bits_per_byte: float | None
    bits_per_byte_sliding: float | None
    bits_per_character: float | None
    accuracy: float | None
    xz_bits_per_byte: float | None = None


def _ratio(above: float, below: float) -> float | None:
    return above / below if below and math.isfinite(above) else None


def _exp(nats: float | None) -> float | None:
    return None if nats is None or nats > 700 else math.exp(nats)


def scores(totals: Totals, xz_bits_per_byte: float | None = None) -> Scores:
    """All definitions from one set of sums."""
    mean, sliding = _ratio(totals.nats, totals.tokens), _ratio(totals.nats_sliding, totals.tokens)
    bits = totals.nats / math.log(2)
    return Scores(
        documents=totals.documents, tokens=totals.tokens, bytes=totals.bytes, characters=totals.characters,
        words=totals.words, empty_documents=totals.empty,
        nats_per_token=mean, nats_per_token_sliding=sliding,
        perplexity_per_token=_exp(mean), perplexity_per_token_sliding=_exp(sliding),
        perplexity_per_document=_exp(_ratio(totals.document_means, totals.documents)),
        perplexity_per_word=_exp(_ratio(totals.nats, totals.words)),
        bits_per_byte=_ratio(bits, totals.bytes),
        bits_per_byte_sliding=_ratio(totals.nats_sliding / math.log(2), totals.bytes),
        bits_per_character=_ratio(bits, totals.characters),
        accuracy=_ratio(totals.correct, totals.tokens),
        xz_bits_per_byte=xz_bits_per_byte,
    )  # fmt: skip


def count_words(text: str, lang: str) -> int:
    """Words between white space; in languages written without spaces, characters that are not white space."""
    words = text.split()
    return sum(len(word) for word in words) if lang in BY_CHARACTER else len(words)


@dataclass(frozen=True)
class Window:
    """Inputs ``ids[start : start + length]`` of one document, and who counts which of their next tokens."""

    document: int
    start: int
    length: int
    counted: bool  # in the windows sum
    sliding_from: int  # first position that the sliding sum takes from this window


def cut_windows(size: int, length: int, document: int = 0) -> Iterator[Window]:
    """Cut one document into the windows of both definitions.

    Args:
        size: its tokens with bos and eos; all but the first are predicted.
        length: T, even.
        document: number given to its windows.
    """
    step, predicted = length // 2, size - 1
    for number, start in enumerate(range(0, predicted, step)):
        counted = number % 2 == 0
        overlap = step if number else 0  # these were seen with more context by the window before
        if counted or start + overlap < predicted:
            yield Window(document, start, min(length, predicted - start), counted, overlap)


def _score_batch(model: Any, windows: list[Window], framed: list[list[int]], device: torch.device) -> TokenScores:
    """Losses (B, T) and hits (B, T) of windows padded on the right, where a causal model never looks."""
    longest = max(window.length for window in windows)
    inputs = torch.zeros((len(windows), longest), dtype=torch.long)
    labels = torch.full((len(windows), longest), IGNORE, dtype=torch.long)
    for row, window in enumerate(windows):
        ids = torch.tensor(framed[window.document][window.start : window.start + window.length + 1])
        inputs[row, : window.length], labels[row, : window.length] = ids[:-1], ids[1:]
    labels = labels.to(device)
    return model(inputs.to(device), head=lambda hidden, head, bias: token_losses(hidden, head, labels, bias))


def encode_framed(documents: list[Document], tokenizer: Encoder, vocabulary: int) -> list[list[int]]:
    """Each document's ids between its bos and its eos."""
    encoded = tokenizer.encode_batch([document.text for document in documents])
    highest = max((max(ids) for ids in encoded if ids), default=0)
    if highest >= vocabulary:
        raise HeptaError(f"token id {highest} is outside the model's {vocabulary} rows; the tokenizer is another's")
    return [[tokenizer.bos_id, *ids, tokenizer.eos_id] for ids in encoded]


@torch.no_grad()
def score_documents(
    model: Any, tokenizer: Encoder, documents: Iterable[Document], sequence_length: int, batch_tokens: int = 8192
) -> dict[tuple[str, str], Totals]:
    """Score documents one bounded buffer at a time; memory does not grow with their number.

    Args:
        model: a decoder, ``forward(input_ids (B, T), head=…)``; set to evaluation mode here, and back.
        tokenizer: its tokenizer.
        documents: what to score.
        sequence_length: T, the most tokens the model sees at once (an odd one is rounded down).
        batch_tokens: tokens in one forward pass.

    Returns:
        sums by (language, source).

    Raises:
        HeptaError: token ids outside the model's vocabulary.
    """
    length = max(2, sequence_length - sequence_length % 2)
    found: dict[tuple[str, str], Totals] = defaultdict(Totals)
    training, device = model.training, model.output_weight.device
    model.eval()
    for kept in buffered(documents, found):
        framed = encode_framed(kept, tokenizer, model.output_weight.shape[0])
        windows = [w for number, ids in enumerate(framed) for w in cut_windows(len(ids), length, number)]
        windows.sort(key=lambda window: window.length)  # rows of about one length: little padding
        sums = [Totals() for _ in kept]
        while windows:
            rows = max(1, batch_tokens // windows[-1].length)
            batch, windows = windows[-rows:], windows[:-rows]
            _add(sums, batch, _score_batch(model, batch, framed, device))
        for document, part in zip(kept, sums, strict=True):
            found[document.lang, document.source].add(of_document(document, part))
    model.train(training)
    return dict(found)


def buffered(documents: Iterable[Document], found: dict[tuple[str, str], Totals]) -> Iterator[list[Document]]:
    """Documents with text, a bounded buffer at a time; those without are counted in ``found``, which makes its keys."""
    stream = iter(documents)
    while buffer := list(islice(stream, BUFFERED_DOCUMENTS)):
        for document in buffer:
            found[document.lang, document.source].empty += not document.text
        yield [document for document in buffer if document.text]


def _add(sums: list[Totals], windows: list[Window], result: TokenScores) -> None:
    """Give each window's losses to its document's sums."""
    losses, correct = result.losses.double().cpu(), result.correct.cpu()
    for row, window in enumerate(windows):
        part, end = sums[window.document], window.length
        part.nats_sliding += float(losses[row, window.sliding_from : end].sum())
        if window.counted:
            part.nats += float(losses[row, :end].sum())
            part.correct += int(correct[row, :end].sum())
            part.tokens += end


def of_document(document: Document, part: Totals) -> Totals:
    """What was summed over a document's tokens, with the document's own counts beside it."""
    part.documents = 1
    part.bytes = len(document.text.encode("utf-8", "surrogatepass"))  # half a pair is read as U+FFFD, three bytes too
    part.characters = len(document.text)
    part.words = count_words(document.text, document.lang)
    part.document_means = part.nats / max(part.tokens, 1)  # a masked model may be asked for none of them
    return part
