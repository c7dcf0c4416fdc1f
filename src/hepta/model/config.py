"""The shape of a decoder of the Llama line, its presets, and their Hugging Face spellings (no torch here)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hepta.config import HeptaError
from hepta.model.shape import TransformerShape, need, special_ids

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
ARCHITECTURES: dict[Family, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
ROPE_KEYS = {  # the keys each kind of scaling needs beside rope_theta
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig(TransformerShape):
    """A decoder of the Llama line.

    ``attention_bias`` is the bias of q, k and v, ``output_bias`` that of o. ``sliding_window`` counts the
    positions a token sees, itself included; ``window_layers`` says which layers are so limited (None: all).
    ``rope_scaling`` holds ``rope_type`` and its own keys; None is plain RoPE.
    """

    mlp_matrices: ClassVar[int] = 3
    sizes: ClassVar[tuple[str, ...]] = (*TransformerShape.sizes, "num_kv_heads", "head_dim")
    num_kv_heads: int
    head_dim: int
    family: Family = "llama"
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    norm_eps: float = 1e-5
    qk_norm: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    window_layers: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads % self.num_kv_heads:
            heads, kv = self.num_heads, self.num_kv_heads
            raise HeptaError(f"model config: num_heads {heads} is no multiple of num_kv_heads {kv}")
        if self.head_dim % 2:
            raise HeptaError(f"model config: head_dim {self.head_dim} is odd; RoPE turns pairs")
        if self.window_layers is not None and len(self.window_layers) != self.num_layers:
            raise HeptaError(f"model config: {len(self.window_layers)} layer types for {self.num_layers} layers")

    @property
    def query_width(self) -> int:
        """Width of all heads' queries."""
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Width of all heads' keys, and of their values."""
        return self.num_kv_heads * self.head_dim

    def window(self, layer: int) -> int | None:
        """The sliding window of one layer, None where it sees everything before it."""
        return self.sliding_window if self.window_layers is None or self.window_layers[layer] else None

    def parameters(self) -> dict[str, int]:
        """Parameter counts by class: embedding, attention, mlp, norm, head (0 when tied)."""
        width, heads, kv = self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = 2 * width * heads + 2 * width * kv
        attention += (heads + 2 * kv) * self.attention_bias + width * self.output_bias
        mlp = 3 * width * self.intermediate_size + (2 * self.intermediate_size + width) * self.mlp_bias
        norm = 2 * width + 2 * self.head_dim * self.qk_norm
        return {
            "embedding": self.vocab_size * width,
            "attention": self.num_layers * attention,
            "mlp": self.num_layers * mlp,
            "norm": self.num_layers * norm + width,
            "head": 0 if self.tied else self.vocab_size * width,
        }

    def rope_frequencies(self) -> list[float]:
        """Radians per position of each of the head_dim / 2 pairs, scaling applied.

        Linear scaling divides all by the factor (positions are squeezed). llama3 leaves fast pairs alone,
        divides slow ones, and blends between (Llama 3.1's reference code).
        """
        half = self.head_dim // 2
        frequencies = [self.rope_theta ** (-i / half) for i in range(half)]
        scaling = self.rope_scaling or {"rope_type": "default"}
        if scaling["rope_type"] == "linear":
            return [f / scaling["factor"] for f in frequencies]
        if scaling["rope_type"] == "llama3":
            factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
            turns = [scaling["original_max_position_embeddings"] * f / (2 * math.pi) for f in frequencies]
            kept = [min(max((t - low) / (high - low), 0.0), 1.0) for t in turns]
            return [f * (k + (1 - k) / factor) for f, k in zip(frequencies, kept, strict=True)]
        return frequencies


PRESETS: dict[str, dict[str, Any]] = {  # where not given: vocabulary 8192, the defaults above
    "nano": {
        "hidden_size": 192, "intermediate_size": 512, "num_layers": 4, "num_heads": 3, "num_kv_heads": 1,
        "head_dim": 64,
    },
    "micro": {
        "hidden_size": 256, "intermediate_size": 768, "num_layers": 10, "num_heads": 4, "num_kv_heads": 2,
        "head_dim": 64,
    },
    "mini": {
        "hidden_size": 512, "intermediate_size": 1536, "num_layers": 8, "num_heads": 8, "num_kv_heads": 4,
        "head_dim": 64,
    },
    "small": {
        "hidden_size": 576, "intermediate_size": 1536, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3,
        "head_dim": 64, "vocab_size": 49152, "max_positions": 8192, "rope_theta": 100_000.0,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_layers": 16, "num_heads": 32, "num_kv_heads": 8,
        "head_dim": 64, "vocab_size": 65536, "max_positions": 8192, "rope_theta": 500_000.0,
    },
    "7b": {
        "hidden_size": 4096, "intermediate_size": 12288, "num_layers": 32, "num_heads": 32, "num_kv_heads": 8,
        "head_dim": 128, "vocab_size": 65536, "max_positions": 8192, "rope_theta": 500_000.0, "tied": False,
    },
}  # fmt: skip


def _read_rope(hf: Mapping[str, Any], where: str) -> tuple[float, dict[str, Any] | None]:
    """rope_theta and scaling from the new (``rope_parameters``) or old (``rope_theta, rope_scaling``) spelling."""
    rope = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    theta = float(rope.pop("rope_theta", None) or hf.get("rope_theta") or 10_000.0)
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise HeptaError(f"{where}: RoPE parameters per layer type are not supported; one set for all layers is")
    if kind not in ROPE_KEYS:
        raise HeptaError(f"{where}: RoPE scaling {kind!r} is not supported; supported: {', '.join(ROPE_KEYS)}")
    if (rope.get("partial_rotary_factor") or hf.get("partial_rotary_factor") or 1.0) != 1.0:
        raise HeptaError(f"{where}: partial_rotary_factor is not supported; only 1.0 is")
    if kind == "default":
        return theta, None
    if kind == "llama3":
        rope.setdefault("original_max_position_embeddings", hf.get("max_position_embeddings"))
    missing = [key for key in ROPE_KEYS[kind] if rope.get(key) is None]
    if missing:
        raise HeptaError(f"{where}: RoPE scaling {kind!r} lacks {', '.join(missing)}")
    return theta, {"rope_type": kind, **{key: rope[key] for key in ROPE_KEYS[kind]}}


def _read_window(hf: Mapping[str, Any], family: Family, layers: int) -> tuple[int | None, tuple[bool, ...] | None]:
    if family == "llama":
        return None, None
    if family == "mistral":
        return hf.get("sliding_window", 4096), None
    if not hf.get("use_sliding_window"):  # Qwen writes a window it does not use
        return None, None
    first = hf.get("max_window_layers", 28)
    kinds = hf.get("layer_types") or ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    return hf.get("sliding_window", 4096), tuple(kind == "sliding_attention" for kind in kinds)


def _family(hf: Mapping[str, Any], where: str) -> Family:
    names = hf.get("architectures") or []
    for family, architecture in ARCHITECTURES.items():
        if architecture in names or (not names and hf.get("model_type") == family):
            return family
    raise HeptaError(f"{where}: names no decoder of the Llama line")


def decoder_from_hf(hf: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Read the ``config.json`` of a Llama, Mistral, Qwen2 or Qwen3 in transformers 4's or 5's spelling.

    Args:
        hf: the parsed JSON.
        where: file name for messages.

    Raises:
        HeptaError: another architecture, activation or RoPE scaling, or a missing size.
    """
    family = _family(hf, where)
    if hf.get("hidden_act", "silu") not in ("silu", "swish"):
        raise HeptaError(f"{where}: hidden_act {hf['hidden_act']!r} is not supported; only 'silu' is")
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    *_, layers, heads = need(hf, needed, where)
    theta, scaling = _read_rope(hf, where)
    window, window_layers = _read_window(hf, family, layers)
    default_head_dim = 128 if family == "qwen3" else hf["hidden_size"] // heads
    default_kv_heads = 8 if family == "mistral" and "num_key_value_heads" not in hf else heads
    bias = family == "qwen2" or (family in ("llama", "qwen3") and bool(hf.get("attention_bias")))
    return ModelConfig(
        vocab_size=hf["vocab_size"], hidden_size=hf["hidden_size"], intermediate_size=hf["intermediate_size"],
        num_layers=layers, num_heads=heads, num_kv_heads=hf.get("num_key_value_heads") or default_kv_heads,
        head_dim=hf.get("head_dim") or default_head_dim, family=family,
        max_positions=hf.get("max_position_embeddings") or 2048, rope_theta=theta, rope_scaling=scaling,
        norm_eps=hf.get("rms_norm_eps", 1e-6), tied=bool(hf.get("tie_word_embeddings", False)),
        qk_norm=family == "qwen3", attention_bias=bias, output_bias=bias and family != "qwen2",
        mlp_bias=family == "llama" and bool(hf.get("mlp_bias")), sliding_window=window, window_layers=window_layers,
        **special_ids(hf),
    )  # fmt: skip


def _check_family(config: ModelConfig) -> None:
    """Refuse a mathematics that transformers' class of this family would silently not compute."""
    family = config.family
    expected = {
        "qk_norm": family == "qwen3",
        "mlp_bias": config.mlp_bias if family == "llama" else False,
        "attention_bias": {"qwen2": True, "mistral": False}.get(family, config.attention_bias),
        "output_bias": {"qwen2": False, "mistral": False}.get(family, config.attention_bias),
        "sliding_window": None if family == "llama" else config.sliding_window,
    }
    for key, value in expected.items():
        if getattr(config, key) != value:
            raise HeptaError(f"model config: a {family} model has {key} = {value}, found {getattr(config, key)}")
    if family == "mistral" and config.window_layers is not None and not all(config.window_layers):
        raise HeptaError("model config: a mistral model has its window in every layer")


def decoder_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The line's own keys of a ``config.json``, in transformers 5's spelling and the older one beside it.

    Raises:
        HeptaError: the family's class in transformers has no such option.
    """
    _check_family(config)
    rope = {"rope_theta": config.rope_theta, "rope_type": "default", **(config.rope_scaling or {})}
    hf: dict[str, Any] = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "attention_dropout": 0.0,
    }
    if config.family in ("llama", "qwen3"):
        hf["attention_bias"] = config.attention_bias
    if config.family == "llama":
        hf["mlp_bias"] = config.mlp_bias
    if config.family == "mistral":
        hf["sliding_window"] = config.sliding_window
    if config.family in ("qwen2", "qwen3"):
        limited = [config.window(layer) is not None for layer in range(config.num_layers)]
        hf["use_sliding_window"] = any(limited)
        hf["sliding_window"] = config.sliding_window
        hf["layer_types"] = ["sliding_attention" if here else "full_attention" for here in limited]
        hf["max_window_layers"] = limited.index(True) if any(limited) else config.num_layers
    return hf
