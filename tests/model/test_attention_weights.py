"""Recorded attention is what transformers calls attention: the same weights in every layer, head and place."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hepta.model.attention import record_attention
from hepta.model.load import load_model

TOLERANCE = 1e-5
SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama, four heads on two": (transformers.LlamaConfig, {}),
    "mistral, window of 7": (transformers.MistralConfig, {"sliding_window": 7, "head_dim": 32}),
    "qwen3, normed queries and keys": (transformers.Qwen3Config, {"head_dim": 32}),
    "gpt2": (transformers.GPT2Config, {"n_inner": 96}),
    "bert": (transformers.BertConfig, {}),
}
MARIAN: dict[str, Any] = {
    "vocab_size": 96, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "activation_function": "relu", "scale_embedding": True, "pad_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "forced_eos_token_id": 2, "share_encoder_decoder_embeddings": True,
}  # fmt: skip


def random_ids(length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 90, (2, length), generator=torch.Generator().manual_seed(seed))


def shaken(model: Any) -> Any:
    """Weights so large that heads differ and looks are sharp."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed_positions" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def same(ours: list[Tensor], theirs: tuple[Tensor, ...]) -> None:
    assert len(ours) == len(theirs)
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        assert mine.shape == reference.shape
        torch.testing.assert_close(mine, reference, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(mine.sum(-1), torch.ones(mine.shape[:-1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("grad", [False, True])
def test_weights_equal_transformers_in_every_layer_and_head(name: str, grad: bool, tmp_path: Path) -> None:
    cls, options = CASES[name]
    auto = transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
    reference = shaken(auto.from_config(cls(**{**SMALL, **options}), attn_implementation="eager"))
    reference.save_pretrained(tmp_path / "model")
    ids = random_ids(20)
    with torch.no_grad():
        theirs = reference(ids, output_attentions=True).attentions
    with torch.set_grad_enabled(grad), record_attention() as ours:
        load_model(tmp_path / "model")(ids)
    same(ours, theirs)
    if name != "bert":
        assert all(not weights.triu(1).any() for weights in ours)  # of the future exactly nothing


def test_a_translator_looks_as_marian_does_in_encoder_decoder_and_across(tmp_path: Path) -> None:
    reference = shaken(transformers.MarianMTModel._from_config(
        transformers.MarianConfig(**MARIAN), attn_implementation="eager"))  # fmt: skip
    reference.save_pretrained(tmp_path / "model")
    source, target = random_ids(9), random_ids(6, seed=1)
    with torch.no_grad():
        theirs = reference(input_ids=source, decoder_input_ids=target, output_attentions=True)
    with torch.no_grad(), record_attention() as ours:
        load_model(tmp_path / "model")(target, source)
    decoder = ours[2:]
    same(ours[:2], theirs.encoder_attentions)
    same(decoder[0::2], theirs.decoder_attentions)
    same(decoder[1::2], theirs.cross_attentions)
    assert all(not weights.triu(1).any() for weights in decoder[0::2])


def test_recording_ends_with_its_block_and_may_keep_less(tmp_path: Path) -> None:
    transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SMALL)).save_pretrained(tmp_path / "model")
    model, ids = load_model(tmp_path / "model"), random_ids(8)
    with torch.no_grad(), record_attention() as whole, record_attention(lambda weights: weights[0, :, -1]) as last:
        model(ids)
    with torch.no_grad():
        model(ids)
    assert len(whole) == len(last) == 3
    for weights, row in zip(whole, last, strict=True):
        assert torch.equal(weights[0, :, -1], row)
