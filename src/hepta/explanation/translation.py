"""A translator looked into: its own translation of the text, and the attention of encoder, decoder and between them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hepta.config import HeptaError
from hepta.explanation.reading import Piece, Reading, Subject, cut_up
from hepta.generation.beam import beam_search
from hepta.generation.engine import evaluating
from hepta.generation.translate import never_chosen
from hepta.model.attention import record_attention
from hepta.model.marian import BEAM, LENGTH_PENALTY
from hepta.model.translator import Translator
from hepta.tokenizer.load import Tokenizer

MOST_SOURCE = 512  # tokens of a source: all weights of three kinds of attention are held at once


@dataclass(frozen=True)
class Translation:
    """A source and what the translator made of it.

    Attributes:
        source: as the encoder reads it, its end last.
        text: the translation.
        ids: (T,) what the decoder reads: bos, then the translation.
        read: (T,) those tokens as people see them.
        chosen: (T,) the token chosen at each of them: the translation, then its end.
    """

    source: Reading
    text: str
    ids: list[int]
    read: list[Piece]
    chosen: list[Piece]

    @cached_property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """Targets (1, T) and sources (1, S) as ``Translator.forward`` takes them."""
        return torch.tensor([self.ids]), torch.tensor([self.source.ids])


def translate_source(subject: Subject, source: Reading) -> Translation:
    """Translate a text as ``hepta predict`` does.

    Raises:
        HeptaError: a source that is too long.
    """
    network, tokenizer = subject.network, subject.tokenizer
    assert isinstance(network, Translator)
    if len(source.ids) > MOST_SOURCE:
        raise HeptaError(
            f"{subject.directory}: the text has {len(source.ids)} tokens, of a translator's text hepta explain shows "
            f"{MOST_SOURCE}; give it a sentence at a time"
        )
    with evaluating(network):
        found = beam_search(network, [source.ids], BEAM, LENGTH_PENALTY, banned=never_chosen(network, tokenizer))
    ids = found[0].ids
    whole, pieces = pieces_of(tokenizer, ids)
    begin, end = network.config.bos_token_id, tokenizer.eos_id
    assert begin is not None
    read = [Piece(tokenizer.decode([begin], skip_special=False), special="bos"), *pieces]
    chosen = [*pieces, Piece(tokenizer.decode([end], skip_special=False), special="eos")]
    return Translation(source, whole, [begin, *ids], read, chosen)


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> tuple[str, list[Piece]]:
    """The text of generated ids, and its tokens with the characters of that text they touch."""
    parts = [tokenizer.token_bytes(i) for i in ids]
    data = b"".join(parts)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:  # half a character, which stands alone
        shown = [part.decode("utf-8", "replace") for part in parts]
        text, ends = "".join(shown), [sum(map(len, shown[: i + 1])) for i in range(len(shown))]
        spans = list(zip([0, *ends], ends, strict=False))
    else:
        leads = [0]
        for byte in data:
            leads.append(leads[-1] + ((byte & 0xC0) != 0x80))
        ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]
        spans = [(leads[a + 1] - 1, leads[b]) for a, b in zip([0, *ends], ends, strict=False)]
    blank = len(text) - len(text.lstrip())
    pieces = [Piece(piece.text, piece.start - blank, piece.end - blank) for piece in cut_up(text, spans)]
    return text.strip(), pieces


@torch.no_grad()
def translator_weights(network: Translator, made: Translation) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights of every layer of the encoder (1, H, S, S), the decoder (1, H, T, T) and across (1, H, T, S)."""
    with record_attention() as kept:
        network(*made.inputs)
    encoder = network.config.encoder_layers
    return kept[:encoder], kept[encoder::2], kept[encoder + 1 :: 2]
