"""Promises of statistics per layer and of checks before the first step."""

import json
import math
from pathlib import Path

import pytest
import torch
from tiny import SHAPE, add_dropout, losses, tiny_job, tiny_run

from hepta.config import HeptaError
from hepta.model.decoder import Decoder
from hepta.model.fresh import check_fresh
from hepta.model.load import build_model
from hepta.training.step import micro_batches


def test_statistics_are_those_of_the_step_and_change_no_bit(tmp_path: Path) -> None:
    """Against gradients, weights, updates and activations taken by hand at the same step."""
    plain = tiny_run(tmp_path / "plain", add_dropout(tiny_job(tmp_path / "plain")), max_steps=4)
    run = tmp_path / "run"
    told = tiny_run(run, add_dropout(tiny_job(run)), max_steps=4, statistics=2)
    assert told.weights_sha256 == plain.weights_sha256
    assert losses(run) == losses(tmp_path / "plain")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    layers = {row["step"]: row["layers"] for row in rows if "layers" in row}
    assert list(layers) == [2, 4]
    assert list(layers[2]) == ["model.embed_tokens", "layer 0", "layer 1", "model.norm"]
    steps = {row["step"]: row for row in rows if "grad_norm" in row}
    for step, found in layers.items():
        whole = math.hypot(*(figures["grad_norm"] for figures in found.values()))
        assert whole == pytest.approx(steps[step]["grad_norm"], rel=1e-4), "before clipping"
    one, two = (tiny_job(tmp_path / f"{n}") for n in (1, 2))
    tiny_run(tmp_path / "1", add_dropout(one), max_steps=4, checkpoint={"every": 1, "keep": 9})
    one.restore(tmp_path / "1" / "checkpoints" / "step-00000001")
    two.restore(tmp_path / "1" / "checkpoints" / "step-00000002")
    kept: dict[int, torch.Tensor] = {}
    for number, block in enumerate(one.model.blocks):
        block.register_forward_hook(lambda _, __, output, number=number: kept.update({number: output.detach()}))
    batch = micro_batches(one.train, 1, 4, 2)[0]
    one.model.eval()(**{name: value for name, value in batch.items() if name != "labels"})
    for number in (0, 1):
        figures, pair = layers[2][f"layer {number}"], (one.model.blocks[number], two.model.blocks[number])
        before, after = (torch.cat([p.flatten() for p in block.parameters()]).double() for block in pair)
        before, after = before.detach(), after.detach()
        assert figures["weight_norm"] == pytest.approx(float(after.norm()), rel=1e-5)
        assert figures["update_ratio"] == pytest.approx(float((after - before).norm() / after.norm()), rel=1e-4)
        assert figures["activation_rms"] == pytest.approx(float(kept[number].square().mean().sqrt()), rel=1e-5)
        assert figures["activation_max"] == pytest.approx(float(kept[number].abs().max()), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_named_before_the_first_step(tmp_path: Path, bad: float) -> None:
    job = tiny_job(tmp_path / "run")
    with torch.no_grad():
        job.model.model.layers[1].mlp.up_proj.weight[3, 4] = bad
    with pytest.raises(HeptaError, match=r"parameter model.layers.1.mlp.up_proj.weight: 1 of 2048 values are not"):
        tiny_run(tmp_path / "run", job, max_steps=2)


@pytest.mark.parametrize("name", ["nano", "gpt2-nano", "bert-nano", "lstm", "feedforward", "transformer-nano"])
def test_fresh_weights_of_every_family_pass(name: str) -> None:
    check_fresh(build_model(name, 640, 3))


@pytest.mark.parametrize("fault", ["forgotten", "zero row", "too wide", "untied", "not a number"])
def test_a_fault_of_initialisation_is_named(fault: str) -> None:
    model = Decoder(SHAPE)
    model.init_weights(3)
    weight = model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        if fault == "forgotten":
            weight.zero_()
        elif fault == "zero row":
            weight[5] = 0.25
        elif fault == "too wide":
            weight.mul_(10)
        elif fault == "not a number":
            weight[0, 0] = math.nan
        else:
            model.lm_head = torch.nn.Linear(32, 320, bias=False)
    wanted = {
        "forgotten": "row 0 holds one value", "zero row": "row 5 holds one value", "too wide": "standard deviation",
        "untied": "the shape says tied", "not a number": "up_proj.weight: 1 of",
    }  # fmt: skip
    with pytest.raises((AssertionError, HeptaError), match=wanted[fault]):
        check_fresh(model)
