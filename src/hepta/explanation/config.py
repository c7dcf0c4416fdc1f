"""Keys of ``hepta explain …`` (no torch here)."""

from pathlib import Path
from typing import Literal

from pydantic import field_validator

from hepta.config import Config, identity, input_path, operational


class ExplainConfig(Config):
    """What every explanation is asked with."""

    model: str = input_path(..., "model, run or adapter directory, a catalogue name, or hf:owner/name")
    text: str = identity(..., "the text that the model reads")
    output: Path | None = operational(None, "the page, FILE.html; its facts go to FILE.json beside it")
    threads: int | None = operational(None, "CPU threads; all cores when not given", ge=1)

    @field_validator("text")
    @classmethod
    def _some_text(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is empty; write the text that the model shall read")
        return value


class AttentionConfig(ExplainConfig):
    """Where a model looks."""

    word: str | None = identity(None, "word whose links are told; the last of the text when not given")
    occurrence: int = identity(1, "which of the places where the word stands", ge=1)
    beside: str | None = input_path(None, "a second model that reads the same text, drawn beside the first")


class LensConfig(ExplainConfig):
    """What each layer would say if it were the last."""

    top: int = identity(5, "tokens kept for each position and layer", ge=1, le=50)


class AttributionConfig(ExplainConfig):
    """Which words decided."""

    target: str | None = identity(None, "word, answer or class to account for; the model's own first choice if empty")
    method: Literal["integrated", "gradient", "occlusion"] | None = identity(
        None, "integrated gradients, gradient × input, or hiding; integrated where the model has gradients"
    )
    baseline: Literal["mask", "pad", "zero"] | None = identity(
        None, "what stands for a hidden word; a masked model's mask token, else the padding's embedding"
    )
    steps: int | None = identity(None, "of the integration; as many as a gap below 1 % takes if empty", ge=1)
    chat: bool = identity(False, "the text is a user's message in the model's chat template")


class NeuronsConfig(ExplainConfig):
    """What each part of a model is worth."""

    text: str = identity(..., "corpus directory, .txt or .jsonl, the text itself; of a classifier its kind of table")
    split: Literal["train", "val", "test"] = identity("val", "split of a corpus; plain files have none")
    tokens: int = identity(4096, "most tokens of the text that are read", ge=2)
