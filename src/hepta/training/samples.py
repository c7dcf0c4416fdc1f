"""What the model says to fixed prompts while it trains, and whether it answers in the prompt's language."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hepta.catalog.documents import language_by_script

SAMPLE_TOKENS = 48


@dataclass(frozen=True)
class Prompt:
    """One prompt to answer at each evaluation."""

    text: str  # what people read
    ids: list[int]  # what the model reads
    kind: str  # completion or chat
    lang: str
    held_out: bool = False


def completion_prompts(texts: list[str], tokenizer: Any) -> list[Prompt]:
    """Sample prompts as a language model reads them: document start, then the text."""
    return [
        Prompt(text, [tokenizer.bos_id, *tokenizer.encode(text)], "completion", language_by_script(text))
        for text in texts
    ]


def answer(model: Any, tokenizer: Any, prompts: Sequence[Prompt], max_new_tokens: int = SAMPLE_TOKENS) -> list[str]:
    """Greedy answers, in the order of ``prompts``."""
    if not prompts:
        return []
    from hepta.generation.engine import Engine

    training = model.training
    model.eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # lengths change with every token
        texts = [
            c.text
            for c in Engine(model, tokenizer).generate(
                [p.ids for p in prompts], max_new_tokens=max_new_tokens, temperature=0
            )
        ]
    model.train(training)
    return texts
