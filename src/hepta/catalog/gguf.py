"""GGUF, llama.cpp's one-file format, as a Hugging Face model directory: dequantised, Q and K in their own row order.

The weights are written in float32, whatever they were quantised to: that is what the quantised numbers mean
(scale times a small integer, plus a minimum), to the bit. bfloat16 would halve the file and round them again.
"""

import json
import re
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hepta.catalog.gguf_tokenizer import tokenizer_files
from hepta.config import HeptaError
from hepta.stage import write_json

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

ARCHITECTURE = "llama"  # what general.architecture says of Llama and of models computed like it
TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BLOCK = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_BLOCK_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def convert(file: Path, directory: Path) -> dict[str, Any]:
    """Write the model of a GGUF file as ``config.json``, ``model.safetensors`` and tokenizer files.

    Args:
        file: a GGUF of the Llama architecture with a byte-level BPE tokenizer, in any quantisation that the
            ``gguf`` library can undo.
        directory: exists; gets the files.

    Returns:
        ``parameters`` and ``quantised_as`` (tensors per stored type), for people.

    Raises:
        HeptaError: no GGUF file, another architecture, tokenizer or quantisation, a missing tensor; names it.
    """
    reader = _open(file)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    config = read_config(fields, {t.name: tuple(int(n) for n in t.shape) for t in reader.tensors}, str(file))
    tokenizer = tokenizer_files(fields, config["vocab_size"], str(file))
    tensors = dict(_tensors(reader.tensors, config, str(file)))
    _check_complete(tensors, config, str(file))
    from safetensors.numpy import save_file

    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    write_json(directory / "config.json", config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(directory / "generation_config.json", {"do_sample": False, **ids})
    for name, value in tokenizer.items():
        (directory / name).write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    stored = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    return {"parameters": sum(tensor.size for tensor in tensors.values()), "quantised_as": dict(stored)}


def _open(file: Path) -> "GGUFReader":
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except (OSError, ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise HeptaError(f"{file}: not readable as GGUF ({error}); cut short, or newer than the reader") from None


def _rounded(value: float) -> float:
    """A float32 as the shortest decimal that means it: 9.99999974e-06 was written as 1e-05."""
    return float(str(np.float32(value)))


def read_config(fields: dict[str, Any], shapes: dict[str, tuple[int, ...]], where: str) -> dict[str, Any]:
    """The ``config.json`` that a GGUF's metadata amounts to.

    Args:
        fields: metadata by key.
        shapes: tensor name → its dimensions, input first (GGUF's order).
        where: file name for messages.

    Raises:
        HeptaError: not a Llama, or one with experts, partial or scaled RoPE that ``config.json`` cannot say.
    """
    found = fields.get("general.architecture")
    if found != ARCHITECTURE:
        raise HeptaError(f"{where}: architecture {found!r} is not supported; {ARCHITECTURE!r} is")

    def field(key: str, default: Any = None) -> Any:
        value = fields.get(f"{ARCHITECTURE}.{key}", default)
        if value is None:
            raise HeptaError(f"{where}: lacks the key {ARCHITECTURE}.{key}, so its shape is not known")
        return value

    width, heads = field("embedding_length"), field("attention.head_count")
    head_dim = field("attention.key_length", width // heads)
    if field("expert_count", 0):
        raise HeptaError(f"{where}: is a mixture of {field('expert_count')} experts, which is not supported")
    if field("rope.dimension_count", head_dim) != head_dim:
        turned = field("rope.dimension_count")
        raise HeptaError(f"{where}: RoPE turns {turned} of {head_dim} dimensions, which is not supported; all are")
    scaling = field("rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise HeptaError(f"{where}: RoPE scaling {scaling!r} is not supported; 'linear' is")
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling == "linear":
        rope = {"rope_type": "linear", "factor": float(field("rope.scaling.factor"))}
    theta = _rounded(field("rope.freq_base", 10_000.0))
    if "token_embd.weight" not in shapes:
        raise HeptaError(f"{where}: lacks the tensor token_embd.weight; the file is not complete")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shapes["token_embd.weight"][1],
        "hidden_size": width,
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": _rounded(field("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in shapes,
        "rope_parameters": {"rope_theta": theta, **rope},
        "rope_theta": theta,
        "rope_scaling": None if scaling == "none" else rope,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def _tensors(
    stored: "list[ReaderTensor]", config: dict[str, Any], where: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face's name and the float32 values of each tensor."""
    from gguf import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for tensor in stored:
        name, kind = TOP.get(tensor.name), ""
        if match := _BLOCK_NAME.fullmatch(tensor.name):
            kind = match[2]
            name = f"model.layers.{match[1]}.{BLOCK[kind]}.weight" if kind in BLOCK else None
        if name is None:
            raise HeptaError(f"{where}: tensor {tensor.name} has no place in a plain Llama, so it is not supported")
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise HeptaError(
                f"{where}: tensor {tensor.name} is stored as {tensor.tensor_type.name}, which is not supported"
            ) from None
        values = np.ascontiguousarray(values, dtype=np.float32)
        yield name, unpermute(values, heads[kind]) if kind in heads else values


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Q or K (heads · K, D) from llama.cpp's order to Hugging Face's.

    llama.cpp turns neighbouring pairs (0, 1), (2, 3) …; Hugging Face turns (0, K/2), (1, K/2 + 1) …. So its
    converter interleaves the two halves of every head, and this takes them apart again.
    """
    split = rows.reshape(heads, -1, 2, rows.shape[-1])  # (heads, K/2, 2, D)
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows.shape))


def _check_complete(tensors: dict[str, np.ndarray], config: dict[str, Any], where: str) -> None:
    """Every tensor of the shape that the metadata states, and none missing."""
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (width,), "attn_q": (q, width), "attn_k": (kv, width), "attn_v": (kv, width),
        "attn_output": (width, q), "ffn_norm": (width,), "ffn_gate": (inner, width), "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }  # fmt: skip
    expected = {
        f"model.layers.{layer}.{BLOCK[kind]}.weight": shape
        for layer in range(config["num_hidden_layers"])
        for kind, shape in shapes.items()
    }
    expected |= {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        expected["lm_head.weight"] = (config["vocab_size"], width)
    for name, shape in expected.items():
        if name not in tensors:
            raise HeptaError(f"{where}: lacks the tensor that becomes {name}; the file is not complete")
        if tensors[name].shape != shape:
            raise HeptaError(f"{where}: {name} has shape {tensors[name].shape}, its metadata say {shape}")
    if spare := sorted(set(tensors) - set(expected)):
        raise HeptaError(f"{where}: holds {spare[0]}, beyond the {config['num_hidden_layers']} layers it states")
