"""``hepta explain lens``: what each layer would answer if it were the last.

The logit lens (nostalgebraist 2020): the residual stream after each layer goes through the model's own final norm and
unembedding. Early layers were never trained to be read so; where their answer is strange, that may be the lens.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from hepta.config import HeptaError
from hepta.explanation.config import LensConfig
from hepta.explanation.page import Explained, explained, page_path
from hepta.explanation.reading import Piece, Subject, open_subject, read_text
from hepta.explanation.translation import Translation, translate_source
from hepta.model.network import Network, unembed
from hepta.model.translator import Translator
from hepta.tokenizer.load import Tokenizer

ROWS = 128  # positions whose logits are alive at once


def explain_lens(config: LensConfig) -> Explained:
    """Write the page of what every layer of a model would answer.

    Raises:
        HeptaError: a model whose layers cannot be read by its head, a masked model's text without a mask.
    """
    path = page_path("lens", config.output)
    subject = open_subject(config.model, config.threads)
    network, source = subject.network, read_text(subject, config.text)
    made = None
    if subject.classifier is not None:
        raise HeptaError(
            f"{subject.directory}: is a classifier, which has no head that says tokens; "
            "hepta explain attribution tells what decides its answer"
        )
    if isinstance(network, Translator):
        made = translate_source(subject, source)
        pieces, places = made.read, list(range(len(made.ids)))
    else:
        _refuse_unreadable(subject)
        pieces, places = source.pieces, _places(subject, source.pieces)
    layers = residuals(network, source.ids, made)
    facts = {
        "format": 1, "kind": "lens", "name": config.model, "family": type(network).__name__, "reads": subject.kind,
        "text": source.text, "translation": None if made is None else made.text, "top": config.top,
        "tokens": [asdict(piece) for piece in pieces], "layers": len(layers) - 1,
        "positions": read_layers(network, subject.tokenizer, layers, places, config.top),
    }  # fmt: skip
    return explained("lens", ("What each layer would say", "每一层会说什么"), facts, path)


def _refuse_unreadable(subject: Subject) -> None:
    network = subject.network
    if not network.blocks:
        why = {
            "LSTM": "an LSTM has no lens: each layer has its own state, and only the last one's is read by the head",
            "NGram": "an n-gram model has no lens: it has no layers, it counts",
            "FeedForward": "a feed-forward model has no lens: it has one hidden layer",
        }.get(type(network).__name__, "it has no lens: its layers do not add to one stream")  # fmt: skip
        raise HeptaError(f"{subject.directory}: {why}; take a Transformer")


def _places(subject: Subject, pieces: list[Piece]) -> list[int]:
    """Positions that predict something: all of a causal model, the masks of a masked one."""
    if subject.kind != "masked":
        return list(range(len(pieces)))
    found = [place for place, piece in enumerate(pieces) if piece.special == "mask"]
    if not found:
        raise HeptaError(f"{subject.directory}: predicts hidden tokens only; write [MASK] in the text where one hides")
    return found


@torch.no_grad()
def residuals(network: Network, ids: list[int], made: Translation | None = None) -> list[Tensor]:
    """What enters the first layer and what every layer leaves, (T, D) each.

    Args:
        network: with blocks; a translator's decoder is read.
        ids: (T,).
        made: of a translator.
    """
    kept: list[Tensor] = []
    blocks = list(network.model.decoder.layers) if isinstance(network, Translator) else network.blocks

    def entering(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept.append(inputs[0][0])

    def leaving(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        kept.append(output[0])

    hooks = [blocks[0].register_forward_pre_hook(entering), *(b.register_forward_hook(leaving) for b in blocks)]
    try:
        if made is not None:
            assert isinstance(network, Translator)
            network.decode(made.inputs[0], network.remember(made.inputs[1]))
        else:
            network.body(torch.tensor([ids]))
    finally:
        for hook in hooks:
            hook.remove()
    return kept


@torch.no_grad()
def lens_logits(network: Network, residual: Tensor) -> Tensor:
    """Logits (N, V) of residuals (N, D), float32: final norm, what stands before the head, unembedding."""
    hidden = network.before_head(network.after_layers(residual[None]))
    return unembed(hidden, network.output_weight, network.output_bias)[0].float()


def read_layers(
    network: Network, tokenizer: Tokenizer, layers: list[Tensor], places: list[int], top: int
) -> list[dict[str, Any]]:
    """What every layer says at every place.

    Args:
        network, tokenizer: of the residuals.
        layers: L + 1 residuals (T, D), the embedding's first.
        places: positions that are told.
        top: tokens kept.

    Returns:
        of each place ``place``, ``answer`` (the model's own token), and lists over the L + 1 layers: ``top`` [[token,
        probability], …], ``answer_probability``, ``kl`` = KL(last layer ‖ this layer) in nats, ``entropy``.
    """
    told: list[dict[str, Any]] = []
    for start in range(0, len(places), ROWS):
        some = places[start : start + ROWS]
        final = _log_probabilities(network, tokenizer, layers[-1][some])
        answers = final.argmax(-1)
        rows: list[dict[str, Any]] = [
            {"place": place, "answer": show_token(tokenizer, token), "top": [], "answer_probability": [], "kl": []}
            for place, token in zip(some, answers.tolist(), strict=True)
        ]
        for residual in layers:
            now = _log_probabilities(network, tokenizer, residual[some])
            divergence = torch.where(final > -torch.inf, final.exp() * (final - now), 0.0).sum(-1).tolist()
            chances, tokens = now.exp().topk(top)
            own = now.gather(1, answers[:, None]).exp()[:, 0].tolist()
            for row, kl, chance, token, probability in zip(
                rows, divergence, chances.tolist(), tokens.tolist(), own, strict=True
            ):
                pairs = zip(token, chance, strict=True)
                row["top"].append([[show_token(tokenizer, t), round(c, 6)] for t, c in pairs])
                row["answer_probability"].append(round(probability, 6))
                row["kl"].append(round(max(0.0, kl), 6))
        told += rows
    return told


def _log_probabilities(network: Network, tokenizer: Tokenizer, residual: Tensor) -> Tensor:
    logits = lens_logits(network, residual)
    logits[:, tokenizer.size :] = -torch.inf  # rows that are no tokens
    return logits.log_softmax(-1)


def show_token(tokenizer: Tokenizer, token: int) -> str:
    """A token as people see it: a special one's name, part of a character as its bytes."""
    if token in tokenizer.special_ids:
        return tokenizer.decode([token], skip_special=False)
    data = tokenizer.token_bytes(token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"‹{byte:02X}›" if byte >= 0x80 else chr(byte) for byte in data)
