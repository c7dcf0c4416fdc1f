"""Multiple choice without tuning: the choice whose text a language model finds likeliest after the question.

A choice counts by the sum of its tokens' log-probabilities (``acc`` of lm-evaluation-harness), and by that divided by
the choice's bytes (its ``acc_norm``, where letters are bytes). The prompt is ``Question: …\\nAnswer:``, what is scored
follows it after a space.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hepta.config import HeptaError
from hepta.data.files import RowError, RowFaults, find_files, read_rows
from hepta.objectives.causal import IGNORE, token_losses


@dataclass(frozen=True)
class Question:
    """A question, its choices, and which of them is right."""

    text: str
    choices: tuple[str, ...]
    answer: int


def load_questions(path: Path, most: int | None) -> list[Question]:
    """Read rows ``{question, choices, answer}``; the answer is a choice's number from 0, its letter, or its text.

    Raises:
        HeptaError: no such file, or a row that is no question (file and row).
    """
    questions: list[Question] = []
    faults = RowFaults("error")
    for file, _ in find_files(path, (".jsonl", ".json", ".parquet"), "questions"):
        for number, row in read_rows(file, faults):
            if most is None or len(questions) < most:
                try:
                    questions.append(_question(row or {}))
                except RowError as error:
                    raise HeptaError(f"{file}: row {number}: {error}") from None
    if not questions:
        raise HeptaError(f"{path}: no rows")
    return questions


def _question(row: dict[str, Any]) -> Question:
    text, choices, answer = row.get("question"), row.get("choices"), row.get("answer")
    if not isinstance(text, str) or not isinstance(choices, list) or len(choices) < 2 or answer is None:
        seen = ", ".join(row)
        raise RowError(f"needs question (text), choices (a list) and answer; found {seen or 'nothing'}")
    names = [str(choice) for choice in choices]
    if not all(name.strip() for name in names):
        raise RowError("a choice is empty; write what it says")
    letters = [chr(ord("A") + i) for i in range(len(names))]
    for known in (list(range(len(names))), names, letters):
        if answer in known:
            return Question(text, tuple(names), known.index(answer))
    raise RowError(f"answer {answer!r} is neither a number below {len(names)}, a letter nor one of the choices")


@torch.no_grad()
def answer_questions(
    model: Any, tokenizer: Any, questions: Sequence[Question], batch_tokens: int = 4096, done: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which choice a causal model takes.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        questions: what is asked; a question and its choices are encoded apart, as one would be typed after the other.
        batch_tokens: tokens in one forward pass.
        done: called with the number of choices after each batch.

    Returns:
        choices by sum of log-probabilities, and by that per byte, both (N,).

    Raises:
        HeptaError: a question longer than the model reads.
    """
    rows: list[tuple[int, list[int], int]] = []  # question and choice as one number, ids, tokens of the prompt
    spans, longest = [], model.config.longest
    for question in questions:
        prompt = [tokenizer.bos_id, *tokenizer.encode(f"Question: {question.text}\nAnswer:")]
        spans.append((len(rows), len(rows) + len(question.choices)))
        for choice in question.choices:
            ids = prompt + tokenizer.encode(f" {choice}")
            if longest is not None and len(ids) > longest + 1:
                raise HeptaError(f"question {question.text[:40]!r}: {len(ids)} tokens, the model reads {longest}")
            rows.append((len(rows), ids, len(prompt)))
    logprobs = np.zeros(len(rows))
    ordered = sorted(rows, key=lambda row: len(row[1]))
    while ordered:
        count = max(1, batch_tokens // len(ordered[-1][1]))
        batch, ordered = ordered[-count:], ordered[:-count]
        _score(model, batch, logprobs)
        if done is not None:
            done(len(batch))
    sizes = [len(choice.encode()) for question in questions for choice in question.choices]
    plain, shared = logprobs, logprobs / np.array(sizes)
    return tuple(np.array([int(scores[a:b].argmax()) for a, b in spans]) for scores in (plain, shared))  # type: ignore


def _score(model: Any, batch: list[tuple[int, list[int], int]], logprobs: np.ndarray) -> None:
    longest = max(len(ids) for _, ids, _ in batch) - 1
    inputs = torch.zeros((len(batch), longest), dtype=torch.long)
    labels = torch.full_like(inputs, IGNORE)
    for row, (_, ids, prompt) in enumerate(batch):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        labels[row, prompt - 1 : len(ids) - 1] = torch.tensor(ids[prompt:])
    found = model(inputs, head=lambda hidden, head, bias: token_losses(hidden, head, labels, bias))
    for row, (place, _, _) in enumerate(batch):
        logprobs[place] = -math.fsum(found.losses[row].tolist())
