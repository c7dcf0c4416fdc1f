"""Fill masked places of a text: what a model that sees both sides thinks was there."""

import re
from dataclasses import dataclass

import torch

from hepta.config import HeptaError
from hepta.generation.config import GenerateConfig
from hepta.generation.opening import open_network
from hepta.model.load import resolve_model
from hepta.model.network import Network
from hepta.tokenizer.load import Tokenizer, load_tokenizer

MASKS = re.compile(r"\[MASK\]|<mask>")  # how people write a hidden word, whatever the tokenizer calls it


@dataclass
class Guess:
    """One token for one place, and its probability."""

    text: str
    probability: float


@dataclass
class Filled:
    """A text with its masks filled by the likeliest tokens, and each place's best guesses."""

    text: str
    places: list[list[Guess]]


@dataclass
class FillResult:
    """Filled texts in the order of the prompts."""

    model: str
    filled: list[Filled]


def read_masks(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a document whose ``[MASK]`` (or ``<mask>``) stand for one hidden token each.

    A blank before a mask belongs to the hidden token where the tokenizer writes words with their blank.

    Raises:
        HeptaError: no mask in the text.
    """
    assert tokenizer.mask_id is not None
    parts = split_masks(text, tokenizer)
    if len(parts) == 1:
        raise HeptaError(f"nothing to fill in {text[:40]!r}: write [MASK] where a token is hidden")
    ids = [tokenizer.bos_id]
    for number, (part, _) in enumerate(parts):
        ids += [tokenizer.mask_id] if number else []
        ids += tokenizer.encode(part)
    return [*ids, tokenizer.eos_id]


def split_masks(text: str, tokenizer: Tokenizer) -> list[tuple[str, int]]:
    """What stands before, between and after the masks of a text, each with the place where it begins."""
    joined = tokenizer.encode(" a") != [*tokenizer.encode(" "), *tokenizer.encode("a")]
    parts, start = [], 0
    for mask in MASKS.finditer(text):
        part = text[start : mask.start()]
        parts.append((part.rstrip(" ") if joined else part, start))
        start = mask.end()
    return [*parts, (text[start:], start)]


@torch.no_grad()
def fill_masks(model: Network, tokenizer: Tokenizer, ids: list[int], best: int = 5) -> Filled:
    """Fill every mask of a sequence with its likeliest token, all at once.

    Args:
        model: a masked model in evaluation mode.
        tokenizer: its own.
        ids: (T,) with mask tokens.
        best: guesses kept for each place.

    Raises:
        HeptaError: longer than the model reads.
    """
    longest = model.config.longest
    if longest is not None and len(ids) > longest:
        raise HeptaError(f"the text has {len(ids)} tokens, the model reads {longest}; shorten it")
    places = [place for place, token in enumerate(ids) if token == tokenizer.mask_id]
    device = model.output_weight.device
    logits = model(torch.tensor([ids], device=device))[0, places].float()  # (places, V)
    logits[:, tokenizer.size :] = float("-inf")
    logits[:, sorted(tokenizer.special_ids)] = float("-inf")
    values, tokens = logits.softmax(-1).topk(best)
    filled = list(ids)
    guesses = []
    for place, chances, candidates in zip(places, values.tolist(), tokens.tolist(), strict=True):
        filled[place] = candidates[0]
        pairs = zip(candidates, chances, strict=True)
        guesses.append([Guess(tokenizer.decode([token]).strip() or "␣", chance) for token, chance in pairs])
    return Filled(tokenizer.decode(filled), guesses)


def fill(config: GenerateConfig) -> FillResult:
    """Fill every text of ``config.fill``: the library function behind ``hepta generate --fill``.

    Raises:
        HeptaError: a model that sees one side only, a text without a mask or too long.
    """
    directory = resolve_model(config.model)
    tokenizer = load_tokenizer(directory)
    network = open_network(config, directory, tokenizer)
    if network.config.kind != "masked":
        raise HeptaError(f"{directory}: sees one side only and cannot fill masks; use --prompt, or a masked model")
    if tokenizer.mask_id is None:
        raise HeptaError(f"{directory}: its tokenizer names no mask_token; restore the tokenizer files it came with")
    texts = [read_masks(text, tokenizer) for text in config.fill]
    return FillResult(str(directory), [fill_masks(network, tokenizer, ids, config.best) for ids in texts])
