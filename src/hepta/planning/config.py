"""Keys of ``hepta plan`` and ``hepta doctor machine``."""

from hepta.config import Config, identity, input_path, operational

DEFAULT_DEVICES = ("1080ti", "3070", "3090", "4090", "8xH100", "cpu")


class MachineConfig(Config):
    """What ``doctor machine`` may be told."""

    threads: int | None = operational(None, "threads of the measured products; as many as torch would use if empty", ge=1)
    measure: bool = operational(True, "time matrix products and memory (about five seconds); false only lists")


class PlanConfig(Config):
    """What to plan: a model, how it is trained, and on what."""

    model: str = input_path(..., "preset (nano, micro, mini, small, 1b, 7b, llama-2-7b, gpt2) or model directory")
    devices: list[str] = identity(list(DEFAULT_DEVICES), "machines to ask about: 1080ti, 4090, 8xH100, cpu (this one) …")
    tokens: float | None = identity(None, "training tokens; 20 per parameter when not given", gt=0)
    sequence_length: int | None = identity(None, "tokens per sequence; the model's limit, at most 2048, if empty", ge=1)
    micro_batch: int = identity(1, "sequences held at once", ge=1)
    vocab_size: int | None = identity(None, "another vocabulary for a preset", ge=1)
    rank: int = identity(16, "rank of LoRA and QLoRA adapters on every linear layer", ge=1)
    utilisation: float = identity(0.4, "share of a GPU's listed peak that training reaches, an assumption", gt=0, le=1)
    overhead: float = identity(1.0, "GB per device lost to driver and allocator, an assumption", ge=0)
