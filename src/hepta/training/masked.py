"""What differs when masked words are predicted: the order's masks, the evaluation row, the samples."""

from collections.abc import Sequence
from typing import Any

import torch

from hepta.catalog.documents import language_by_script
from hepta.data.masking import MaskedOrder, WordUnits, mask_words
from hepta.data.permutation import key_of
from hepta.generation.fill import fill_masks
from hepta.training.evaluate import bytes_per_token, evaluate
from hepta.training.job import Job
from hepta.training.samples import Prompt
from hepta.training.world import world

MICRO = 32  # sequences of one evaluating pass


def mask(job: Job, seed: int, texts: Sequence[str]) -> None:
    """Turn a job that predicts next tokens into one that predicts masked words, in place.

    Held-out masks are the same at every evaluation. Bits per byte are left out: what a model says of masked words
    is no probability of the text.
    """
    job.train = MaskedOrder(job.train, job.tokenizer, seed)
    job.held_out = job.held_out and MaskedOrder(job.held_out, job.tokenizer, seed)
    widths = bytes_per_token(job.tokenizer, job.model.config.vocab_size)

    def scores(most_tokens: int | None) -> dict[str, Any]:
        if job.held_out is None:
            return {}
        found = evaluate(job.model, job.objective, job.held_out, widths, (), MICRO, most_tokens, world())
        row = found.row()
        del row["val_bpb"]
        accuracy = {lang: totals.accuracy for lang, totals in sorted(found.by_language.items())}
        return {**row, "masked_accuracy": accuracy}

    job.evaluate = scores
    job.prompts = [_hide(text, job.tokenizer, job.train.words, seed) for text in texts]
    job.answer = lambda prompts: [_fill(job, prompt.ids) for prompt in prompts]


def _hide(text: str, tokenizer: Any, words: WordUnits, seed: int) -> Prompt:
    """A sample prompt with some of its words hidden."""
    ids = torch.tensor([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]).numpy()
    hidden, labels = mask_words(ids, words, tokenizer.mask_id, key_of("sample", seed, text))
    hidden[labels >= 0] = tokenizer.mask_id
    shown = tokenizer.decode(hidden[1:-1].tolist(), skip_special=False)
    return Prompt(shown, hidden.tolist(), "fill", language_by_script(text))


def _fill(job: Job, ids: list[int]) -> str:
    training = job.model.training
    job.model.eval()
    filled = fill_masks(job.model, job.tokenizer, ids, best=1)
    job.model.train(training)
    return filled.text
