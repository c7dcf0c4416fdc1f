"""A model's heads and neurons are where it says: what is left out there is left out in transformers' model too."""

from pathlib import Path
from typing import Any

import pytest
import test_parity as parity
import test_translator as translator
import torch
from torch import Tensor, nn

from hepta.model.load import build_model, load_model

HEADS = {  # names in transformers of what reads heads and neurons, {} is the layer
    "llama": ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj"),
    "qwen3": ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj"),
    "gpt2": ("transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj"),
    "bert": ("bert.encoder.layer.{}.attention.output.dense", "bert.encoder.layer.{}.output.dense"),
}


def without(part: nn.Module, inputs: slice) -> Any:
    """Inputs of a linear map read as 0."""

    def cut(_: nn.Module, args: tuple[Tensor]) -> Tensor:
        x = args[0].clone()
        x[..., inputs] = 0
        return x

    return part.register_forward_pre_hook(cut)


def zero_columns(reference: Any, name: str, inputs: slice) -> Tensor:
    """Set a stored matrix's columns to 0; what was there."""
    weight = reference.get_submodule(name).weight
    columns = weight[inputs] if type(reference).__name__.startswith("GPT2") else weight[:, inputs]
    before = columns.detach().clone()
    with torch.no_grad():
        columns.zero_()
    return before


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("kind", [0, 1], ids=["head", "neurons"])
def test_a_part_left_out_is_left_out_in_transformers_too(name: str, kind: int, tmp_path: Path) -> None:
    reference, ids = parity.theirs(name), parity.some_ids()
    reference.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    parts = (ours.attention_outputs, ours.neuron_outputs)[kind]
    assert len(parts) == ours.config.num_layers
    width = ours.config.head_dim
    inputs = slice(2 * width, 3 * width) if kind == 0 else slice(5, 40)  # the third head; 35 neurons
    hook = without(parts[1], inputs)
    whole = reference(ids).logits
    zero_columns(reference, HEADS[name][kind].format(1), inputs)
    with torch.no_grad():
        expected = reference(ids).logits
        torch.testing.assert_close(ours(ids), expected, rtol=0, atol=parity.TOLERANCE)
        assert (expected - whole).abs().max() > 0.1
        hook.remove()
        torch.testing.assert_close(ours(ids), whole, rtol=0, atol=parity.TOLERANCE)


def test_a_translators_parts_are_those_of_marian(tmp_path: Path) -> None:
    reference, (sources, mask, targets) = translator.theirs("small"), translator.padded()
    reference.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    sides = [f"encoder.layers.{i}" for i in range(3)] + [f"decoder.layers.{i}" for i in range(2)]
    crossed = [f"decoder.layers.{i}.encoder_attn" for i in range(2)]
    attentions = [f"model.{name}.out_proj" for name in [*(f"{side}.self_attn" for side in sides), *crossed]]
    found = {id(module): name for name, module in ours.named_modules()}
    assert [found[id(part)] for part in ours.attention_outputs] == attentions
    assert [found[id(part)] for part in ours.neuron_outputs] == [f"model.{side}.fc2" for side in sides]
    without(ours.attention_outputs[-1], slice(16, 32))
    zero_columns(reference, attentions[-1], slice(16, 32))
    with torch.no_grad():
        expected = reference(input_ids=sources, attention_mask=mask.long(), decoder_input_ids=targets).logits
        torch.testing.assert_close(ours(targets, sources, mask), expected, rtol=0, atol=1e-4)


def test_models_without_attention_have_no_heads() -> None:
    for name, neurons in (("lstm", 0), ("feedforward", 1)):
        model = build_model(name, 64)
        assert model.attention_outputs == []
        assert len(model.neuron_outputs) == neurons
