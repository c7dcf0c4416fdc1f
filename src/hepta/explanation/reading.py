"""What a model reads of a text: its tokens as people can see them, and the tokens of a word."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hepta.config import HeptaError
from hepta.generation.fill import split_masks
from hepta.model.classifier import Classifier, is_classifier, load_classifier
from hepta.model.load import load_model, read_hepta_json, resolve_model
from hepta.model.network import Network
from hepta.tokenizer.load import Tokenizer, check_matches, load_tokenizer

MOST_TOKENS = 2048  # of a text that is explained: 2048² weights of 32 heads are 0.5 GB while a layer is read
MASK_LENGTH = len("[MASK]")  # and of "<mask>"
_LOWERED = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


@dataclass(frozen=True)
class Subject:
    """A model that is looked into.

    Attributes:
        directory: where it lies.
        network: the language model; of a classifier, its body.
        tokenizer: its own.
        classifier: the whole, where it is one.
    """

    directory: Path
    network: Network
    tokenizer: Tokenizer
    classifier: Classifier | None

    @property
    def kind(self) -> str:
        """How it reads: ``causal``, ``masked`` (both sides) or ``translation``."""
        return self.network.config.kind


@dataclass(frozen=True)
class Piece:
    """One token as a reader sees it.

    Attributes:
        text: what it stands for, blanks included; a character split over several tokens is numbered (猫₁, 猫₂).
        start, end: its characters in the text; both -1 for a special token that is not written there.
        special: ``bos``, ``eos``, ``mask`` or ``special`` where it is no text.
    """

    text: str
    start: int = -1
    end: int = -1
    special: str | None = None


@dataclass(frozen=True)
class Reading:
    """A text as a model reads it.

    Attributes:
        text: the text.
        ids: (T,) what goes into the model.
        pieces: (T,) what people see.
        cut: tokens at the end of the text that the model does not read.
    """

    text: str
    ids: list[int]
    pieces: list[Piece]
    cut: int = 0


def open_subject(model: str | Path, threads: int | None = None) -> Subject:
    """Load any language model, classifier or translator with its tokenizer.

    Raises:
        HeptaError: no model there, or a tokenizer that does not belong to it.
    """
    if threads:
        torch.set_num_threads(threads)
    directory = resolve_model(model)
    classifier = load_classifier(directory) if is_classifier(directory) else None
    network = load_model(directory) if classifier is None else classifier.network
    tokenizer = load_tokenizer(directory)
    check_matches(tokenizer, network.config.vocab_size, read_hepta_json(directory).get("template"))
    return Subject(directory, network, tokenizer, classifier)


def read_text(subject: Subject, text: str) -> Reading:
    """The text as this model reads it when it is used: with its bos, between its ends, or as a translator's source.

    A masked model's ``[MASK]`` stand for hidden tokens; a classifier reads its first ``sequence_length`` tokens.

    Raises:
        HeptaError: more tokens than the model reads, or than can be shown.
    """
    clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    tokenizer, cut = subject.tokenizer, 0
    masks = split_masks(clean, tokenizer) if subject.kind == "masked" and tokenizer.mask_id is not None else []
    ids, pieces = _plain(tokenizer, clean) if len(masks) < 2 else _masked(tokenizer, clean, masks)
    before, after = _frame(subject)
    if subject.classifier is not None:
        room = subject.classifier.task.sequence_length - len(before) - len(after)
        cut = max(0, len(ids) - room)
        ids, pieces = ids[:room], pieces[:room]
    ids = [*before, *ids, *after]
    pieces = [
        *(_special(tokenizer, i, "bos") for i in before),
        *pieces,
        *(_special(tokenizer, i, "eos") for i in after),
    ]
    limit = min(MOST_TOKENS, subject.network.config.longest or MOST_TOKENS)
    if len(ids) > limit:
        what = "hepta explain shows" if limit == MOST_TOKENS else "the model reads"
        raise HeptaError(f"{subject.directory}: the text has {len(ids)} tokens, {what} {limit}; shorten it")
    return Reading(clean, ids, pieces, cut)


def _frame(subject: Subject) -> tuple[list[int], list[int]]:
    """Ids before and after a text."""
    tokenizer = subject.tokenizer
    if subject.classifier is not None:
        return tokenizer.frame
    if subject.kind == "translation":
        return [], [tokenizer.eos_id]
    return [tokenizer.bos_id], [tokenizer.eos_id] if subject.kind == "masked" else []


def _plain(tokenizer: Tokenizer, text: str, offset: int = 0) -> tuple[list[int], list[Piece]]:
    ids, spans = tokenizer.encode_spans(text)
    return ids, cut_up(text, spans, offset)


def _masked(tokenizer: Tokenizer, text: str, parts: Sequence[tuple[str, int]]) -> tuple[list[int], list[Piece]]:
    ids, pieces = _plain(tokenizer, *parts[0])
    for part, start in parts[1:]:
        assert tokenizer.mask_id is not None
        ids.append(tokenizer.mask_id)
        name = tokenizer.decode([tokenizer.mask_id], skip_special=False)
        pieces.append(Piece(name, start - MASK_LENGTH, start, "mask"))
        more_ids, more = _plain(tokenizer, part, start)
        ids, pieces = ids + more_ids, pieces + more
    return ids, pieces


def _special(tokenizer: Tokenizer, token: int, role: str) -> Piece:
    return Piece(tokenizer.decode([token], skip_special=False), special=role)


def cut_up(text: str, spans: Sequence[tuple[int, int]], offset: int = 0) -> list[Piece]:
    """Pieces of a text by the characters that each token touches.

    Args:
        text: the text that was encoded.
        spans: characters [start, end) of each token; neighbours may share one.
        offset: of ``text`` within the whole text.
    """
    shared = Counter(place for start, end in spans for place in range(start, end))
    seen: Counter[int] = Counter()
    pieces = []
    for start, end in spans:
        shown = ""
        for place in range(start, end):
            seen[place] += 1
            shown += text[place] + (str(seen[place]).translate(_LOWERED) if shared[place] > 1 else "")
        pieces.append(Piece(shown, start + offset, end + offset))
    return pieces


def find_word(text: str, word: str) -> list[tuple[int, int]]:
    """Where a word stands: characters [start, end) of each place, those inside longer words left out.

    Raises:
        HeptaError: nowhere; names the text, and what stands there instead.
    """
    word = word.strip()
    if not word:
        raise HeptaError("--word is empty; name a word of the text")
    places = [start for start in range(len(text)) if text.startswith(word, start)]
    whole = [(start, start + len(word)) for start in places if _stands_alone(text, start, start + len(word))]
    if whole:
        return whole
    shown = text if len(text) <= 80 else text[:80] + "…"
    if places:
        longer = _word_around(text, places[0])
        raise HeptaError(f"{word!r} is only a part of {longer!r} in the text {shown!r}; give --word {longer}")
    other = text.casefold().find(word.casefold())
    hint = f"; did you mean {text[other : other + len(word)]!r}?" if other >= 0 else ""
    raise HeptaError(f"{word!r} is not in the text {shown!r}{hint or '; name one of its words'}")


def last_word(text: str) -> tuple[int, int]:
    """Characters of the text's last word; of Chinese, its last character."""
    end = next((i for i in range(len(text), 0, -1) if text[i - 1].isalnum()), len(text.rstrip()))
    start = end - 1
    while start > 0 and _joined(text[start - 1], text[start]):
        start -= 1
    return start, end


def tokens_of(pieces: Sequence[Piece], start: int, end: int) -> list[int]:
    """Places of the tokens that touch characters [start, end)."""
    return [place for place, piece in enumerate(pieces) if piece.start < end and piece.end > start]


def _stands_alone(text: str, start: int, end: int) -> bool:
    before = start > 0 and _joined(text[start - 1], text[start])
    return not before and not (end < len(text) and _joined(text[end - 1], text[end]))


def _word_around(text: str, place: int) -> str:
    start = end = place
    while start > 0 and _joined(text[start - 1], text[start]):
        start -= 1
    while end + 1 < len(text) and _joined(text[end], text[end + 1]):
        end += 1
    return text[start : end + 1]


def _joined(left: str, right: str) -> bool:
    """Whether two neighbours belong to one word; scripts without blanks have no such words."""
    return _spaced(left) and _spaced(right)


def _spaced(character: str) -> bool:
    if not (character.isalnum() or unicodedata.category(character).startswith("M")):
        return False
    name = unicodedata.name(character, "")
    return not name.startswith(("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"))
