"""``hepta generate``: continue prompts with a model directory."""

import time
from dataclasses import dataclass

from hepta.console import say
from hepta.generation.config import GenerateConfig
from hepta.generation.fill import FillResult, fill
from hepta.generation.opening import open_model


@dataclass
class Generated:
    """One prompt and what followed it."""

    prompt: str
    text: str
    finish_reason: str
    ids: list[int]
    logprobs: list[float]


@dataclass
class GenerateResult:
    """Completions in the order of the prompts; seconds without loading."""

    model: str
    completions: list[Generated]
    tokens: int
    seconds: float


def generate(config: GenerateConfig) -> GenerateResult | FillResult:
    """Continue every prompt of ``config``, or fill its masks.

    A prompt is read as the beginning of a document: the tokenizer's BOS, then its text. Text that spells a
    special token stays text (trap G10).

    Raises:
        HeptaError: no such model, or a tokenizer that does not belong to it.
    """
    if config.fill:
        return fill(config)
    opened = open_model(config, config.batch_size)
    prompts = [[opened.tokenizer.bos_id, *opened.tokenizer.encode(prompt)] for prompt in config.prompt]
    started = time.monotonic()
    completions = opened.engine.generate(prompts, **config.options())
    seconds = time.monotonic() - started
    tokens = sum(len(completion.ids) for completion in completions)
    say(f"{tokens} tokens in {seconds:.1f} s ({tokens / max(seconds, 1e-9):.0f} tokens/s)")
    results = [
        Generated(prompt, completion.text, completion.finish_reason, completion.ids, completion.logprobs)
        for prompt, completion in zip(config.prompt, completions, strict=True)
    ]
    return GenerateResult(str(opened.directory), results, tokens, seconds)
