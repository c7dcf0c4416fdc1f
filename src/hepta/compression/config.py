"""The keys of ``hepta compress`` (no torch here)."""

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from hepta.config import StageConfig, identity, input_path
from hepta.training.config import ShardsConfig


class QuantizeConfig(StageConfig):
    """Keep a model's matrices as small integers."""

    model: str = input_path(..., "model or run directory, or a catalogue name")
    bits: Literal[8, 4] = identity(8, "of each weight; the embedding and the head take 8 in both")
    group: Literal[32, 64, 128] = identity(32, "columns that share a scale, with 4 bits")
    calibrate: Path | None = input_path(None, "corpus, token shards or text to round by; none: round to nearest")
    sequences: int = identity(64, "sequences of calibration text", ge=1)
    sequence_length: int = identity(512, "tokens of each", ge=8)


class DistillConfig(ShardsConfig):
    """Train a small model from a larger one's distributions and the data."""

    teacher: str = input_path(doc="trained model: directory, run or catalogue name; its tokenizer made the tokens")
    student: str | None = input_path(None, doc="preset with fresh weights (nano …), or model directory to go on from")
    keep_layers: int | None = identity(
        None, "instead of --student: begin with so many of the teacher's own layers, evenly spaced", ge=1
    )
    shape: dict[str, int] = identity(
        {}, "sizes of the student's preset that differ: shape.num_layers, shape.hidden_size, shape.intermediate_size …"
    )
    temperature: float = identity(2.0, "T: both distributions are softened by it before they are compared", gt=0)
    weight: float = identity(0.5, "share of the teacher in the loss; the rest is the data's", gt=0, le=1)

    @model_validator(mode="after")
    def _one_student(self) -> Self:
        if (self.student is None) == (self.keep_layers is None):
            raise ValueError("give either --student (a preset or a model) or keep_layers=N")
        if self.shape and self.student is None:
            raise ValueError("shape: for presets only; keep_layers takes the teacher's")
        return self
