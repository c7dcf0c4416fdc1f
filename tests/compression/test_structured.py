"""Heads and neurons cut away: the smaller model is the larger one with those parts silenced; transformers agrees."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from little import KEYS, SHAPE
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import hepta
from hepta.compression.calibrate import linear_inputs
from hepta.compression.config import PruneConfig
from hepta.compression.prune import prune
from hepta.compression.structured import choose_heads, choose_neurons, cut, heads_to_remove
from hepta.config import HeptaError, build
from hepta.model.config import ModelConfig
from hepta.model.families import network_class
from hepta.model.history import FeedForwardShape
from hepta.model.learned import BertShape, GPT2Shape
from hepta.model.load import load_model, save_model

SIZES = {"vocab_size": 640, "hidden_size": 32, "num_layers": 2, "max_positions": 64}
SHAPES: dict[str, Any] = {
    "llama": SHAPE,
    "qwen2": ModelConfig(
        vocab_size=640, hidden_size=24, intermediate_size=40, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8,
        family="qwen2", attention_bias=True,
    ),
    "qwen3": ModelConfig(
        vocab_size=640, hidden_size=24, intermediate_size=40, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=16,
        family="qwen3", qk_norm=True, tied=False,
    ),
    "gpt2": GPT2Shape(**SIZES, intermediate_size=48, num_heads=4),
    "bert": BertShape(**SIZES, intermediate_size=48, num_heads=4),
    "feedforward": FeedForwardShape(vocab_size=640, hidden_size=16, intermediate_size=32, context=4),
}  # fmt: skip


def made(name: str) -> Any:
    """A model with biases and norms that are not all alike."""
    model = network_class(SHAPES[name])(SHAPES[name])
    model.init_weights(3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def silence(model: Any, parts: Sequence[Any], kept: Sequence[Tensor], width: int) -> None:
    """Make what ``parts`` read 0 in all channels but those of the kept units, each ``width`` wide."""
    for part, stay in zip(parts, kept, strict=True):
        open_ = torch.zeros(part.weight.shape[1] // width, width)
        open_[stay] = 1.0
        part.register_forward_pre_hook(lambda _, x, open_=open_: (x[0] * open_.flatten(),))


IDS = torch.randint(0, 640, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "count"), [("llama", 3), ("llama", 2), ("llama", 4), ("qwen2", 2), ("qwen3", 3)])
def test_cut_heads_equal_silenced_heads_here_and_in_transformers(name: str, count: int, tmp_path: Path) -> None:
    """Whole groups that share keys (llama 3), or some of each group (llama 2, 4; qwen2); and neurons with them."""
    model = made(name)
    heads, neurons = choose_heads(model, count, None), choose_neurons(model, 16, None)
    smaller = cut(model, heads, neurons)
    assert smaller.config.num_heads == model.config.num_heads - count
    assert smaller.config.intermediate_size == model.config.intermediate_size - 16
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    silence(model, model.attention_outputs, heads, model.config.head_dim)
    silence(model, model.neuron_outputs, neurons, 1)
    with torch.no_grad():
        torch.testing.assert_close(smaller(IDS), model(IDS), rtol=1e-5, atol=1e-5)
        save_model(smaller, tmp_path / "model")
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
        torch.testing.assert_close(theirs(IDS).logits, smaller(IDS), rtol=1e-4, atol=1e-4)
        assert theirs.config.num_attention_heads == smaller.config.num_heads


@pytest.mark.parametrize("name", ["gpt2", "bert", "feedforward"])
def test_cut_neurons_equal_silenced_neurons_in_every_family(name: str, tmp_path: Path) -> None:
    model = made(name)
    neurons = choose_neurons(model, 12, None)
    smaller = cut(model, None, neurons)
    silence(model, model.neuron_outputs, neurons, 1)
    with torch.no_grad():
        torch.testing.assert_close(smaller(IDS), model(IDS), rtol=1e-5, atol=1e-5)
        if name != "feedforward":  # transformers knows no such family
            save_model(smaller, tmp_path / "model")
            kind = AutoModelForMaskedLM if name == "bert" else AutoModelForCausalLM
            theirs = kind.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
            torch.testing.assert_close(theirs(IDS).logits, smaller(IDS), rtol=1e-4, atol=1e-4)
    with pytest.raises(HeptaError, match="use neurons"):
        heads_to_remove(model, 1)


def test_a_neuron_that_is_never_loud_goes_first_with_text_and_not_without() -> None:
    """Importance on text is Σ x² · Σ w²: what a silent neuron would write counts for nothing."""
    model = made("llama")
    with torch.no_grad():
        model.neuron_outputs[1].weight[:, 7] = 50.0
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[7] = 0.0  # so this neuron is always 0
    assert 7 in choose_neurons(model, 24, None)[1]
    assert 7 not in choose_neurons(model, 1, linear_inputs(model, [IDS]))[1]


def test_the_head_that_writes_least_goes_with_text_and_the_smallest_without() -> None:
    """By brute force over the queries of a layer whose heads have keys of their own."""
    model = made("qwen3")
    seen: list[Tensor] = []
    model.attention_outputs[0].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    moments = linear_inputs(model, [IDS])
    W, x = model.attention_outputs[0].weight, seen[0].flatten(0, 1)
    energy = torch.stack([(x[:, j, None] * W[:, j]).square().sum() for j in range(W.shape[1])])
    written = energy.view(4, 16).sum(1).tolist()
    assert set(range(4)) - set(choose_heads(model, 1, moments)[0].tolist()) == {written.index(min(written))}
    layer = model.blocks[0].self_attn
    owned = [m.weight.detach().view(4, -1) for m in (layer.q_proj, layer.k_proj, layer.v_proj)]
    owned.append(layer.o_proj.weight.detach().T.reshape(4, -1))
    own = sum(weights.square().sum(1) for weights in owned).tolist()
    assert set(range(4)) - set(choose_heads(model, 1, None)[0].tolist()) == {own.index(min(own))}


def test_importance_on_text_is_the_energy_of_what_a_part_writes() -> None:
    """For one neuron alone: the squared length of its contribution summed over positions, by brute force."""
    model = made("llama")
    seen: list[Tensor] = []
    model.neuron_outputs[0].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        model(IDS)
    W, x = model.neuron_outputs[0].weight, seen[0].flatten(0, 1)
    energy = torch.stack([(x[:, j, None] * W[:, j]).square().sum() for j in range(W.shape[1])])
    stay = choose_neurons(model, 20, linear_inputs(model, [IDS]))[0]
    assert set(stay.tolist()) == set(energy.argsort()[20:].tolist())


def test_a_cut_model_is_smaller_loads_and_trains_on(trained: Path, tokens: Path, texts: Path, tmp_path: Path) -> None:
    keys = {"model": str(trained), "output": tmp_path / "run", "sequence_length": 64, "heads": 0.5, "neurons": 0.25}
    result = prune(build(PruneConfig, {**keys, "calibrate": texts, "sequences": 16}))
    model = load_model(tmp_path / "run")
    assert (model.config.num_heads, model.config.num_kv_heads, model.config.intermediate_size) == (3, 1, 36)
    assert result.bytes < result.bytes_before
    assert result.parameters == model.config.num_parameters < result.parameters_before
    assert [len(heads) for heads in result.heads] == [3] * 4
    assert "3 of 6 heads and 12 of 48 neurons of each layer gone, by activation" in str(result)
    more = {**KEYS, "data": tokens, "model": str(tmp_path / "run"), "output": tmp_path / "more", "max_steps": 4}
    trained_on = hepta.pretrain(build(hepta.PretrainConfig, more))
    assert trained_on.parameters == result.parameters
    both = prune(build(PruneConfig, {**KEYS, **keys, "output": tmp_path / "both", "data": tokens, "max_steps": 6}))
    assert both.steps == 6
    assert both.loss != both.loss_pruned
    assert both.parameters == load_model(tmp_path / "both").config.num_parameters
