"""Shapes of models of the hub that recipes name, so that a plan or a dry run needs no network.

Each entry is what the repository's ``config.json`` says of its shape, in Hugging Face's own keys.
"""

from typing import Any

KNOWN_CONFIGS: dict[str, dict[str, Any]] = {
    "hf:Qwen/Qwen2.5-7B": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 152_064, "hidden_size": 3584,
        "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu",
        "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": 131_072, "max_window_layers": 28,
        "bos_token_id": 151_643, "eos_token_id": 151_643, "torch_dtype": "bfloat16",
    },
}  # fmt: skip
