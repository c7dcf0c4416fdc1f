"""The shapes of GPT-2 and BERT, and their Hugging Face spellings (no torch here)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hepta.config import HeptaError
from hepta.model.shape import Kind, TransformerShape, check_heads, need, special_ids

GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # spellings of the tanh form


@dataclass(frozen=True, kw_only=True)
class LearnedPositions(TransformerShape):
    """What GPT-2 and BERT share: as many heads for keys as for queries, learned positions, dropout.

    ``dropout`` acts while training, on the embeddings and on what each attention and MLP adds to the stream.
    """

    norm_eps: float
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self)

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads

    @property
    def longest(self) -> int:
        """Most positions of one sequence."""
        return self.max_positions

    def _layers(self) -> dict[str, int]:
        D, F, L = self.hidden_size, self.intermediate_size, self.num_layers
        return {"attention": L * (4 * D * D + 4 * D), "mlp": L * (2 * D * F + F + D)}


@dataclass(frozen=True, kw_only=True)
class GPT2Shape(LearnedPositions):
    """GPT-2: LayerNorm before each part, a final one, tied head."""

    max_positions: int = 1024
    norm_eps: float = 1e-5

    def parameters(self) -> dict[str, int]:
        """Parameter counts by class."""
        D = self.hidden_size
        return {
            "embedding": (self.vocab_size + self.max_positions) * D, **self._layers(),
            "norm": (2 * self.num_layers + 1) * 2 * D, "head": 0 if self.tied else self.vocab_size * D,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BertShape(LearnedPositions):
    """BERT: LayerNorm after each part; ``head`` is the masked-language-model head, ``pooler`` what reads [CLS]."""

    kind: ClassVar[Kind] = "masked"
    max_positions: int = 512
    norm_eps: float = 1e-12
    token_types: int = 2
    head: bool = True
    pooler: bool = False
    exact_gelu: bool = True

    def parameters(self) -> dict[str, int]:
        """Parameter counts by class."""
        D = self.hidden_size
        return {
            "embedding": (self.vocab_size + self.max_positions + self.token_types) * D, **self._layers(),
            "norm": (2 * self.num_layers + 1) * 2 * D, "pooler": (D * D + D) * self.pooler,
            "head": (D * D + 3 * D + self.vocab_size) * self.head,
        }  # fmt: skip


GPT2_PRESETS: dict[str, dict[str, Any]] = {  # where not given: vocabulary 8192, the defaults above
    "gpt2-nano": {"hidden_size": 192, "intermediate_size": 768, "num_layers": 4, "num_heads": 3},
    "gpt2-small": {
        "hidden_size": 768, "intermediate_size": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 50257,
        "dropout": 0.1,
    },
}  # fmt: skip
BERT_PRESETS: dict[str, dict[str, Any]] = {
    "bert-nano": {"hidden_size": 192, "intermediate_size": 768, "num_layers": 4, "num_heads": 3},
    "bert-base": {
        "hidden_size": 768, "intermediate_size": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 30522,
        "dropout": 0.1,
    },
}  # fmt: skip


def gpt2_from_hf(hf: Mapping[str, Any], where: str) -> GPT2Shape:
    """Read the ``config.json`` of a GPT-2.

    Raises:
        HeptaError: an option of Hugging Face's class that changes the mathematics, or a missing size.
    """
    for key, plain in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if bool(hf.get(key, plain)) != plain:
            raise HeptaError(f"{where}: {key} {hf[key]} is not supported; only {plain} is")
    if hf.get("activation_function", "gelu_new") not in GELU:
        raise HeptaError(f"{where}: activation_function {hf['activation_function']!r} is not supported; gelu_new is")
    vocab, width, layers, heads = need(hf, ("vocab_size", "n_embd", "n_layer", "n_head"), where)
    return GPT2Shape(
        vocab_size=vocab, hidden_size=width, num_layers=layers, num_heads=heads,
        intermediate_size=hf.get("n_inner") or 4 * width, max_positions=hf.get("n_positions") or 1024,
        norm_eps=hf.get("layer_norm_epsilon", 1e-5), dropout=hf.get("resid_pdrop", 0.1),
        tied=bool(hf.get("tie_word_embeddings", True)), **special_ids(hf),
    )  # fmt: skip


def gpt2_to_hf(shape: GPT2Shape) -> dict[str, Any]:
    """The family's own keys of a ``config.json``."""
    return {
        "n_embd": shape.hidden_size, "n_layer": shape.num_layers, "n_head": shape.num_heads,
        "n_inner": shape.intermediate_size, "n_positions": shape.max_positions, "n_ctx": shape.max_positions,
        "activation_function": "gelu_new", "layer_norm_epsilon": shape.norm_eps, "scale_attn_weights": True,
        "resid_pdrop": shape.dropout, "embd_pdrop": shape.dropout, "attn_pdrop": 0.0,
    }  # fmt: skip


def bert_from_hf(hf: Mapping[str, Any], where: str) -> BertShape:
    """Read the ``config.json`` of a BERT: with the masked-language-model head, or the encoder alone.

    Raises:
        HeptaError: relative positions, a decoder, another activation, or a missing size.
    """
    if hf.get("position_embedding_type", "absolute") != "absolute" or hf.get("is_decoder"):
        raise HeptaError(f"{where}: relative positions and BERT as a decoder are not supported")
    act = hf.get("hidden_act", "gelu")
    if act not in ("gelu", *GELU):
        raise HeptaError(f"{where}: hidden_act {act!r} is not supported; gelu and gelu_new are")
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    vocab, width, layers, heads, inner = need(hf, names, where)
    encoder = "BertModel" in (hf.get("architectures") or [])
    return BertShape(
        vocab_size=vocab, hidden_size=width, num_layers=layers, num_heads=heads, intermediate_size=inner,
        max_positions=hf.get("max_position_embeddings") or 512, token_types=hf.get("type_vocab_size") or 2,
        norm_eps=hf.get("layer_norm_eps", 1e-12), dropout=hf.get("hidden_dropout_prob", 0.1), exact_gelu=act == "gelu",
        tied=bool(hf.get("tie_word_embeddings", True)), head=not encoder, pooler=encoder, **special_ids(hf),
    )  # fmt: skip


def bert_to_hf(shape: BertShape) -> dict[str, Any]:
    """The family's own keys of a ``config.json``."""
    return {
        "hidden_size": shape.hidden_size, "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads, "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_positions, "type_vocab_size": shape.token_types,
        "layer_norm_eps": shape.norm_eps, "hidden_act": "gelu" if shape.exact_gelu else "gelu_new",
        "hidden_dropout_prob": shape.dropout, "attention_probs_dropout_prob": 0.0, "is_decoder": False,
    }  # fmt: skip
