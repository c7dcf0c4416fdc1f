"""A network's body with a head that reads one class or number off a whole text.

On disk a classifier is exactly Hugging Face's ``…ForSequenceClassification`` of its family: BERT's pooler and
``classifier``; ``score`` without bias on the last token of a causal model. An LSTM of ours, which transformers does not
know, reads the mean of its states. Which tokens are real is told by ``lengths``, never by the padding's id.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hepta.config import HeptaError
from hepta.model.adapters import (
    PREFIX,
    attach_lora,
    attach_stored,
    find_base,
    lora_layers,
    merge_adapters,
    read_adapter,
    save_adapter,
)  # fmt: skip
from hepta.model.families import FAMILIES, PRESETS, from_hf, network_class, preset, to_hf
from hepta.model.layers import Linear, fill_normal
from hepta.model.load import (
    ADAPTER,
    assign,
    load_model,
    read_config,
    read_hepta_json,
    refuse_quantized,
    resolve_model,
    save_model,
)  # fmt: skip
from hepta.model.network import Network, Stored
from hepta.model.shape import Shape
from hepta.stage import read_json, write_json
from hepta.tokenizer.contract import copy_tokenizer, read_specials

SUFFIX = "ForSequenceClassification"
_ENDS = re.compile(r"(ForCausalLM|LMHeadModel|ForMaskedLM|ForPreTraining|Model)$")


@dataclass(frozen=True)
class Task:
    """What a classifier tells: one of ``labels``, or with a single label a number.

    Attributes:
        labels: names of the classes, in the order of the logits; one name: a number is told.
        mean, std: of the training targets; a number is logit · std + mean.
        sequence_length: tokens of a text that are read.
        dropout: before the head, while training.
    """

    labels: tuple[str, ...]
    mean: float = 0.0
    std: float = 1.0
    sequence_length: int = 256
    dropout: float = 0.0

    @property
    def is_number(self) -> bool:
        """Whether a number is told rather than a class."""
        return len(self.labels) == 1


class Classifier(nn.Module):
    """A body and its head: ids (B, T) and lengths (B,) → logits (B, C) in float32."""

    def __init__(self, shape: Shape, task: Task) -> None:
        super().__init__()
        self.network: Network = network_class(_bare(shape))(_bare(shape))
        if type(self.network).body is Network.body:
            raise HeptaError(f"a {type(self.network).__name__} has no hidden states that a classifier could read")
        self.task = task
        classes, width = len(task.labels), shape.hidden_size
        self.masked = shape.kind == "masked"
        if self.masked:
            self.classifier = Linear(width, classes)
        else:
            self.score = Linear(width, classes, bias=False)

    @property
    def config(self) -> Any:
        """The body's shape."""
        return self.network.config

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Dtype of the body's products; the head is computed in float32."""
        return self.network.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype | None) -> None:
        self.network.compute_dtype = dtype

    @property
    def blocks(self) -> list[nn.Module]:
        """The body's layers, each of which may be compiled alone."""
        return self.network.blocks

    @property
    def output_weight(self) -> Any:
        """What tells the dtype of the weights."""
        return self.network.output_weight

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, C) of texts.

        Args:
            input_ids: (B, T), padded on the right by any id.
            lengths: real tokens of each row (B,), at least 1.
        """
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        padded = places >= lengths[:, None]  # (B, T)
        segments = padded.long() if self.masked else None  # a causal model never sees what comes after
        pooled = self._pool(self.network.body(input_ids, segments), padded, lengths)
        pooled = F.dropout(pooled.float(), self.task.dropout, self.training)
        return self.classifier(pooled) if self.masked else self.score(pooled)

    def _pool(self, hidden: Tensor, padded: Tensor, lengths: Tensor) -> Tensor:
        """One vector (B, D) of hidden states (B, T, D)."""
        if self.masked:
            return self.network.get_submodule("bert.pooler")(hidden)
        if not self.network.blocks:  # recurrent: early tokens are far from the last state
            return hidden.masked_fill(padded[..., None], 0).float().sum(1) / lengths[:, None]
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]

    @torch.no_grad()
    def init_head(self, seed: int) -> None:
        """Draw the head, and BERT's pooler with it: N(0, 0.02²), biases 0."""
        for name, parameter in self.named_parameters():
            if name in self.head_names():
                parameter.zero_() if parameter.ndim == 1 else fill_normal(parameter, seed, name, 0.02)

    def head_names(self) -> list[str]:
        """Names of the parameters that no language model brings: trained also where the body is frozen."""
        heads = ("score.", "classifier.", "network.bert.pooler.")
        return [name for name, _ in self.named_parameters() if name.startswith(heads)]

    def from_disk(self, name: str, tensor: Tensor) -> Stored | None:
        """A stored tensor under its name in memory."""
        if name.startswith(("score.", "classifier.")):
            return name, tensor
        found = self.network.from_disk(name, tensor)
        return None if found is None else (f"network.{found[0]}", found[1])

    def to_disk(self, name: str, tensor: Tensor) -> Stored:
        """A tensor under the name that Hugging Face's class gives it."""
        if not name.startswith("network."):
            return name, tensor
        stored, tensor = self.network.to_disk(name.removeprefix("network."), tensor)
        return f"bert.{stored}" if self.masked and not stored.startswith("bert.") else stored, tensor


def _bare(shape: Shape) -> Shape:
    """The shape without a language model's head; BERT's with its pooler."""
    return shape.replace(head=False, pooler=True) if shape.kind == "masked" else shape.replace(tied=True)


def architecture(shape: Shape) -> tuple[str, str]:
    """Hugging Face's class and ``model_type`` of a classifier."""
    hf = to_hf(shape)
    return _ENDS.sub("", hf["architectures"][0]) + SUFFIX, hf["model_type"]


def build_classifier(
    model: str | Path, task: Task, vocab_size: int | None = None, seed: int = 0, dropout: float | None = None
) -> Classifier:
    """A classifier with a fresh head, on a preset's fresh body or on a model's.

    Args:
        model: preset, model, run or adapter directory, catalogue name; a classifier's body serves too.
        task: what it shall tell.
        vocab_size: of a preset.
        seed: of fresh weights.
        dropout: in the body, where its family has dropout; None keeps the model's own.

    Raises:
        HeptaError: no such model, or one that has no body to read.
    """
    if str(model) in PRESETS:
        body: Network | None = None
        shape = preset(str(model), vocab_size)
    else:
        body = _body_of(model)
        shape = body.config
    if shape.kind == "translation":
        raise HeptaError(f"{model}: is a translator; classes are read off a causal or masked language model")
    if dropout is not None and hasattr(shape, "dropout"):
        shape = shape.replace(dropout=dropout)
    classifier = Classifier(shape, task)
    if body is None:
        classifier.network.init_weights(seed)
    classifier.init_head(seed)
    if body is not None:
        _copy_body(body, classifier.network)
    return classifier


def _body_of(model: str | Path) -> Network:
    """The network of a model, adapters merged; of a classifier, its body."""
    refuse_quantized(resolve_model(model))
    network = load_classifier(model).network if is_classifier(resolve_model(model)) else load_model(model)
    return merge_adapters(network) if lora_layers(network) else network


@torch.no_grad()
def _copy_body(source: Network, target: Network) -> None:
    stored = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        if name in stored:
            parameter.copy_(stored[name])
        elif "pooler" not in name:
            raise HeptaError(f"the model lacks {name}, which a classifier needs")


def adapt(
    classifier: Classifier, rank: int, alpha: float, targets: list[str] | None, dropout: float, seed: int
) -> None:
    """Freeze the body, put low-rank adapters on it, and leave the head (and BERT's pooler) to be trained whole."""
    attach_lora(classifier.network, rank, alpha, targets, dropout, seed)
    heads = set(classifier.head_names())
    for name, parameter in classifier.named_parameters():
        if name in heads:
            parameter.requires_grad_(True)


def save_classifier(
    classifier: Classifier,
    directory: Path | str,
    tokenizer: Path,
    dtype: torch.dtype | None = None,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Write a directory that hepta and transformers' ``AutoModelForSequenceClassification`` both open.

    Args:
        classifier: without adapters (see ``save_classifier_adapter``).
        directory: made if needed.
        tokenizer: directory whose tokenizer files are copied beside the weights.
        dtype: of the tensors on disk; None keeps the weights' own.
        provenance: kept in ``hepta.json``.
    """
    target, task = Path(directory), classifier.task
    save_model(classifier, target, tokenizer, dtype, provenance)  # pyright: ignore[reportArgumentType]
    (target / "generation_config.json").unlink(missing_ok=True)
    name, kind = architecture(classifier.config)
    config = read_json(target / "config.json")
    numbered = {str(i): label for i, label in enumerate(task.labels)}
    config |= {
        "architectures": [name], "model_type": kind, "num_labels": len(task.labels),
        "id2label": numbered, "label2id": {label: int(i) for i, label in numbered.items()},
        "problem_type": "regression" if task.is_number else "single_label_classification",
        "classifier_dropout": task.dropout,
    }  # fmt: skip
    write_json(target / "config.json", config)
    write_json(target / "hepta.json", {**read_hepta_json(target), "task": asdict(task)})


def save_classifier_adapter(
    classifier: Classifier, directory: Path | str, base: Path, tokenizer: Path, provenance: dict[str, Any] | None = None
) -> None:
    """Write a PEFT directory: adapters, and the head under ``modules_to_save``, as PEFT's SEQ_CLS has it."""
    heads = set(classifier.head_names())
    stored = dict(classifier.to_disk(name, p) for name, p in classifier.named_parameters() if name in heads)
    save_adapter(classifier.network, directory, base, provenance, stored)
    target = Path(directory)
    copy_tokenizer(tokenizer, target)
    contract = read_specials(tokenizer).contract()
    known = {**read_hepta_json(target), "task": asdict(classifier.task), "template": contract}
    write_json(target / "hepta.json", known)


def is_classifier(directory: Path) -> bool:
    """Whether a (resolved) directory holds a classifier, or adapters of one."""
    if (directory / ADAPTER).is_file():
        return read_json(directory / ADAPTER).get("task_type") == "SEQ_CLS"
    config = read_json(directory / "config.json") if (directory / "config.json").is_file() else {}
    return any(str(name).endswith(SUFFIX) for name in config.get("architectures") or [])


def read_body_shape(directory: Path) -> Shape:
    """The shape behind a (resolved) model, classifier or adapter directory."""
    if (directory / ADAPTER).is_file():
        return read_body_shape(find_base(directory, read_json(directory / ADAPTER)))
    if is_classifier(directory):
        return _shape_of(read_json(directory / "config.json"), str(directory / "config.json"))
    return read_config(directory)


def load_classifier(path: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """Load a classifier from a model directory, a run, or a PEFT directory (base + adapters + head).

    Returns:
        the classifier in evaluation mode; ``task`` says what its logits are.

    Raises:
        HeptaError: no such directory, no classifier, tensors that do not fit.
    """
    directory = resolve_model(path)
    if not is_classifier(directory):
        raise HeptaError(f"{directory}: is no classifier; make one with hepta tune --model {path}")
    if (directory / ADAPTER).is_file():
        return _load_adapted(directory).to(device).eval()
    classifier = meta_classifier(directory)
    assign(classifier, directory, None, device)  # pyright: ignore[reportArgumentType]
    return classifier.eval()


def meta_classifier(directory: Path) -> Classifier:
    """The classifier of a (resolved) model directory, without its weights."""
    hf = read_json(directory / "config.json")
    with torch.device("meta"):
        return Classifier(_shape_of(hf, str(directory / "config.json")), _read_task(directory, hf))


def _shape_of(hf: dict[str, Any], where: str) -> Shape:
    """A classifier's body: read as the language model of its family."""
    name = str(hf["architectures"][0]).removesuffix(SUFFIX)
    stems = {_ENDS.sub("", known): known for family in FAMILIES for known in family.architectures}
    if name not in stems:
        raise HeptaError(f"{where}: architecture {hf['architectures'][0]} is not supported; known: {', '.join(stems)}")
    return from_hf({**hf, "architectures": [stems[name]]}, where)


def _read_task(directory: Path, hf: dict[str, Any]) -> Task:
    """What ``hepta.json`` says, else what Hugging Face's keys say."""
    known = read_hepta_json(directory).get("task")
    if known:
        return Task(**{**known, "labels": tuple(known["labels"])})
    names = hf.get("id2label") or {str(i): f"LABEL_{i}" for i in range(int(hf.get("num_labels", 2)))}
    labels = tuple(str(names[i]) for i in sorted(names, key=int))
    longest = hf.get("max_position_embeddings") or hf.get("n_positions") or 512
    return Task(labels, sequence_length=min(int(longest), 512))


def _load_adapted(directory: Path) -> Classifier:
    config = read_json(directory / ADAPTER)
    known = read_hepta_json(directory).get("task")
    if not known:
        raise HeptaError(f"{directory}: lacks hepta.json, which names its classes; load it through its own program")
    base = find_base(directory, config)
    classifier = build_classifier(base, Task(**{**known, "labels": tuple(known["labels"])}))
    tensors = read_adapter(directory)
    heads = {}
    for stored in [name for name in tensors if ".lora_" not in name]:
        tensor = tensors.pop(stored)
        bias = tensor.ndim == 1  # read_adapter takes ``.weight`` off
        heads[stored if bias else f"{stored}.weight"] = tensor
    attach_stored(classifier.network, directory, config, tensors)
    parameters = dict(classifier.named_parameters())
    with torch.no_grad():
        for name in classifier.head_names():
            stored, _ = classifier.to_disk(name, parameters[name])
            if stored not in heads or heads[stored].shape != parameters[name].shape:
                raise HeptaError(f"{directory}: {PREFIX}{stored} is missing or has another shape")
            parameters[name].copy_(heads[stored])
    return classifier
