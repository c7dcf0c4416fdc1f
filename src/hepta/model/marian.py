"""The shape of an encoder–decoder translator, and Marian's spelling of it (no torch here)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hepta.config import HeptaError
from hepta.model.shape import Kind, TokenFlops, TransformerShape, check_heads, need

BEAM, LENGTH_PENALTY = 4, 0.6  # of Vaswani et al. 2017
# what config.json must say for our mathematics to be Marian's
SETTINGS = {"activation_function": "relu", "scale_embedding": True, "share_encoder_decoder_embeddings": True,
            "tie_word_embeddings": True}  # fmt: skip
DEFAULTS = {"activation_function": "gelu", "scale_embedding": False}  # of MarianConfig, where a key is left out


@dataclass(frozen=True, kw_only=True)
class TranslatorShape(TransformerShape):
    """The Transformer of Vaswani et al. 2017: an encoder of the source, a decoder of the target.

    ``num_layers`` counts the decoder's layers. One matrix embeds source and target and is the output's, so both
    languages share a vocabulary. ``bos_token_id`` is what every target begins with. ``dropout`` is applied to each
    sub-layer's output and to the sums of embeddings and positions, in training only.
    """

    kind: ClassVar[Kind] = "translation"
    sizes: ClassVar[tuple[str, ...]] = (*TransformerShape.sizes, "encoder_layers")
    encoder_layers: int
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self)
        if self.hidden_size % 2:
            raise HeptaError(f"model config: hidden_size {self.hidden_size} is odd; positions are pairs of waves")
        if not self.tied:
            raise HeptaError("model config: a translator's output is tied to its embedding")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values: as many as of queries."""
        return self.num_heads

    def parameters(self) -> dict[str, int]:
        """Parameter counts by class: embedding (the output's too), attention, mlp, norm; positions have none."""
        width, wide = self.hidden_size, self.intermediate_size
        layers, attentions = self.encoder_layers + self.num_layers, self.encoder_layers + 2 * self.num_layers
        return {
            "embedding": self.vocab_size * width,
            "attention": attentions * 4 * (width * width + width),
            "mlp": layers * (2 * width * wide + wide + width),
            "norm": (attentions + layers) * 2 * width,
            "head": 0,
        }

    def token_flops(self, sequence_length: int) -> TokenFlops:
        """FLOPs of a token's forward pass, the mean of a source's and a target's token where both are as many.

        Self-attention of the source meets all of it, that of the target half on average, cross-attention all.
        """
        width, both = self.hidden_size, self.encoder_layers + self.num_layers
        keys = (self.encoder_layers + 1.5 * self.num_layers) * sequence_length
        return TokenFlops(
            projections=4.0 * width * width * (both + self.num_layers),
            attention=2.0 * width * keys,
            mlp=2.0 * width * self.intermediate_size * both,
            head=1.0 * width * self.vocab_size,
        )


PRESETS: dict[str, dict[str, Any]] = {  # vocabulary of the tokenizer
    "transformer-nano": {
        "hidden_size": 192, "intermediate_size": 768, "num_layers": 2, "encoder_layers": 2, "num_heads": 4,
        "max_positions": 512,
    },
    "transformer-base": {  # of Vaswani et al. 2017, table 3
        "hidden_size": 512, "intermediate_size": 2048, "num_layers": 6, "encoder_layers": 6, "num_heads": 8,
        "max_positions": 512, "vocab_size": 37_056,
    },
}  # fmt: skip


def translator_from_hf(hf: Mapping[str, Any], where: str) -> TranslatorShape:
    """Read a Marian ``config.json``.

    Raises:
        HeptaError: a size is missing, or a setting is not that of the original Transformer.
    """
    for key, wanted in SETTINGS.items():
        found = hf.get(key, DEFAULTS.get(key, True))
        if found != wanted:
            raise HeptaError(f"{where}: {key} {found!r} is not supported; a translator has {wanted!r}")
    for name in ("ffn_dim", "attention_heads"):
        if hf.get(f"encoder_{name}") != hf.get(f"decoder_{name}"):
            raise HeptaError(f"{where}: encoder_{name} and decoder_{name} differ; only equal ones are supported")
    names = ("vocab_size", "d_model", "encoder_layers", "decoder_layers", "decoder_start_token_id")
    names += ("encoder_ffn_dim", "encoder_attention_heads")
    vocab_size, width, encoder_layers, layers, start, wide, heads = need(hf, names, where)
    return TranslatorShape(
        vocab_size=vocab_size, hidden_size=width, num_layers=layers, encoder_layers=encoder_layers,
        intermediate_size=wide, num_heads=heads, max_positions=hf.get("max_position_embeddings") or 1024,
        dropout=hf.get("dropout", 0.1), bos_token_id=start, eos_token_id=hf.get("eos_token_id"),
        pad_token_id=hf.get("pad_token_id"),
    )  # fmt: skip


def translator_to_hf(shape: TranslatorShape) -> dict[str, Any]:
    """The family's own keys of a ``config.json``: those of transformers' ``MarianMTModel``."""
    return {
        **SETTINGS, "decoder_vocab_size": shape.vocab_size, "d_model": shape.hidden_size,
        "encoder_layers": shape.encoder_layers, "decoder_layers": shape.num_layers,
        "encoder_ffn_dim": shape.intermediate_size, "decoder_ffn_dim": shape.intermediate_size,
        "encoder_attention_heads": shape.num_heads, "decoder_attention_heads": shape.num_heads,
        "max_position_embeddings": shape.max_positions, "static_position_embeddings": True,
        "dropout": shape.dropout, "attention_dropout": 0.0, "activation_dropout": 0.0, "is_encoder_decoder": True,
        "decoder_start_token_id": shape.bos_token_id,
        "forced_eos_token_id": None,  # left out, MarianConfig would put 0 there
    }  # fmt: skip


def generation_keys(shape: TranslatorShape, size: int) -> dict[str, Any]:
    """``generation_config.json``: what makes transformers' ``generate`` search as ``hepta predict`` does.

    Args:
        shape: the model's.
        size: real ids of its tokenizer; rows beyond are never chosen, nor bos and pad.
    """
    special = [i for i in (shape.bos_token_id, shape.pad_token_id) if i is not None and i != shape.eos_token_id]
    return {
        "decoder_start_token_id": shape.bos_token_id, "eos_token_id": shape.eos_token_id,
        "pad_token_id": shape.pad_token_id, "suppress_tokens": sorted({*special, *range(size, shape.vocab_size)}),
        "num_beams": BEAM,
        "length_penalty": LENGTH_PENALTY,
    }  # fmt: skip
