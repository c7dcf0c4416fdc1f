"""Our models compute what transformers' compute, on random small models of each family, both ways."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hepta.model.config import ModelConfig
from hepta.model.decoder import Decoder
from hepta.model.families import from_hf, to_hf
from hepta.model.load import load_model, save_model

TOLERANCE = 1e-4
SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.5}

CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {}),
    "llama biases tied": (
        transformers.LlamaConfig, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama wide heads llama3": (transformers.LlamaConfig, {"head_dim": 32, "rope_parameters": LLAMA3}),
    "llama linear no sharing": (
        transformers.LlamaConfig, {"rope_parameters": LINEAR, "num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    "mistral window": (transformers.MistralConfig, {"sliding_window": 7, "head_dim": 32}),
    "mistral tied": (transformers.MistralConfig, {"sliding_window": None, "tie_word_embeddings": True}),
    "qwen2 tied": (transformers.Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2 window in later layers": (
        transformers.Qwen2Config, {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    "qwen2 layer types": (
        transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 5,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 32}),
    "qwen3 biases window tied": (
        transformers.Qwen3Config,
        {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True, "use_sliding_window": True,
         "sliding_window": 6, "max_window_layers": 1}),
    "gpt2": (transformers.GPT2Config, {"n_inner": 96}),
    "gpt2 untied": (transformers.GPT2Config, {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}),
    "bert": (transformers.BertConfig, {}),
    "bert tanh gelu": (
        transformers.BertConfig, {"hidden_act": "gelu_new", "type_vocab_size": 3, "layer_norm_eps": 1e-3}),
}  # fmt: skip


def theirs(name: str) -> Any:
    """A transformers model with weights large enough that every detail shows in the logits."""
    cls, options = CASES[name]
    torch.manual_seed(sum(name.encode()))
    loader = transformers.AutoModelForMaskedLM if "bert" in name else transformers.AutoModelForCausalLM
    model = loader.from_config(cls(**{**SMALL, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3) if parameter.ndim > 1 else parameter.normal_(mean=0.8, std=0.3)
    return model


def some_ids(length: int = 40) -> Tensor:
    """Id 0 is left out: it is BERT's padding, whose embedding transformers gives no gradient."""
    return torch.randint(1, 128, (2, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers_both_ways(name: str, tmp_path: Path) -> None:
    reference = theirs(name)
    reference.save_pretrained(tmp_path / "theirs")
    ids = some_ids()
    with torch.no_grad():
        expected = reference(ids).logits
    ours = load_model(tmp_path / "theirs")
    assert expected.abs().max() > 1
    with torch.no_grad():  # the path of inference
        torch.testing.assert_close(ours(ids), expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(ours(ids), expected, rtol=0, atol=TOLERANCE)  # the path of training

    save_model(ours, tmp_path / "ours")
    back = type(reference).from_pretrained(tmp_path / "ours").eval()
    assert back.config.architectures == [type(reference).__name__]
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_transformers(name: str, tmp_path: Path) -> None:
    reference = theirs(name)
    reference.save_pretrained(tmp_path)
    ours, ids = load_model(tmp_path), some_ids()
    for model, logits in ((reference, reference(ids).logits), (ours, ours(ids))):
        model.zero_grad()
        logits.float().logsumexp(-1).sum().backward()
    expected = dict(reference.named_parameters())
    for key, parameter in ours.named_parameters():
        assert parameter.grad is not None
        name, gradient = ours.to_disk(key, parameter.grad)
        largest = max(expected[name].grad.abs().max(), 0.1)  # a key's bias moves nothing: rounding alone
        assert (gradient - expected[name].grad).abs().max() <= 1e-4 * largest, name


def test_parameter_names_are_those_of_transformers(tmp_path: Path) -> None:
    for name in CASES:
        reference = theirs(name)
        reference.save_pretrained(tmp_path / name)
        expected = {key: tuple(p.shape) for key, p in reference.named_parameters()}
        model = load_model(tmp_path / name)
        stored = (model.to_disk(key, p) for key, p in model.named_parameters())
        ours = {key: tuple(p.shape) for key, p in stored}
        assert ours == expected


def old_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json as transformers 4 wrote it."""
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if config["rope_scaling"] and rope["rope_type"] == "linear":
        rope["type"] = rope.pop("rope_type")  # older still
    config["torch_dtype"] = config.pop("dtype")
    return config


@pytest.mark.parametrize("name", [name for name in CASES if "bert" not in name and "gpt2" not in name])
def test_old_and_new_config_spellings_mean_the_same(name: str, tmp_path: Path) -> None:
    theirs(name).save_pretrained(tmp_path)
    new = json.loads((tmp_path / "config.json").read_text())
    config = from_hf(new)
    old = old_spelling(dict(new))
    assert from_hf(old) == config
    written = to_hf(config)
    assert from_hf({k: v for k, v in written.items() if k != "rope_parameters"}) == config  # both are written
    assert from_hf({k: v for k, v in written.items() if k not in ("rope_theta", "rope_scaling")}) == config
    assert written["dtype"] == written["torch_dtype"] == "float32"


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    reference = theirs("llama")
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(0.3)
    reference.save_pretrained(tmp_path)
    masters = load_model(tmp_path)
    ids = some_ids()
    exact = masters(ids)
    masters.compute_dtype = torch.bfloat16
    computed = masters(ids)
    assert computed.dtype is torch.bfloat16
    assert (computed.float() - exact).abs().max() < 0.05 * exact.abs().max()
    computed.float().sum().backward()
    assert {p.grad.dtype for p in masters.parameters() if p.grad is not None} == {torch.float32}


def test_positions_beyond_the_trained_length_are_computed() -> None:
    """Trap R17: no static table ends at max_positions; a late position is only a larger angle."""
    config = ModelConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, num_kv_heads=1,
        head_dim=16, max_positions=8)
    model = Decoder(config)
    model.init_weights(0)
    ids = torch.randint(0, 64, (1, 40))
    shifted = model(ids, positions=torch.arange(1000, 1040)[None])
    torch.testing.assert_close(shifted, model(ids), rtol=0, atol=1e-4)  # RoPE is relative
    torch.testing.assert_close(model(ids)[:, :5], model(ids[:, :5]), rtol=0, atol=1e-5)  # a shorter one too
