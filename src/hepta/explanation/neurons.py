"""``hepta explain neurons``: a model taken apart: what each head, attention and MLP is worth, what excites its neurons.

Each part is left out alone, and the loss is measured again on the same text. Leaving out is a blunt question: the rest
of the model never met such a state, and two parts that do the same work each seem to cost nothing.
"""

import math
from typing import Any

from hepta.config import HeptaError
from hepta.console import progress
from hepta.explanation.ablation import Ablation, Costs, Neuron, ablate, top_neurons
from hepta.explanation.config import NeuronsConfig
from hepta.explanation.page import Explained, explained, page_path
from hepta.explanation.passages import Passages, read_passages
from hepta.explanation.reading import Subject, open_subject

NEURONS, EXCITED = 6, 5  # shown of each layer; tokens shown of each neuron
BEFORE, AFTER = 6, 2  # tokens shown around an exciting one


def explain_neurons(config: NeuronsConfig) -> Explained:
    """Write the page of what a model's parts are worth on a text.

    Raises:
        HeptaError: a model without heads and MLPs, a translator, no text.
    """
    path = page_path("neurons", config.output)
    subject = open_subject(config.model, config.threads)
    network = subject.network
    readers, mlps = network.attention_outputs, network.neuron_outputs
    if subject.kind == "translation":
        raise HeptaError(f"{subject.directory}: is a translator; parts of models that read one text are measured")
    if not mlps:
        what = f"the class {type(network).__name__} has neither heads nor MLPs to leave out"
        raise HeptaError(f"{subject.directory}: {what}")
    passages = read_passages(subject, config.text, config.split, config.tokens)
    heads = network.config.num_heads if readers else 0
    ablations: list[Ablation] = [(part, head, heads) for part in readers for head in range(heads)]
    ablations += [(part, None, 1) for part in (*readers, *mlps)]
    with progress("neurons", len(ablations) + 1, "passes over the text") as bar:
        found = top_neurons(passages, mlps, NEURONS, EXCITED)
        bar.advance(1)
        costs = _facts(ablate(passages, ablations, bar.advance), passages)
    loss = float(passages.losses().sum() / passages.weights.sum())
    spread = len(readers) * heads
    facts = {
        "format": 1, "kind": "neurons", "model": config.model, "family": type(network).__name__,
        "text": config.text if len(config.text) < 200 else config.text[:200] + "…", "tokens": passages.tokens,
        "unit": passages.unit, "units": len(passages.weights), "predictions": int(passages.weights.sum()),
        "per": {"rows": "row"}.get(passages.unit, "masked token" if subject.kind == "masked" else "token"),
        "loss": loss, "bits_per_byte": _bits(loss, passages),
        "heads": [costs[layer * heads : (layer + 1) * heads] for layer in range(len(readers))],
        "attention": costs[spread : spread + len(readers)], "mlp": costs[spread + len(readers) :],
        "neurons": [[_neuron(subject, passages, neuron) for neuron in layer] for layer in found],
    }  # fmt: skip
    return explained("neurons", ("What each part is worth", "每个部件值多少"), facts, path)


def _bits(nats: float, passages: Passages) -> float | None:
    """Bits per byte of text, where all of it is predicted."""
    return nats * passages.weights.sum() / (math.log(2) * passages.bytes) if passages.bytes else None


def _facts(costs: Costs, passages: Passages) -> list[dict[str, Any]]:
    def bound(value: float) -> float | None:
        return None if math.isnan(value) else float(value)

    return [
        {"cost": float(cost), "low": bound(low), "high": bound(high), "bits_per_byte": _bits(float(cost), passages)}
        for cost, low, high in zip(costs.cost, costs.low, costs.high, strict=True)
    ]


def _neuron(subject: Subject, passages: Passages, neuron: Neuron) -> dict[str, Any]:
    """A neuron with the words around each token that excites it."""
    excited = []
    for value, batch, row, place in neuron.excited:
        read = passages.batches[batch]
        ids = read.ids[row, : int(read.lengths[row])].tolist()
        parts = (ids[max(0, place - BEFORE) : place], [ids[place]], ids[place + 1 : place + 1 + AFTER])
        before, token, after = (subject.tokenizer.decode(part, skip_special=False) for part in parts)
        excited.append({"value": value, "before": before, "token": token, "after": after})
    told = {"number": neuron.number, "mean": neuron.mean, "norm": neuron.norm, "weight": neuron.weight}
    return {**told, "excited": excited}
