"""Promises of the update inside the backward pass: the same weights, gradients that live briefly, a way back."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from tiny import SHAPE, ByteOrder, losses, tiny_config, tiny_job, tiny_run

from hepta.config import HeptaError, MachineError
from hepta.model.decoder import Decoder
from hepta.objectives.causal import Causal
from hepta.training.backward import BackwardUpdates
from hepta.training.guard import Guard
from hepta.training.job import Job
from hepta.training.optimizer import make_optimizer
from hepta.training.step import micro_batches, run_step

KEYS = {"update_in_backward": True, "micro_batch": None, "clip_norm": 1e6}


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_weights_are_those_of_the_ordinary_loop(tmp_path: Path, name: str) -> None:
    """Where nothing is clipped, losses and weights of 8 steps equal those of gradients kept to the end."""
    keys = {"optimizer": name, "max_steps": 8, "micro_batch": 4, "clip_norm": 1e6}
    outcomes = [tiny_run(tmp_path / str(inside), update_in_backward=inside, **keys) for inside in (False, True)]
    assert losses(tmp_path / "True") == losses(tmp_path / "False")
    assert outcomes[0].weights_sha256 == outcomes[1].weights_sha256


def test_gradients_are_never_all_alive() -> None:
    """Bytes of gradients at any moment: at most the largest one, which here is the tied embedding's."""
    model = Decoder(SHAPE)
    model.init_weights(1)
    alive: list[int] = []
    updates, optimizer = BackwardUpdates(model), make_optimizer(model, 0.1, "adafactor")
    step = optimizer.step

    def watched() -> None:
        alive.append(sum(p.grad.numel() for p in model.parameters() if p.grad is not None))
        step()

    optimizer.step = watched  # type: ignore[method-assign]
    (batch,) = micro_batches(ByteOrder(32, 8), 0, 4, 4)
    result = updates.run_step(model, optimizer, Causal(), [batch], 1e-3, 1.0, Guard(20.0))
    assert len(alive) == len(list(model.parameters()))
    assert max(alive) == max(p.numel() for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())
    other = Decoder(SHAPE)
    other.init_weights(1)
    plain = run_step(other, make_optimizer(other, 0.1), Causal(), [batch], 1e-3, 1.0, Guard(20.0))
    assert result.grad_norm == pytest.approx(plain.grad_norm, rel=1e-5)


def test_clipping_is_by_the_norm_of_the_step_before() -> None:
    """SGD, whose update is its gradient: after a step of norm n and a limit of n / 4, the next one is a quarter."""
    moved = {}
    for limit in (1e6, 0.25):
        model = Decoder(SHAPE)
        model.init_weights(1)
        updates, optimizer, guard = BackwardUpdates(model), make_optimizer(model, 0.0, "sgd"), Guard(20.0)
        optimizer.param_groups[0]["momentum"] = optimizer.param_groups[1]["momentum"] = 0.0
        optimizer.param_groups[0]["nesterov"] = optimizer.param_groups[1]["nesterov"] = False
        (batch,) = micro_batches(ByteOrder(32, 8), 0, 4, 4)
        first = updates.run_step(model, optimizer, Causal(), [batch], 0.0, 1.0, guard)
        before = [p.detach().clone() for p in model.parameters()]
        updates.run_step(model, optimizer, Causal(), [batch], 1.0, limit * first.grad_norm, guard)
        moved[limit] = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
    for whole, part in zip(moved[1e6], moved[0.25], strict=True):
        torch.testing.assert_close(part, whole / 4, rtol=1e-4, atol=1e-6)


def poison_gradient(job: Job, at_call: int) -> Job:
    """Make one gradient NaN in the ``at_call``-th training forward pass; the loss stays finite."""
    calls = 0

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gradient, math.nan)

    def hook(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal calls
        if module.training and torch.is_grad_enabled():
            calls += 1
            if calls == at_call:
                output.register_hook(spoil)

    job.model.model.layers[1].mlp.register_forward_hook(hook)
    return job


def test_a_gradient_that_is_not_finite_rolls_back_to_the_last_seal(tmp_path: Path) -> None:
    """Trap R5 where weights have moved already: the seal comes back, then the run goes on without those data."""
    run = tmp_path / "run"
    outcome = tiny_run(run, poison_gradient(tiny_job(run), 7), **KEYS)
    assert (outcome.state.step, outcome.state.rollbacks) == (12, [4])
    (event,) = [row for row in map(json.loads, (run / "journal.jsonl").open()) if row["event"] == "rollback"]
    assert (event["step"], event["from"], event["skipped"], event["sequences"]) == (4, 7, 1, [[24, 28]])
    assert "tensors are not finite" in event["reason"]
    assert all(math.isfinite(loss) for _, loss in losses(run))
    assert outcome.state.left_out == [[24, 28]]


def test_without_a_seal_a_spoilt_step_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no checkpoint from before"):
        tiny_run(tmp_path / "run", poison_gradient(tiny_job(tmp_path / "run"), 2), **KEYS)


def test_a_loss_that_is_not_finite_touches_nothing() -> None:
    model = Decoder(SHAPE)
    model.init_weights(1)
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    before = [p.detach().clone() for p in model.parameters()]
    updates, optimizer, guard = BackwardUpdates(model), make_optimizer(model, 0.1), Guard(20.0)
    result = updates.run_step(model, optimizer, Causal(), micro_batches(ByteOrder(32, 8), 0, 4, 4), 1e-3, 1.0, guard)
    assert (result.skipped, result.spoiled, guard.skipped) == ("loss is nan", False, 1)
    assert all(torch.equal(p.nan_to_num(), b.nan_to_num()) for p, b in zip(model.parameters(), before, strict=True))


def test_resume_is_bit_exact(tmp_path: Path) -> None:
    """Trap R7, with bfloat16 weights rounded by chance: 12 steps at once equal 8 and 4 more."""
    keys = {**KEYS, "precision": "bf16-pure", "optimizer": "adafactor", "lr": "auto", "schedule": "constant"}
    whole = tiny_run(tmp_path / "whole", **keys)
    tiny_run(tmp_path / "parts", max_steps=8, **keys)
    assert tiny_run(tmp_path / "parts", **keys).weights_sha256 == whole.weights_sha256
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_accumulation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeptaError, match=r"gradients cannot be summed \(micro_batch 2 of 4 sequences\)"):
        tiny_config(tmp_path / "run", update_in_backward=True)


def test_the_recipe_for_7b_in_24_gib_runs_on_a_small_shape(tmp_path: Path) -> None:
    """Its own keys of the pretraining stage, with another model, length and number of steps."""
    recipe = yaml.safe_load((Path(__file__).parents[2] / "recipes" / "7b-full-24gb.yaml").read_text(encoding="utf-8"))
    keys = next(stage for stage in recipe["stages"] if stage["verb"] == "pretrain")
    assert keys["model"] == "7b"
    for key in ("id", "verb", "data", "model", "sequence_length", "batch_tokens", "max_steps", "eval"):
        del keys[key]
    outcome = tiny_run(tmp_path / "run", **{**keys, "micro_batch": None, "lr": "auto", "max_steps": 20})
    assert (outcome.resolved.precision, outcome.resolved.recompute) == ("bf16-pure", "block")
    assert losses(tmp_path / "run")[-1][1] < losses(tmp_path / "run")[0][1]
