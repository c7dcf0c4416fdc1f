"""Promises of tuning beside a base that learns nothing: held in two bytes, in one or in half a one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SHAPE, byte_tokenizer, losses

import hepta.training.sft as module
from hepta.compression.config import QuantizeConfig
from hepta.compression.quantize import quantize
from hepta.config import HeptaError, Interrupted, build
from hepta.data.sft import SftOrder
from hepta.generation.engine import Engine
from hepta.model.adapters import LoRAIntegers, lora_layers, merge_adapters
from hepta.model.decoder import Decoder
from hepta.model.load import load_model, save_model
from hepta.model.quantized import Embedding8, QuantizedLinear
from hepta.tokenizer.load import load_tokenizer
from hepta.training.config import SftConfig
from hepta.training.result import TrainingResult
from hepta.training.sft import sft

TALK = [("hello", "Good day to you."), ("count", "One, two, three."), ("你好", "很高兴见到你。"), ("再见", "下次见。")]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    model = Decoder(SHAPE.replace(hidden_size=128, intermediate_size=256))
    model.init_weights(1)
    save_model(model, tmp_path / "base", byte_tokenizer(tmp_path / "bytes"))
    return tmp_path / "base"


def integers(base: Path, bits: int) -> Path:
    output = base.parent / f"int{bits}"
    quantize(build(QuantizeConfig, {"model": str(base), "output": output, "bits": bits}))
    return output / "model"


def as_floats(directory: Path, base: Path) -> Path:
    """A plain model directory of what the integers stand for."""
    small, plain = load_model(directory, torch.float32), load_model(base)
    with torch.no_grad():
        for name, layer in small.named_modules():
            if isinstance(layer, QuantizedLinear | Embedding8):
                plain.get_submodule(name).weight.copy_(layer.matrix.dequantized(torch.float32))
    save_model(plain, base.parent / "floats", base)
    return base.parent / "floats"


def tune(model: Path, output: Path, **values: Any) -> TrainingResult:
    data = output.parent / "talk.jsonl"
    data.write_text("".join(
        json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}) + "\n"
        for q, a in TALK
    ))  # fmt: skip
    keys = {
        "model": str(model), "data": [str(data)], "output": output, "sequence_length": 64, "batch_tokens": 256,
        "max_steps": 6, "lr": 4e-3, "precision": "fp32", "compile": False, "threads": 1, "sample_prompts": [],
        "eval": {"every": 1000}, "validation": 0.3, "method": "lora", "rank": 4,
    }  # fmt: skip
    return sft(build(SftConfig, {**keys, **values}))


def test_a_frozen_base_takes_two_bytes_and_gives_the_same_bits(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What products would round in every step is rounded once."""
    held: list[Any] = []
    load = module.load_model

    def noting(*args: Any, **kwargs: Any) -> Any:
        held.append(load(*args, **kwargs))
        return held[-1]

    monkeypatch.setattr(module, "load_model", noting)
    once = tune(base, tmp_path / "once", precision="bf16")
    monkeypatch.setattr(module, "load_model", lambda path, dtype, matrices: load(path, dtype))
    every = tune(base, tmp_path / "every", precision="bf16")
    kinds = {(p.ndim > 1, p.dtype) for p in held[0].parameters() if not p.requires_grad}
    assert kinds == {(True, torch.bfloat16), (False, torch.float32)}
    assert once.weights_sha256 == every.weights_sha256
    assert losses(tmp_path / "once") == losses(tmp_path / "every")


@pytest.mark.parametrize("bits", [8, 4])
def test_adapters_on_integers_learn_as_on_the_floats_they_stand_for(base: Path, tmp_path: Path, bits: int) -> None:
    directory = integers(base, bits)
    small = tune(directory, tmp_path / "small")
    plain = tune(as_floats(directory, base), tmp_path / "plain")
    assert dict(losses(tmp_path / "small")) == pytest.approx(dict(losses(tmp_path / "plain")), rel=1e-5)
    assert small.final["val_loss"] == pytest.approx(plain.final["val_loss"], rel=1e-5)
    assert small.final["val_loss"] < small.before["val_loss"]
    tuned, reference = load_model(small.output, torch.float32), load_model(plain.output)
    assert all(isinstance(layer, LoRAIntegers) for layer in lora_layers(tuned).values())
    ids = torch.arange(20)[None]
    torch.testing.assert_close(tuned(ids), reference(ids), rtol=0, atol=1e-4)
    (said,) = Engine(tuned, load_tokenizer(base)).generate([[1, 2, 3]], max_new_tokens=4, temperature=0)
    assert len(said.ids) == 4


def test_peft_puts_our_adapters_on_the_bytes_that_transformers_opens(base: Path, tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    directory = integers(base, 8)
    tuned = tune(directory, tmp_path / "run", max_steps=3)
    opened = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(opened, f"{tuned.output}/model").eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, load_model(tuned.output, torch.float32)(ids), rtol=0, atol=1e-4)


def test_tuning_on_integers_goes_on_to_the_same_bits(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap R7, with recomputed blocks and dropout: broken off in the middle of a step, then repeated."""
    directory = integers(base, 8)
    keys = {"dropout": 0.3, "checkpoint": {"every": 2}, "recompute": "block", "validation": 0.0}
    whole = tune(directory, tmp_path / "whole", precision="bf16", **keys)
    batch = SftOrder.batch

    def crashing(order: SftOrder, start: int, count: int) -> Any:
        if start >= 14:
            raise Interrupted("crash")
        return batch(order, start, count)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(SftOrder, "batch", crashing)
        tune(directory, tmp_path / "run", precision="bf16", **keys)
    again = tune(directory, tmp_path / "run", precision="bf16", **keys)
    assert again.weights_sha256 == whole.weights_sha256


def test_what_integers_cannot_do_is_told_in_one_line(base: Path, tmp_path: Path) -> None:
    directory = integers(base, 8)
    with pytest.raises(HeptaError, match="integers do not learn"):
        tune(directory, tmp_path / "full", method="full")
    tuned = tune(directory, tmp_path / "run", max_steps=1)
    with pytest.raises(HeptaError, match="adapters on integers are not folded in"):
        merge_adapters(load_model(tuned.output))
    with pytest.raises(HeptaError, match="adapters on integers are not folded in"):
        tune(tuned.output, tmp_path / "again", method="full")
    with pytest.raises(HeptaError, match="one process on a CPU"):
        tune(directory, tmp_path / "two", nproc=2)
