"""``hepta explain attention``: where each token looks, in every layer and head, as a page and as facts.

Weights say from where a token takes what it adds to itself in one layer. They are not importance: a head's weight may
rest on a token whose value is nearly zero, and a different head or layer may undo it (Jain & Wallace 2019; Wiegreffe &
Pinter 2019). The page says so.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from hepta.config import HeptaError
from hepta.evaluation.predict import describe
from hepta.explanation.config import AttentionConfig
from hepta.explanation.looks import BINS, FULL, Layer, bin_size, look
from hepta.explanation.page import Explained, explained, page_path
from hepta.explanation.reading import Piece, Reading, Subject, find_word, last_word, open_subject, read_text, tokens_of
from hepta.explanation.translation import translate_source, translator_weights
from hepta.model.attention import record_attention
from hepta.model.shape import TransformerShape
from hepta.model.translator import Translator

INSTEAD = {
    "NGram": "an n-gram model has no attention, it counts what followed the last few tokens",
    "FeedForward": "a feed-forward model has no attention, it reads a fixed window of tokens through one matrix",
    "LSTM": "an LSTM has no attention, it carries one state from token to token",
}  # fmt: skip


def explain_attention(config: AttentionConfig) -> Explained:
    """Write the page of a model's attention, and of a second model's beside it.

    Raises:
        HeptaError: a model without attention, a word that is not in the text, a text that is too long.
    """
    path = page_path("attention", config.output)
    models = [config.model, *([] if config.beside is None else [config.beside])]
    seen = [_see(model, config) for model in models]
    facts = {
        "format": 1, "kind": "attention", "text": seen[0]["text"], "word": seen[0]["word"],
        "limits": {"full": FULL, "bins": BINS}, "models": seen,
    }  # fmt: skip
    return explained("attention", ("Where each token looks", "每个词元在看哪里"), facts, path)


def _see(model: str, config: AttentionConfig) -> dict[str, Any]:
    """Everything told of one model."""
    subject = open_subject(model, config.threads)
    refuse_without_attention(subject)
    source = read_text(subject, config.text)
    facts: dict[str, Any] = {
        "name": model, "family": type(subject.network).__name__, "reads": subject.kind, "text": source.text,
        "cut": source.cut, "window": _window(subject),
    }  # fmt: skip
    if isinstance(subject.network, Translator):
        return facts | _see_translator(subject, subject.network, source, config)
    chosen = choose_word(source.text, config.word, config.occurrence)
    focus = _focus(subject, source, chosen)
    causal = subject.kind == "causal"
    ids = torch.tensor([source.ids])
    with torch.no_grad(), record_attention(partial(look, focus=focus, causal=causal)) as layers:
        if subject.classifier is None:
            subject.network.body(ids)
        else:
            logits = subject.classifier(ids, torch.tensor([ids.shape[1]])).float().numpy()
            facts["answer"] = describe(subject.classifier, logits)[0]
    part = _part("self", causal, source.pieces, source.pieces, focus, layers)
    return facts | {"word": chosen, "parts": [part]}


def refuse_without_attention(subject: Subject) -> None:
    """Say in one line that a model has no attention, and what it has.

    Raises:
        HeptaError: it is an n-gram, a feed-forward or a recurrent model.
    """
    name = type(subject.network).__name__
    if not isinstance(subject.network.config, TransformerShape) and name in INSTEAD:
        raise HeptaError(
            f"{subject.directory}: {INSTEAD[name]}; "
            "hepta explain attribution tells which tokens decide, or take a Transformer"
        )


def choose_word(text: str, word: str | None, occurrence: int) -> dict[str, Any]:
    """The word asked about: ``text``, ``start`` and ``end`` in the text, ``occurrence``, all ``places``.

    Raises:
        HeptaError: the word is not there, or not so often.
    """
    places = find_word(text, word) if word is not None else [last_word(text)]
    if occurrence > len(places):
        times = "once" if len(places) == 1 else f"{len(places)} times"
        raise HeptaError(f"--occurrence {occurrence}: {word or 'the last word'!r} stands in the text only {times}")
    start, end = places[occurrence - 1]
    return {
        "text": text[start:end], "start": start, "end": end, "occurrence": occurrence,
        "places": [{"start": a, "end": b} for a, b in places],
    }  # fmt: skip


def _focus(subject: Subject, source: Reading, chosen: dict[str, Any]) -> list[int]:
    focus = tokens_of(source.pieces, chosen["start"], chosen["end"])
    if not focus:
        raise HeptaError(
            f"{subject.directory}: reads the first {len(source.ids)} tokens of the text, and {chosen['text']!r} "
            "stands after them; shorten the text or choose an earlier word"
        )
    return focus


def _window(subject: Subject) -> int | None:
    shape = subject.network.config
    windows = [shape.window(layer) for layer in range(shape.num_layers)]
    return min((window for window in windows if window), default=None)


def _part(
    name: str, causal: bool, queries: Sequence[Piece], keys: Sequence[Piece], focus: list[int], layers: list[Layer]
) -> dict[str, Any]:
    """One kind of attention in all its layers; ``keys`` only where they are another text's tokens."""
    whole = len(queries) <= FULL and len(keys) <= FULL
    return {
        "part": name, "causal": causal, "focus": focus, "queries": [asdict(piece) for piece in queries],
        "keys": None if keys is queries else [asdict(piece) for piece in keys], "whole": whole,
        "bin": [bin_size(len(queries)), bin_size(len(keys))],
        "layers": [{"layer": number, **asdict(layer)} for number, layer in enumerate(layers, 1)],
    }  # fmt: skip


def _see_translator(subject: Subject, network: Translator, source: Reading, config: AttentionConfig) -> dict[str, Any]:
    """Encoder, decoder and what lies between, on the model's own translation.

    A word is looked for in the source, then in the translation. Of a source word, the target token that looks at it
    most is the one whose links are told. Rows across stand for the token that is chosen there, rows of the decoder for
    the token that is read.
    """
    made = translate_source(subject, source)
    chosen, of_source = _word_of_either(source.text, made.text, config)
    start, end = chosen["start"], chosen["end"]
    encoder, decoder, cross = translator_weights(network, made)
    watched = tokens_of(source.pieces, start, end) if of_source else []
    rows = tokens_of(made.chosen, start, end)
    if of_source:
        average = torch.stack([weights[0].mean(0)[:, watched].sum(-1) for weights in cross]).mean(0)  # (T,)
        rows = [int(average[: max(1, len(average) - 1)].argmax())]  # not the end, which has little to look for
    reading = [row + 1 for row in rows if row + 1 < len(made.read)] or [len(made.read) - 1]
    parts = [
        _part("encoder", False, source.pieces, source.pieces, watched, [look(w, watched, False) for w in encoder]),
        _part("cross", False, made.chosen, source.pieces, rows, [look(w, rows, False, True, watched) for w in cross]),
        _part("decoder", True, made.read, made.read, reading, [look(w, reading, True) for w in decoder]),
    ]
    return {
        "word": {**chosen, "in": "source" if of_source else "translation"},
        "translation": made.text,
        "parts": parts,
    }


def _word_of_either(source: str, target: str, config: AttentionConfig) -> tuple[dict[str, Any], bool]:
    """The word asked about, and whether it is the source's; the source's error where it is in neither."""
    try:
        return choose_word(source, config.word, config.occurrence), True
    except HeptaError as missing:
        try:
            return choose_word(target, config.word, config.occurrence), False
        except HeptaError:
            raise HeptaError(f"{missing}; nor is it in the translation {target!r}") from None
