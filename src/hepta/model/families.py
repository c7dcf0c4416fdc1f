"""The families of models: whose ``config.json`` is read how, and which presets there are (no torch here)."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hepta.config import HeptaError, nearest
from hepta.model import config as llama
from hepta.model import history, learned, marian
from hepta.model.scheme import read_scheme
from hepta.model.shape import Shape

if TYPE_CHECKING:
    from hepta.model.network import Network

VOCABULARY = 8192  # of a preset that has none of its own


@dataclass(frozen=True)
class Family:
    """One kind of model.

    Attributes:
        shape: its class of shapes.
        architectures: Hugging Face's class names → ``model_type``; the first is written unless ``architecture`` says.
        network: ``module:class``, imported when weights are needed.
        from_hf: parsed ``config.json`` and the file's name → shape.
        to_hf: shape → the family's own keys of ``config.json``.
        presets: name → the shape's fields.
        architecture: which of ``architectures`` a shape is, where there are several.
    """

    shape: type[Shape]
    architectures: Mapping[str, str]
    network: str
    from_hf: Callable[[Mapping[str, Any], str], Shape]
    to_hf: Callable[[Any], dict[str, Any]]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    architecture: Callable[[Any], str] | None = None


FAMILIES: tuple[Family, ...] = (
    Family(
        llama.ModelConfig, {name: family for family, name in llama.ARCHITECTURES.items()},
        "hepta.model.decoder:Decoder", llama.decoder_from_hf, llama.decoder_to_hf, llama.PRESETS,
        lambda shape: llama.ARCHITECTURES[shape.family],
    ),
    Family(
        learned.GPT2Shape, {"GPT2LMHeadModel": "gpt2"}, "hepta.model.gpt2:GPT2",
        learned.gpt2_from_hf, learned.gpt2_to_hf, learned.GPT2_PRESETS,
    ),
    Family(
        learned.BertShape, {"BertForMaskedLM": "bert", "BertForPreTraining": "bert", "BertModel": "bert"},
        "hepta.model.bert:Bert", learned.bert_from_hf, learned.bert_to_hf, learned.BERT_PRESETS,
        lambda shape: "BertForMaskedLM" if shape.head else "BertModel",
    ),
    Family(
        marian.TranslatorShape, {"MarianMTModel": "marian"}, "hepta.model.translator:Translator",
        marian.translator_from_hf, marian.translator_to_hf, marian.PRESETS,
    ),
    Family(
        history.NGramShape, {"HeptaNGramForCausalLM": "hepta-ngram"}, "hepta.model.ngram:NGram",
        history.ngram_from_hf, history.ngram_to_hf, history.NGRAM_PRESETS,
    ),
    Family(
        history.FeedForwardShape, {"HeptaFeedForwardForCausalLM": "hepta-feedforward"},
        "hepta.model.feedforward:FeedForward", history.feedforward_from_hf, history.feedforward_to_hf,
        history.FEEDFORWARD_PRESETS,
    ),
    Family(
        history.LSTMShape, {"HeptaLSTMForCausalLM": "hepta-lstm"}, "hepta.model.lstm:LSTM",
        history.lstm_from_hf, history.lstm_to_hf, history.LSTM_PRESETS,
    ),
)  # fmt: skip
PRESETS: dict[str, Family] = {name: family for family in FAMILIES for name in family.presets}


def preset(name: str, vocab_size: int | None = None) -> Any:
    """A named shape; ``vocab_size`` (multiple of 64) replaces the preset's own.

    Raises:
        HeptaError: no such preset; names the known ones.
    """
    if name not in PRESETS:
        raise HeptaError(f"model preset {name!r} is unknown; {nearest(name, list(PRESETS))}")
    values = {"vocab_size": VOCABULARY, **PRESETS[name].presets[name]}
    return PRESETS[name].shape(**values if vocab_size is None else {**values, "vocab_size": vocab_size})


def family_of(shape: Shape) -> Family:
    """The family a shape belongs to."""
    return next(family for family in FAMILIES if type(shape) is family.shape)


def network_class(shape: Shape) -> "type[Network]":
    """The module behind a shape; imports torch."""
    module, _, name = family_of(shape).network.partition(":")
    return getattr(importlib.import_module(module), name)


def from_hf(hf: Mapping[str, Any], where: str = "config.json") -> Shape:
    """Read a Hugging Face ``config.json`` in transformers 4's or 5's spelling.

    Args:
        hf: the parsed JSON.
        where: file name for messages.

    Raises:
        HeptaError: another architecture, integers of another kind than ours, or what the family refuses.
    """
    names = hf.get("architectures") or []
    for family in FAMILIES:
        by_type = not names and hf.get("model_type") in family.architectures.values()
        if by_type or set(names) & set(family.architectures):
            read_scheme(hf, where)
            return family.from_hf(hf, where)
    found = ", ".join(map(str, names)) or str(hf.get("model_type"))
    if found.endswith("ForSequenceClassification"):
        raise HeptaError(f"{where}: is a classifier, which does not continue text; use hepta predict")
    known = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise HeptaError(f"{where}: architecture {found} is not supported; supported: {known}")


def to_hf(shape: Shape, dtype: str = "float32") -> dict[str, Any]:
    """The ``config.json`` of a model, in transformers 5's spelling and the older one beside it.

    Args:
        shape: the model's.
        dtype: name of the saved tensors' dtype, for example ``bfloat16``.

    Raises:
        HeptaError: the family's class in transformers has no such option.
    """
    family = family_of(shape)
    name = family.architecture(shape) if family.architecture else next(iter(family.architectures))
    return {
        "architectures": [name], "model_type": family.architectures[name], "vocab_size": shape.vocab_size,
        **family.to_hf(shape), "tie_word_embeddings": shape.tied, "initializer_range": 0.02, "use_cache": True,
        "bos_token_id": shape.bos_token_id, "eos_token_id": shape.eos_token_id, "pad_token_id": shape.pad_token_id,
        "dtype": dtype, "torch_dtype": dtype,
    }  # fmt: skip
