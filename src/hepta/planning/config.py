"""Keys of ``hepta plan`` and ``hepta doctor machine``."""

from pathlib import Path
from typing import Self

from pydantic import field_validator, model_validator

from hepta.config import Config, identity, input_path, operational

DEFAULT_DEVICES = ("1080ti", "3070", "3090", "4090", "8xH100", "cpu")


class MachineConfig(Config):
    """What ``doctor machine`` may be told."""

    threads: int | None = operational(None, "threads of the measured products; torch's own number if empty", ge=1)
    measure: bool = operational(True, "time matrix products and memory (about five seconds); false only lists")


class PlanConfig(Config):
    """What to plan: a model, how it is trained, and on what."""

    model: str | None = input_path(
        None, "preset (nano, micro, mini, small, 1b, 7b), model directory or hf:owner/name; with minutes: the best one"
    )
    minutes: float | None = identity(None, "advise what this machine trains best in this time", gt=0)
    data: Path | None = input_path(None, "with minutes: token shards to train on (hepta tokens build)")
    devices: list[str] = identity(list(DEFAULT_DEVICES), "machines: 1080ti, 4090, 8xH100, cpu (this one) …")
    tokens: float | None = identity(None, "training tokens; 20 per parameter if empty", gt=0)
    sequence_length: int | None = identity(None, "tokens per sequence; at most 2048 if empty", ge=1)
    micro_batch: int = identity(1, "sequences held at once", ge=1)
    vocab_size: int | None = identity(None, "another vocabulary for a preset", ge=1)
    rank: int = identity(16, "rank of LoRA and QLoRA adapters on every linear layer", ge=1)
    utilisation: float | None = identity(None, "share of the peak reached; GPU 0.4, CPU 0.5 if empty", gt=0, le=1)
    price: float | None = identity(None, "USD per device-hour; a round figure per device if empty", ge=0)

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        if self.model is None and self.minutes is None:
            raise ValueError("give --model to plan one, or --minutes to be advised one")
        if self.data is not None and self.minutes is None:
            raise ValueError("data is for --minutes, which advises a model for it; give minutes too")
        return self

    @field_validator("devices", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """``1080ti,3070`` on the command line is a list."""
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value
