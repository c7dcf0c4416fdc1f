"""Sizes of the small models and runs of this folder's tests."""

from hepta.model.config import ModelConfig

KEYS = {
    "sequence_length": 64, "batch_tokens": 512, "compile": False, "threads": 1, "precision": "fp32",
    "sample_prompts": [], "eval": {"tokens": 2048, "every": 1000},
}  # fmt: skip
SHAPE = ModelConfig(
    vocab_size=640, hidden_size=36, intermediate_size=48, num_layers=4, num_heads=6, num_kv_heads=2, head_dim=8
)  # fmt: skip
