"""Keys of ``hepta eval``."""

from pathlib import Path
from typing import Literal

from hepta.config import StageConfig, identity, input_path, operational


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
