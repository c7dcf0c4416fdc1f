"""``hepta predict``: ask a tuned model about texts from a file, the command line or stdin."""

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hepta.config import HeptaError
from hepta.console import progress, warn
from hepta.data.files import RowFaults, find_files, read_rows, read_text
from hepta.data.rows import ROUND, TextEncoder
from hepta.data.tables import TEXT, Column, choose_columns
from hepta.evaluation.config import PredictConfig
from hepta.model.classifier import Classifier, is_classifier, load_classifier
from hepta.model.load import read_config, resolve_model
from hepta.stage import write_atomic
from hepta.tokenizer.load import load_tokenizer

Asked = tuple[str, str | None]  # where a text comes from, and the text; None where there is none
OTHER_KINDS = {  # kind of model → module:function(config, texts) → predictions
    "translation": "hepta.generation.translate:predict_translations",
}
INSTEAD = {"causal": "continue text with hepta generate, or talk to it with hepta chat", "masked": "tune it first"}


@dataclass(frozen=True)
class PredictResult:
    """Predictions in the order of the texts, and where they were written."""

    predictions: list[dict[str, Any]]
    output: str | None = None
    notes: list[str] = field(default_factory=list)


def predict(config: PredictConfig) -> PredictResult:
    """Ask a model about each text; a text that is missing or empty gets a row with an error, so rows stay in step.

    Raises:
        HeptaError: no texts, no such model, or a model that answers no questions about texts.
    """
    directory = resolve_model(config.model)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if is_classifier(directory):
        found = _classify(config, directory)
    else:
        kind = read_config(directory).kind
        if kind not in OTHER_KINDS:
            raise HeptaError(f"{directory}: is a {kind} language model, no classifier; {INSTEAD.get(kind, '')}")
        module, _, name = OTHER_KINDS[kind].partition(":")
        found = getattr(importlib.import_module(module), name)(config, read_texts(config))
    if config.output is not None:
        write_atomic(config.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
    return PredictResult(found, str(config.output) if config.output else None)


def _classify(config: PredictConfig, directory: Path) -> list[dict[str, Any]]:
    asked = read_texts(config)
    model, tokenizer = load_classifier(directory), load_tokenizer(directory)
    encoder = TextEncoder(tokenizer, model.task.sequence_length)
    texts = [text for _, text in asked if text is not None]
    rows = encoder.many(texts)
    if encoder.cut:
        warn(f"{encoder.cut} of {len(texts)} texts are longer than {encoder.limit} tokens; their beginning is read")
    with progress("predict", len(rows), "texts") as bar:
        logits = logits_of(model, rows, config.batch_tokens, lambda count: bar.advance(count))
    answers = iter(describe(model, logits))
    return [
        {"row": name, "text": text, **(next(answers) if text is not None else {"error": "no text"})}
        for name, text in asked
    ]


def describe(model: Classifier, logits: np.ndarray) -> list[dict[str, Any]]:
    """Logits (N, C) in words: class and probabilities, or the number on its own scale."""
    task = model.task
    if task.is_number:
        return [{"value": float(value) * task.std + task.mean} for value in logits[:, 0]]
    chances = probabilities(logits)
    return [
        {
            "label": task.labels[int(row.argmax())], "probability": float(row.max()),
            "probabilities": dict(zip(task.labels, map(float, row), strict=True)),
        }
        for row in chances
    ]  # fmt: skip


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over classes (N, C), float64."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@torch.no_grad()
def logits_of(model: Classifier, rows: Sequence[np.ndarray], batch_tokens: int = 8192, done: Any = None) -> np.ndarray:
    """Logits (N, C) float32 of encoded texts, computed in batches of about equal length.

    Args:
        model: set to evaluation mode here, and back.
        rows: ids (L,) of each text.
        batch_tokens: of one forward pass, padding included.
        done: called with the number of texts after each batch.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = np.zeros((len(rows), len(model.task.labels)), np.float32)
    training, device = model.training, next(model.parameters()).device
    model.eval()
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * _padded(len(rows[order[end]])) <= batch_tokens:
            end += 1
        chosen = order[start:end]
        lengths = torch.tensor([len(rows[i]) for i in chosen])
        ids = torch.zeros((len(chosen), _padded(int(lengths.max()))), dtype=torch.int64)
        for place, i in enumerate(chosen):
            ids[place, : len(rows[i])] = torch.from_numpy(rows[i].astype(np.int64))
        found[chosen] = model(ids.to(device), lengths.to(device)).float().cpu().numpy()
        if done is not None:
            done(len(chosen))
        start = end
    model.train(training)
    return found


def _padded(length: int) -> int:
    return -(-length // ROUND) * ROUND


def read_texts(config: PredictConfig) -> list[Asked]:
    """The texts asked about, each with a name for where it stands.

    Raises:
        HeptaError: no texts, or no column of the file that obviously holds them.
    """
    if config.text is not None:
        asked: list[Asked] = [(f"text {n}", _known(text)) for n, text in enumerate(config.text, 1)]
    elif config.input is not None:
        asked = _from_file(config.input, config.column)
    else:
        if sys.stdin.isatty():
            raise HeptaError("no texts; give --text, --input FILE, or lines on stdin")
        asked = [(f"line {n}", _known(line)) for n, line in enumerate(sys.stdin.read().split("\n"), 1)]
        asked = asked[:-1] if asked and asked[-1][1] is None else asked
    if not any(text for _, text in asked):
        raise HeptaError("no texts: every line or cell is empty; give --text, --input FILE, or lines on stdin")
    return asked


def _known(value: Any) -> str | None:
    return value.strip() if isinstance(value, str) and value.strip() else None


def _from_file(file: Path, column: str | None) -> list[Asked]:
    if file.suffix.lower() == ".txt":
        if not file.is_file():
            raise HeptaError(f"{file}: no such file")
        lines = read_text(file).rstrip("\n").split("\n")
        return [(f"line {n}", _known(line)) for n, line in enumerate(lines, 1)]
    asked: list[Asked] = []
    faults = RowFaults("drop")
    for found, source in find_files(file, (".csv", ".tsv", ".jsonl", ".json", ".parquet"), "texts"):
        rows = list(read_rows(found, faults))
        names = list(dict.fromkeys(name for _, row in rows if row for name in row))
        name = choose_columns(names, [_column(column)], str(found))[0]
        asked += [(f"{source} row {n}", _known((row or {}).get(name))) for n, row in rows]
    if faults.counts:
        warn(faults.told(len(asked)).replace("dropped", "no prediction for"))
    return asked


def _column(given: str | None) -> Column:
    return replace(TEXT, role="column", given=given)
