"""The keys of ``hepta compress`` (no torch here)."""

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from hepta.config import StageConfig, identity, input_path, preset_or_path
from hepta.training.config import ShardsConfig, TrainingConfig


class QuantizeConfig(StageConfig):
    """Keep a model's matrices as small integers."""

    model: str = input_path(..., "model or run directory, or a catalogue name")
    bits: Literal[8, 4] = identity(8, "of each weight; the embedding and the head take 8 in both")
    group: Literal[32, 64, 128] = identity(32, "columns that share a scale, with 4 bits")
    calibrate: Path | None = input_path(None, "corpus, token shards or text to round by; none: round to nearest")
    sequences: int = identity(64, "sequences of calibration text", ge=1)
    sequence_length: int = identity(512, "tokens of each", ge=8)

    @model_validator(mode="after")
    def _groups_of_four_bits(self) -> Self:
        if self.bits == 8 and self.group != 32:
            raise ValueError(f"group {self.group}: 8 bits share a scale by row; leave it out, or take bits=4")
        return self


class DistillConfig(ShardsConfig):
    """Train a small model from a larger one's distributions and the data."""

    teacher: str = input_path(doc="trained model: directory, run or catalogue name; its tokenizer made the tokens")
    student: str | None = preset_or_path(
        None, doc="preset with fresh weights (nano …), or model directory to go on from"
    )
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


ALONE = {"output", "fresh", "sequence_length"}  # keys of training that pruning alone has use for


class PruneConfig(ShardsConfig):
    """Set weights to zero, or cut heads and neurons away; with ``data``, train what is left."""

    model: str = input_path(doc="model directory, run or catalogue name")
    sparsity: float | None = identity(None, "share of each matrix of the layers that becomes zero", gt=0, lt=1)
    pattern: Literal["free", "2:4"] = identity(
        "free", "which weights may be zero: any, or exactly two of each four neighbours along the input"
    )
    heads: float | None = identity(None, "cut heads away in every layer: a number of them, or a share below 1", gt=0)
    neurons: float | None = identity(None, "cut this share of the MLP's neurons away in every layer", gt=0, lt=1)
    method: Literal["auto", "magnitude", "activation"] = identity(
        "auto", "what counts: |w|, or |w| · ‖x‖ on calibration text (Wanda); auto: activation where there is text"
    )
    within: Literal["auto", "row", "matrix"] = identity(
        "auto", "weights compete within their row (one output) or their matrix; auto: row with activation, else matrix"
    )
    calibrate: Path | None = input_path(
        None, doc="text to calibrate with: corpus, token shards, .txt or .jsonl; none given: the shards of --data"
    )
    sequences: int = identity(
        128, "sequences of sequence_length tokens read from it; each fourth measures the loss instead", ge=4
    )
    data: Path | None = input_path(  # pyright: ignore[reportIncompatibleVariableOverride]
        None, doc="token shards to train on afterwards; zeros stay zero. Keys of training are those of hepta pretrain"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        whole = self.heads is not None or self.neurons is not None
        if self.pattern == "2:4" and self.sparsity not in (None, 0.5):
            raise ValueError("pattern 2:4 is sparsity 0.5; leave sparsity out")
        if whole == (self.sparsity is not None or self.pattern == "2:4"):
            raise ValueError("give either sparsity (or pattern=2:4) for zeros, or heads and neurons to be cut away")
        if self.heads is not None and self.heads >= 1 and not self.heads.is_integer():
            raise ValueError("heads: a whole number of heads, or a share below 1")
        if self.method == "activation" and self.calibrate is None and self.data is None:
            raise ValueError("method=activation needs text: give --calibrate or --data")
        if self.data is None:
            for name in sorted((self.model_fields_set & set(TrainingConfig.model_fields)) - ALONE):
                raise ValueError(f"{name}: nothing is trained without --data; leave it out")
        return self
