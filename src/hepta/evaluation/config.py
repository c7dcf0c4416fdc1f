"""Keys of ``hepta eval`` and ``hepta predict``."""

from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from hepta.config import Config, StageConfig, identity, input_path, operational


class EvalConfig(StageConfig):
    """Score a model on text."""

    model: str = input_path(..., "model, run or adapter directory")
    text: Path = input_path(..., "corpus directory, or .txt and .jsonl files")
    split: Literal["train", "val", "test"] | None = identity("test", "split of a corpus; plain files have none")
    tokenizer: Path | None = input_path(None, "tokenizer directory; the model's own if empty")
    sequence_length: int | None = identity(None, "tokens per window; the length it was trained on if empty", ge=2)
    max_documents: int | None = identity(None, "score the first so many documents only", ge=1)
    precision: Literal["fp32", "bf16"] = identity("fp32", "of weights and products")
    batch_tokens: int = operational(8192, "tokens in one forward pass", ge=2)
    device: str = operational("cpu", "cpu or cuda")
    output: Path | None = operational(None, "directory for the result, if it is to be kept")  # pyright: ignore


class PredictConfig(Config):
    """Ask a tuned model about texts."""

    model: str = input_path(..., "run or directory of a tuned model")
    text: list[str] | None = identity(None, "texts to ask about; none given: --input, or the lines of stdin")
    input: Path | None = input_path(None, "file of texts: .txt lines, or CSV, TSV, JSON Lines, Parquet")
    column: str | None = identity(None, "column of the file that holds the text; none given: guessed and shown")
    output: Path | None = operational(None, "write JSON Lines here instead of printing")
    batch_tokens: int = operational(8192, "tokens in one forward pass", ge=64)
    beam: int = identity(4, "translators: translations under way at once; 1 is greedy", ge=1)
    threads: int | None = operational(None, "CPU threads; all cores when not given", ge=1)

    @field_validator("text", mode="before")
    @classmethod
    def _one_text(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class CompareConfig(StageConfig):
    """Say what a changed model costs and saves."""

    models: list[str] = input_path(..., "the original, then one or more others: model, run or adapter directories")
    text: Path | None = input_path(None, "language models: corpus directory, or .txt and .jsonl files")
    data: Path | None = input_path(None, "rows with answers: text, label; language models: question, choices, answer")
    split: Literal["train", "val", "test"] | None = identity("test", "split of a corpus; plain files have none")
    sequence_length: int | None = identity(None, "tokens per window; the length trained on if empty", ge=2)
    max_documents: int | None = identity(300, "read the first so many documents only", ge=2)
    max_rows: int | None = identity(500, "ask the first so many rows of data only", ge=2)
    precision: Literal["fp32", "bf16"] = identity("fp32", "of products when quality is judged")
    speed_precision: Literal["fp32", "bf16"] = identity("bf16", "of products when speed and memory are measured")
    speed: bool = identity(True, "measure memory and tokens per second, each model in a process of its own")
    rounds: int = identity(5, "times each speed is measured, in turns", ge=1)
    threads: int | None = operational(None, "CPU threads of each process; all cores when not given", ge=1)
    output: Path | None = operational(None, "directory for the result and its page")  # pyright: ignore

    @field_validator("models", mode="before")
    @classmethod
    def _two(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) < 2:
            raise ValueError("compare needs the original and at least one other model")
        return value
