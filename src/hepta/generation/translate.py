"""Translate texts with a translator's directory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepta.config import HeptaError
from hepta.generation.beam import Hypothesis, beam_search
from hepta.generation.engine import evaluating
from hepta.model.load import load_model, read_hepta_json, resolve_model
from hepta.model.marian import BEAM, LENGTH_PENALTY
from hepta.model.translator import Translator
from hepta.tokenizer.load import Tokenizer, check_matches, load_tokenizer

BATCH_ROWS = 128  # targets under way together, all beams counted


@dataclass(frozen=True)
class Translated:
    """One translation: ``score`` is Σ log p / lengthᵅ of its tokens, so comparable between candidates only."""

    text: str
    score: float


def open_translator(path: Path | str) -> tuple[Translator, Tokenizer]:
    """A translator and its tokenizer.

    Raises:
        HeptaError: no model there, another kind of model, or a tokenizer that does not belong to it.
    """
    directory = resolve_model(path)
    model, tokenizer = load_model(directory), load_tokenizer(directory)
    if not isinstance(model, Translator):
        raise HeptaError(f"{path}: is no translator but a {model.config.kind} language model; use hepta generate")
    check_matches(tokenizer, model.config.vocab_size, read_hepta_json(directory).get("template"))
    return model, tokenizer


def translate_texts(
    path: Path | str, texts: Sequence[str], beam: int = BEAM, length_penalty: float = LENGTH_PENALTY
) -> list[Translated]:
    """Translate each text with the model in a directory; see ``translate``."""
    return translate(*open_translator(path), texts, beam, length_penalty)


def predict_translations(config: Any, asked: Sequence[tuple[str, str | None]]) -> list[dict[str, Any]]:
    """What ``hepta predict`` answers for a translator: ``prediction`` and ``score`` of each text, in order.

    Args:
        config: a ``PredictConfig``: model, beam.
        asked: where each text comes from, and the text; None where there is none.
    """
    found = translate_texts(config.model, [text or "" for _, text in asked], config.beam)
    rows = []
    for (name, text), one in zip(asked, found, strict=True):
        said = {"error": "no text"} if text is None else {"prediction": one.text, "score": one.score}
        rows.append({"row": name, "text": text, **said})
    return rows


def never_chosen(model: Translator, tokenizer: Tokenizer) -> set[int]:
    """Ids that stand in no translation: special ones but the end, and rows beyond the tokenizer's size."""
    return {*tokenizer.special_ids, *range(tokenizer.size, model.config.vocab_size)} - {tokenizer.eos_id}


def translate(
    model: Translator,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    beam: int = BEAM,
    length_penalty: float = LENGTH_PENALTY,
) -> list[Translated]:
    """Translate each text; a blank one stays blank.

    Args:
        model: put into evaluation mode meanwhile.
        tokenizer: its own.
        texts: one sentence each, as the model was trained.
        beam: targets kept under way; 1 is greedy.
        length_penalty: α of the score.
    """
    banned = never_chosen(model, tokenizer)
    sources = [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch([text.strip() for text in texts])]
    places = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(sources[i]))
    size = max(1, BATCH_ROWS // beam)
    found: dict[int, Hypothesis] = {}
    with evaluating(model):
        for start in range(0, len(places), size):
            some = places[start : start + size]
            hypotheses = beam_search(model, [sources[i] for i in some], beam, length_penalty, banned=banned)
            found.update(zip(some, hypotheses, strict=True))
    empty = Translated("", 0.0)
    return [
        Translated(tokenizer.decode(found[i].ids).strip(), found[i].score) if i in found else empty
        for i in range(len(texts))
    ]
