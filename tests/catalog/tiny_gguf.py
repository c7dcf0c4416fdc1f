"""A tiny random Llama and its byte-level BPE tokenizer, as transformers has them and as a GGUF file of ours."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

TEXTS = [
    "The capital of France is Paris; in 1789 it wasn't  calm.",
    "今天天气怎么样？二〇二四年，共1234567人。",
    "def add(a, b):\n\treturn a + b  # 3.14159\n\n\nprint(add(2, 40))",
    "naïve café 🙂 Привет, мир!",
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = 3


@dataclass(frozen=True)
class Tiny:
    """The reference: transformers models, their tokenizer (digits one by one), and how to write a GGUF."""

    models: dict[bool, Any]  # by whether the head is tied
    tokenizer: Any
    write: Callable[..., Path]


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's converter: row k of a head's first half, then row k of its second half, and so on."""
    out = np.empty_like(rows)
    size = len(rows) // heads
    for head in range(heads):
        for k in range(size // 2):
            out[head * size + 2 * k] = rows[head * size + k]
            out[head * size + 2 * k + 1] = rows[head * size + size // 2 + k]
    return out


def names_of(layers: int) -> dict[str, str]:
    """Hugging Face's tensor name → GGUF's."""
    inside = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    names = {f"model.layers.{i}.{a}.weight": f"blk.{i}.{b}.weight" for i in range(layers) for a, b in inside.items()}
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    return names | {f"{a}.weight": f"{b}.weight" for a, b in top.items()}


def train_reference_tokenizer() -> Any:
    """A BPE of a few hundred tokens over ``TEXTS``, specials first as in SmolLM2."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=[AddedToken(name, special=True) for name in SPECIALS],
        initial_alphabet=alphabet, show_progress=False, min_frequency=1,
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    return tokenizer


def write_gguf(
    path: Path, model: Any, tokenizer: Any, kind: str = "F32", fields: dict[str, Any] | None = None,
    leave_out: str = "", raw: dict[str, np.ndarray] | None = None,
) -> Path:  # fmt: skip
    """The model as llama.cpp's converter writes it, its matrices quantised as ``kind``."""
    import gguf

    config = model.config
    own = {
        "architecture": "llama", "pre": "smollm", "model": "gpt2", "heads": config.num_attention_heads,
    } | (fields or {})  # fmt: skip
    writer = gguf.GGUFWriter(path, own["architecture"])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(own["heads"])
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model(own["model"])
    writer.add_tokenizer_pre(own["pre"])
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([CONTROL if token in SPECIALS else 1 for token, _ in vocabulary])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    writer.add_add_bos_token(own.get("add_bos", False))
    names = names_of(config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == leave_out or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        values = tensor.float().numpy()
        inner = names[name].split(".")[-2]
        if inner in heads:
            values = permute(values, heads[inner])
        stored = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        writer.add_tensor(names[name], gguf.quantize(values, stored), raw_dtype=stored)
    for name, values in (raw or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_tiny() -> Tiny:
    """Two layers, D 64, 4 heads over 2, 374 tokens; ``write(path, kind=…, tied=…)`` makes its GGUF."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_reference_tokenizer()

    def make(tied: bool) -> Any:
        torch.manual_seed(7)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=tokenizer.get_vocab_size(), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=128,
                rope_parameters={"rope_type": "default", "rope_theta": 100_000.0}, rms_norm_eps=1e-5,
                tie_word_embeddings=tied, initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=2,
            )
        ).eval()  # fmt: skip

    models = {tied: make(tied) for tied in (True, False)}

    def write(path: Path, tied: bool = True, **changes: Any) -> Path:
        return write_gguf(path, models[tied], tokenizer, **changes)

    return Tiny(models, tokenizer, write)
