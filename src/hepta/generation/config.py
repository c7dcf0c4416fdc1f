"""Keys of ``generate`` and ``chat`` (no torch here)."""

from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from hepta.config import Config, identity, input_path, operational


class SamplingConfig(Config):
    """What every generating verb shares."""

    model: str = input_path(doc="model, run or adapter directory, a catalogue name, or hf:owner/name")
    max_new_tokens: int = identity(128, "most tokens generated for one prompt", ge=1)
    temperature: float = identity(0.0, "0 takes the most likely token; above 0 samples, the flatter the higher", ge=0)
    top_k: int = identity(0, "sample from the k most likely tokens; 0: all", ge=0)
    top_p: float = identity(1.0, "sample from the most likely tokens that make up this probability", gt=0, le=1)
    min_p: float = identity(0.0, "drop tokens less likely than this share of the most likely one", ge=0, lt=1)
    repetition_penalty: float = identity(1.0, "above 1 makes tokens that were there already less likely", gt=0)
    seed: int = identity(0, "of the sampling", ge=0)
    stop: list[str] = identity([], "strings that end a text")
    precision: Literal["fp32", "bf16"] | None = identity(
        None, "dtype of weights and products; none given: fp32, bf16 for a quantised model where the CPU has it"
    )
    threads: int | None = operational(None, "CPU threads; all cores when not given", ge=1)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def options(self) -> dict[str, Any]:
        """The keys as arguments of ``Engine.generate`` and ``Engine.stream``."""
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop")
        return {name: getattr(self, name) for name in names}


class GenerateConfig(SamplingConfig):
    """Continue prompts."""

    prompt: list[str] = identity([], "text to continue; several are computed together")
    fill: list[str] = identity([], "text with [MASK] where a masked model is to say what was there")
    best: int = identity(5, "fill: guesses shown for each mask", ge=1)
    batch_size: int = operational(32, "most prompts computed together", ge=1)

    @field_validator("prompt", "fill", mode="before")
    @classmethod
    def _one_text(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_task(self) -> Self:
        if bool(self.prompt) == bool(self.fill):
            raise ValueError("give --prompt to continue a text, or --fill for a text with [MASK]")
        return self


class ChatConfig(SamplingConfig):
    """Talk to a chat model."""

    max_new_tokens: int = identity(256, "most tokens of one answer", ge=1)
    message: str | None = identity(None, "say this, print the answer, and end; else lines are read from stdin")
    system: str | None = identity(None, "system message before the conversation")
    live: bool = operational(True, "print answers on stdout as they come")
