"""``hepta explain attribution``: which words of a text a model's answer rests on, as a page and as facts.

Two accounts stand beside each other: what the method gives each word, in parts that sum to the whole, and what the
score loses when that word alone is hidden. Where they agree, the account can be trusted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hepta.config import HeptaError
from hepta.console import progress, warn
from hepta.data.masking import WordUnits
from hepta.explanation.config import AttributionConfig
from hepta.explanation.gradients import (
    MOST_STEPS,
    Attribution,
    Done,
    Question,
    gradient_input,
    integrated_gradients,
    occlusion,
)  # fmt: skip
from hepta.explanation.page import Explained, explained, page_path
from hepta.explanation.reading import Piece, Reading, Subject, open_subject, read_text
from hepta.explanation.target import Target, embedding_of, find_targets, read_chat


@dataclass(frozen=True)
class Word:
    """A word of the text: its characters [start, end), and its tokens as numbers of ``Case.places``."""

    start: int
    end: int
    tokens: list[int]


def explain_attribution(config: AttributionConfig) -> Explained:
    """Write the page of what decided a model's answer.

    Raises:
        HeptaError: a translator, an answer that this model cannot give, a method that it has no gradients for, a text
            that is too long.
    """
    path = page_path("attribution", config.output)
    subject = open_subject(config.model, config.threads)
    (subject.classifier or subject.network).requires_grad_(False)
    reading = read_chat(subject, config.text) if config.chat else read_text(subject, config.text)
    if reading.cut:
        warn(f"the text has {reading.cut} tokens more than this model reads; they decide nothing")
    case = find_targets(subject, reading, config.target)
    method = _method(subject, config.method)
    name, baseline = _baseline(subject, config.baseline)
    words = find_words(subject, reading, case.places)
    rows = MOST_STEPS if config.steps is None and method == "integrated" else config.steps or len(case.places)
    with progress("attribution, at most", rows * len(case.targets), "steps") as bar:
        groups = [[case.places[token] for token in word.tokens] for word in words]
        views = [_view(target, groups, method, baseline, config.steps, bar.advance) for target in case.targets]
    facts = {
        "format": 1, "kind": "attribution", "model": config.model,
        "family": type(subject.network).__name__, "task": case.task, "chat": config.chat, "text": reading.text,
        "method": method, "baseline": name, "cut": reading.cut, **_text_facts(reading, case.places, words),
        "answers": [{"text": text, "probability": chance} for text, chance in case.answers], "views": views,
    }  # fmt: skip
    return explained("attribution", ("Which words decided", "哪些词起了决定作用"), facts, path)


def _method(subject: Subject, method: str | None) -> str:
    """The method asked for, or what suits the model.

    Raises:
        HeptaError: gradients of a model that counts.
    """
    counts = embedding_of(subject.network) is None
    if method is None:
        return "occlusion" if counts else "integrated"
    if counts and method != "occlusion":
        raise HeptaError(
            f"{subject.directory}: an n-gram model counts and has no gradients; "
            "use --method occlusion"
        )
    return method


def _baseline(subject: Subject, wanted: str | None) -> tuple[str, Tensor | None]:
    """The embedding that says nothing (D,), and its name: the mask token's where there is one, else the padding's.

    Raises:
        HeptaError: a mask is wanted of a tokenizer that has none.
    """
    embedding, tokenizer = embedding_of(subject.network), subject.tokenizer
    if embedding is None:
        return "left out", None
    name = wanted or ("mask" if tokenizer.mask_id is not None and subject.kind == "masked" else "pad")
    if name == "zero":
        return name, torch.zeros(embedding.embedding_dim)
    token = tokenizer.mask_id if name == "mask" else tokenizer.pad_id
    if token is None:
        raise HeptaError(f"{tokenizer.path}: names no mask_token; use baseline=pad or baseline=zero")
    return name, embedding(torch.tensor(token)).detach()


def _view(
    target: Target, groups: list[list[int]], method: str, baseline: Tensor | None, steps: int | None, done: Done
) -> dict[str, Any]:
    """Everything told of one target; ``groups`` are the places of each word's tokens."""
    question = target.question
    found = _attribute(question, method, baseline, steps, done)
    by_place = dict(zip(question.places.tolist(), found.values.tolist(), strict=True))
    hidden = occlusion(question, baseline, groups)
    return {
        "target": target.name, "unit": target.unit, "probability": target.probability, "score": found.score,
        "hidden_score": hidden.baseline_score, "tokens": found.values.tolist(),
        "words": [sum(by_place[place] for place in group) for group in groups], "hidden": hidden.values.tolist(),
        "sum": float(found.values.sum()), "steps": found.steps, "gap": found.gap, "gap_share": found.gap_share,
        "gap_bound": found.bound if found.steps else None,
    }  # fmt: skip


def _attribute(question: Question, method: str, baseline: Tensor | None, steps: int | None, done: Done) -> Attribution:
    if method == "occlusion":
        return occlusion(question, baseline, done=done)
    if method == "gradient":
        return gradient_input(question, done)
    assert baseline is not None
    return integrated_gradients(question, baseline, steps, done)


def find_words(subject: Subject, reading: Reading, places: Sequence[int]) -> list[Word]:
    """The words that the tokens make up: pieces of words and of characters joined, Chinese cut by jieba.

    A token of nothing but blanks belongs to the word after it.
    """
    units = WordUnits(subject.tokenizer).units(np.array(reading.ids, np.int64))
    words: list[Word] = []
    unit, blank = -1, False
    for token, place in enumerate(places):
        piece = reading.pieces[place]
        if words and (units[place] == unit or blank):
            word = words[-1]
            words[-1] = Word(word.start, max(word.end, piece.end), [*word.tokens, token])
        else:
            words.append(Word(max(piece.start, words[-1].end if words else 0), piece.end, [token]))
        unit, blank = units[place], not reading.text[words[-1].start : words[-1].end].strip()
    return words


def _text_facts(reading: Reading, places: Sequence[int], words: Sequence[Word]) -> dict[str, Any]:
    """The text in parts, each a word or what lies between words; and the tokens of every word."""
    parts: list[dict[str, Any]] = []
    end = 0
    for number, word in enumerate(words):
        text = reading.text[word.start : word.end]
        start = word.start + len(text) - len(text.lstrip()) if text.strip() else word.start
        parts += [{"text": reading.text[end:start]}] if start > end else []
        parts.append({"text": reading.text[start : word.end], "word": number})
        end = word.end
    parts += [{"text": reading.text[end:], **({"cut": True} if reading.cut else {})}] if end < len(reading.text) else []
    pieces: list[Piece] = [reading.pieces[place] for place in places]
    named = [reading.text[word.start : word.end].strip() or "␣" for word in words]
    return {
        "parts": parts,
        "words": [{"text": text, "tokens": word.tokens} for text, word in zip(named, words, strict=True)],
        "tokens": [
            {"id": reading.ids[place], "text": piece.text} for place, piece in zip(places, pieces, strict=True)
        ],
    }  # fmt: skip
