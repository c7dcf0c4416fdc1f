"""LoRA and PEFT directories (trap S11)."""

import json
import math
from pathlib import Path

import peft
import pytest
import torch
import transformers

from hepta.config import HeptaError
from hepta.model.adapters import (
    adapter_parameters,
    attach_lora,
    load_adapter,
    lora_layers,
    merge_adapters,
    save_adapter,
)
from hepta.model.config import ModelConfig
from hepta.model.decoder import Decoder
from hepta.model.load import load_model, save_model

QWEN2 = ModelConfig(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
    family="qwen2", attention_bias=True)
IDS = torch.randint(0, 96, (2, 23), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    model = Decoder(QWEN2)
    model.init_weights(0)
    with torch.no_grad():
        model.output_weight.mul_(0.25)  # logits of a size that 1e-2 means something for
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.03)
    save_model(model, tmp_path / "base")
    return tmp_path / "base"


def adapted(base: Path, dtype: torch.dtype = torch.float32, root_scaling: bool = False) -> Decoder:
    """Adapters as training would leave them: B no longer zero."""
    model = load_model(base, dtype)
    attach_lora(model, rank=4, alpha=10, seed=3, root_scaling=root_scaling)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


@torch.no_grad()
def logits(model: Decoder) -> torch.Tensor:
    return model(IDS)


def test_step_0_is_the_base_exactly(base: Path) -> None:
    model = load_model(base)
    before = logits(model)
    names = attach_lora(model, rank=4, alpha=8)
    assert len(names) == 2 * len(Decoder.lora_targets)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


def test_only_adapters_learn_in_float32_on_a_bf16_base(base: Path) -> None:
    model = load_model(base, torch.bfloat16)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters()}
    attach_lora(model, rank=2, alpha=4, targets=["q_proj", "v_proj"], dropout=0.1)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trainable.keys() == adapter_parameters(model).keys()
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    optimizer = torch.optim.AdamW(trainable.values(), lr=0.01)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(IDS).float().flatten(0, 1), IDS.flatten()).backward()
        optimizer.step()
    assert all(p.abs().max() > 0 for name, p in trainable.items() if name.endswith("lora_B"))
    assert {s["exp_avg"].dtype for s in optimizer.state.values()} == {torch.float32}
    after = dict(model.named_parameters())
    assert all(torch.equal(frozen[name], after[name]) for name in frozen)


@pytest.mark.parametrize("root_scaling", [False, True])
def test_scaling_is_alpha_over_rank_or_its_root(base: Path, root_scaling: bool) -> None:
    layer = lora_layers(adapted(base, root_scaling=root_scaling))["model.layers.0.self_attn.q_proj"]
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(4))
    scale = 10 / math.sqrt(4) if root_scaling else 10 / 4
    expected = x @ (layer.weight + scale * layer.lora_B @ layer.lora_A).T + layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_merged_logits_are_the_adapters_logits(base: Path, dtype: torch.dtype, tolerance: float) -> None:
    model = adapted(base, dtype)
    before = logits(model).float()
    assert (before - logits(load_model(base, dtype)).float()).abs().max() > 10 * tolerance
    merge_adapters(model)
    assert not lora_layers(model)
    assert all(p.requires_grad for p in model.parameters())
    error = logits(model).float() - before
    if dtype is torch.float32:
        assert error.abs().max() <= tolerance
    assert error.square().mean().sqrt() <= tolerance  # bf16 rounds each of fourteen products to 0.2 %
    save_model(model, base.parent / "merged")
    torch.testing.assert_close(logits(load_model(base.parent / "merged", dtype)), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize("root_scaling", [False, True])
def test_peft_loads_our_adapter_and_we_load_theirs(base: Path, root_scaling: bool) -> None:
    model, ours, theirs = adapted(base, root_scaling=root_scaling), base.parent / "ours", base.parent / "theirs"
    save_adapter(model, ours, base, provenance={"steps": 1})
    reference = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), ours).eval()
    with torch.no_grad():
        torch.testing.assert_close(reference(IDS).logits, logits(model), rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(load_model(ours)), logits(model), rtol=0, atol=1e-6)
    reference.save_pretrained(theirs)
    torch.testing.assert_close(logits(load_adapter(theirs)), logits(model), rtol=0, atol=1e-6)
    assert json.loads((ours / "hepta.json").read_text())["base"]["weights_sha256"]


def test_a_moved_pair_is_found_and_another_base_is_refused(base: Path) -> None:
    model = adapted(base)
    run = base.parent
    save_adapter(model, run / "adapter", base)
    moved = run.with_name(run.name + "-moved")
    run.rename(moved)
    torch.testing.assert_close(logits(load_model(moved / "adapter")), logits(model), rtol=0, atol=1e-6)
    other = Decoder(QWEN2)
    other.init_weights(77)
    save_model(other, moved / "base")
    with pytest.raises(HeptaError, match="not the base"):
        load_model(moved / "adapter")
    (moved / "base").rename(moved / "elsewhere")
    with pytest.raises(HeptaError, match="its base model"):
        load_model(moved / "adapter")


def test_mistakes_are_told_in_one_line(base: Path) -> None:
    model = load_model(base)
    with pytest.raises(HeptaError, match="did you mean 'q_proj'"):
        attach_lora(model, 2, 4, targets=["q_prj"])
    with pytest.raises(HeptaError, match="at least 1"):
        attach_lora(model, 0, 4)
    with pytest.raises(HeptaError, match="no adapters"):
        save_adapter(model, base.parent / "a", base)
    attach_lora(model, 2, 4)
    with pytest.raises(HeptaError, match="merge them first"):
        save_model(model, base.parent / "b")
    save_adapter(model, base.parent / "a", base)
    file = base.parent / "a" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dora": True}))
    with pytest.raises(HeptaError, match="use_dora is not supported"):
        load_model(base.parent / "a")
    (base.parent / "a" / "adapter_model.safetensors").unlink()
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dora": False}))
    with pytest.raises(HeptaError, match="not complete"):
        load_model(base.parent / "a")
