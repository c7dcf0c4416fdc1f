"""The translator computes what transformers' MarianMTModel computes, both ways, padding and dropout included."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hepta.config import HeptaError
from hepta.model.families import from_hf, preset, to_hf
from hepta.model.load import build_model, load_model, save_model
from hepta.model.translator import Translator, waves

TOLERANCE = 1e-4
SMALL: dict[str, Any] = {
    "vocab_size": 128, "d_model": 64, "encoder_layers": 3, "decoder_layers": 2, "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "activation_function": "relu",
    "scale_embedding": True, "max_position_embeddings": 64, "decoder_start_token_id": 1, "eos_token_id": 0,
    "pad_token_id": 2, "forced_eos_token_id": None, "dropout": 0.1,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "small": {},
    "one head, wide": {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "d_model": 96, "encoder_layers": 1},
    "starts with pad": {"decoder_start_token_id": 2, "decoder_layers": 4, "dropout": 0.3},
}  # fmt: skip


def theirs(name: str) -> Any:
    """A MarianMTModel with weights large enough that every detail shows."""
    torch.manual_seed(sum(name.encode()))
    model = transformers.MarianMTModel(transformers.MarianConfig(**{**SMALL, **CASES[name]})).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "embed_positions" not in key:
                parameter.normal_(std=0.3) if parameter.ndim > 1 else parameter.normal_(mean=0.8, std=0.3)
    model._init_weights(model.model.encoder.embed_positions)  # from_config leaves them random
    model._init_weights(model.model.decoder.embed_positions)
    return model


def padded() -> tuple[Tensor, Tensor, Tensor]:
    """Three sources of lengths 11, 7 and 1, padded with a real id, and targets."""
    made = torch.Generator().manual_seed(0)
    sources = torch.randint(3, 128, (3, 11), generator=made)
    mask = torch.arange(11) < torch.tensor([[11], [7], [1]])
    return sources, mask, torch.randint(3, 128, (3, 9), generator=made)


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers_both_ways(name: str, tmp_path: Path) -> None:
    reference, (sources, mask, targets) = theirs(name), padded()
    reference.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = reference(input_ids=sources, attention_mask=mask.long(), decoder_input_ids=targets).logits
    ours = load_model(tmp_path / "theirs")
    assert expected.abs().max() > 1
    with torch.no_grad():  # the path of inference
        assert (ours(targets, sources, mask) - expected).abs().max() < TOLERANCE
    assert (ours(targets, sources, mask) - expected).abs().max() < TOLERANCE  # that of training
    save_model(ours, tmp_path / "ours")
    again, info = transformers.MarianMTModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    with torch.no_grad():
        back = again.eval()(input_ids=sources, attention_mask=mask.long(), decoder_input_ids=targets).logits
    assert (back - expected).abs().max() < TOLERANCE
    assert not again.final_logits_bias.any()


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_transformers(name: str, tmp_path: Path) -> None:
    reference, (sources, mask, targets) = theirs(name), padded()
    reference.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    expected_logits = reference(input_ids=sources, attention_mask=mask.long(), decoder_input_ids=targets).logits
    for logits in (expected_logits, ours(targets, sources, mask)):
        logits.float().logsumexp(-1).sum().backward()
    expected = dict(reference.named_parameters())
    pad = reference.config.pad_token_id  # transformers never trains that row, though every batch may hold it
    largest = max(float(parameter.grad.abs().max()) for parameter in ours.parameters())
    for key, parameter in ours.named_parameters():
        found, wanted = parameter.grad, expected[key].grad
        if "shared" in key:
            found, wanted = found[torch.arange(128) != pad], wanted[torch.arange(128) != pad]
        floor = 1e-6 * largest  # a bias of keys moves all scores of a query alike: its gradient is 0 but for rounding
        assert (found - wanted).abs().max() <= 2e-4 * wanted.abs().max() + floor, key


@pytest.mark.parametrize("name", CASES)
def test_alignments_are_the_cross_attentions_of_transformers(name: str, tmp_path: Path) -> None:
    reference, (sources, mask, targets) = theirs(name), padded()
    reference.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    reference.set_attn_implementation("eager")
    for row in range(3):
        source = sources[row][mask[row]]
        with torch.no_grad():
            out = reference(
                input_ids=source[None], decoder_input_ids=targets[row : row + 1], output_attentions=True
            )  # fmt: skip
        found = ours.alignments(source, targets[row])
        assert found.shape == (ours.config.num_layers, ours.config.num_heads, 9, len(source))
        assert (found - torch.cat(out.cross_attentions)).abs().max() < 1e-5


def test_padding_changes_nothing() -> None:
    """A source alone and the same one padded in a batch: equal logits (1e-5)."""
    model = build_model("transformer-nano", 128, seed=1).eval()
    sources, mask, targets = padded()
    with torch.no_grad():
        together = model(targets, sources, mask)
        for row in range(3):
            alone = model(targets[row : row + 1], sources[row][mask[row]][None])
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


def test_future_target_tokens_are_not_seen() -> None:
    model = build_model("transformer-nano", 128, seed=1).eval()
    sources, mask, targets = padded()
    other = targets.clone()
    other[:, 5:] = 7
    with torch.no_grad():
        torch.testing.assert_close(model(targets, sources, mask)[:, :5], model(other, sources, mask)[:, :5])


def test_dropout_acts_in_training_only_and_as_in_transformers(tmp_path: Path) -> None:
    """The same random numbers drop the same values: sub-layer outputs and embeddings, nothing else."""
    reference, (sources, mask, targets) = theirs("starts with pad"), padded()
    reference.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    with torch.no_grad():
        torch.manual_seed(4)
        dropped = ours.train()(targets, sources, mask)
        torch.manual_seed(4)
        out = reference.train()(input_ids=sources, attention_mask=mask.long(), decoder_input_ids=targets)
        assert (dropped - out.logits).abs().max() < TOLERANCE
        assert (dropped - ours.eval()(targets, sources, mask)).abs().max() > 0.1


def test_positions_beyond_the_trained_length_are_computed() -> None:
    """Trap R17: waves need no table; near ones are Marian's."""
    table = transformers.models.marian.modeling_marian.MarianSinusoidalPositionalEmbedding(50, 24).create_weight()
    torch.testing.assert_close(waves(torch.arange(50), 24, torch.float32), table, rtol=0, atol=1e-6)
    angles = [5000 / 10_000 ** (2 * pair / 24) for pair in range(12)]
    far = [*map(math.sin, angles), *map(math.cos, angles)]
    assert waves(torch.tensor(5000), 24, torch.float32).tolist() == pytest.approx(far, abs=1e-5)


def test_config_is_read_back_and_parameters_are_counted() -> None:
    for name in ("transformer-nano", "transformer-base"):
        shape = preset(name).replace(bos_token_id=5, eos_token_id=6, pad_token_id=7)
        assert from_hf(json.loads(json.dumps(to_hf(shape)))) == shape
    shape = preset("transformer-nano", 640)
    assert shape.num_parameters == sum(p.numel() for p in Translator(shape).parameters())
    base = preset("transformer-base")
    assert base.num_parameters == pytest.approx(63e6, rel=0.02)  # "65" in the paper's table 3, with a larger V


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "swish"}, "activation_function 'swish' is not supported; a translator has 'relu'"),
        ({"scale_embedding": False}, "scale_embedding False"),
        ({"decoder_ffn_dim": 128}, "encoder_ffn_dim and decoder_ffn_dim differ"),
        ({"d_model": None}, "lacks d_model"),
    ],
)
def test_other_marians_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    hf = {**to_hf(preset("transformer-nano").replace(bos_token_id=1)), **change}
    with pytest.raises(HeptaError, match=message) as error:
        from_hf(hf)
    assert "\n" not in str(error.value)


def test_output_biases_are_refused(tmp_path: Path) -> None:
    reference = theirs("small")
    reference.final_logits_bias[0, 5] = 1.0
    reference.save_pretrained(tmp_path)
    with pytest.raises(HeptaError, match="final_logits_bias is not 0"):
        load_model(tmp_path)
