"""Keys of ``hepta plan`` and ``hepta doctor machine``."""

from pydantic import field_validator

from hepta.config import Config, identity, input_path, operational

DEFAULT_DEVICES = ("1080ti", "3070", "3090", "4090", "8xH100", "cpu")


class MachineConfig(Config):
    """What ``doctor machine`` may be told."""

    threads: int | None = operational(None, "threads of the measured products; torch's own number if empty", ge=1)
    measure: bool = operational(True, "time matrix products and memory (about five seconds); false only lists")


class PlanConfig(Config):
    """What to plan: a model, how it is trained, and on what."""

    model: str = input_path(..., "preset (nano, micro, mini, small, 1b, 7b) or model directory")
    devices: list[str] = identity(list(DEFAULT_DEVICES), "machines: 1080ti, 4090, 8xH100, cpu (this one) …")
    tokens: float | None = identity(None, "training tokens; 20 per parameter if empty", gt=0)
    sequence_length: int | None = identity(None, "tokens per sequence; at most 2048 if empty", ge=1)
    micro_batch: int = identity(1, "sequences held at once", ge=1)
    vocab_size: int | None = identity(None, "another vocabulary for a preset", ge=1)
    rank: int = identity(16, "rank of LoRA and QLoRA adapters on every linear layer", ge=1)
    utilisation: float | None = identity(None, "share of the peak reached; GPU 0.4, CPU 0.5 if empty", gt=0, le=1)
    price: float | None = identity(None, "USD per device-hour; a round figure per device if empty", ge=0)

    @field_validator("devices", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """``1080ti,3070`` on the command line is a list."""
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value
