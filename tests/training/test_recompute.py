"""Promises of recomputation: the same bits, less memory, and what does not apply is said."""

from pathlib import Path

import pytest
import torch
from tiny import SHAPE, add_dropout, losses, tiny_job, tiny_run
from torch.profiler import ProfilerActivity, profile

from hepta.config import HeptaError
from hepta.model.decoder import Decoder
from hepta.model.families import preset
from hepta.model.feedforward import FeedForward
from hepta.model.gpt2 import GPT2
from hepta.objectives.causal import Causal
from hepta.planning.memory import Setting, activation_bytes
from hepta.training import recompute
from hepta.training.recompute import pick_recompute, product_bytes, recompute_blocks


@pytest.mark.parametrize("how", ["block", "selective"])
def test_recomputed_runs_are_the_same_bits_with_dropout(tmp_path: Path, how: str) -> None:
    """Trap R15: losses and final weights of 6 steps, dropout 0.2 included, equal those of a plain run."""
    outcomes = {}
    for kind in ("none", how):
        output = tmp_path / kind
        outcomes[kind] = tiny_run(output, add_dropout(tiny_job(output)), max_steps=6, recompute=kind)
    assert losses(tmp_path / how) == losses(tmp_path / "none")
    assert outcomes[how].weights_sha256 == outcomes["none"].weights_sha256
    assert outcomes[how].resolved.recompute == how


def peak_bytes(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """Most bytes that torch held at once in one forward and backward pass, beyond those it began with."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        Causal()(model, batch).total.backward()
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


def test_recomputation_lowers_the_measured_peak() -> None:
    """Bytes allocated in a step, 12 layers: selective under 0.7, block under 0.4 of what keeping everything takes."""
    peaks, batch = {}, {name: torch.randint(0, 320, (1, 512)) for name in ("input_ids", "labels")}
    for how in ("none", "selective", "block"):
        model = Decoder(SHAPE.replace(hidden_size=64, intermediate_size=192, num_layers=12, num_kv_heads=2))
        model.init_weights(1)
        recompute_blocks(model.train(), how)
        peaks[how] = peak_bytes(model, batch)
    assert peaks["block"] < 0.4 * peaks["none"]
    assert peaks["block"] < peaks["selective"] < 0.7 * peaks["none"]


def test_wide_models_hand_back_the_holes_that_recomputed_blocks_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fourth block, in the forward pass and when it runs again; the numbers know nothing of it."""
    losses, calls, batch = [], [], {name: torch.randint(0, 320, (1, 64)) for name in ("input_ids", "labels")}
    give_back = recompute.give_back
    monkeypatch.setattr(recompute, "give_back", lambda: calls.append(give_back()))
    for wide in (recompute.WIDE, 0):
        monkeypatch.setattr(recompute, "WIDE", wide)
        model = Decoder(SHAPE.replace(num_layers=6))
        model.init_weights(1)
        recompute_blocks(model.train(), "block")
        losses.append(Causal()(model, batch).total)
        losses[-1].backward()
        assert len(calls) == (4 if wide == 0 else 0)
    assert torch.equal(*losses)


def test_evaluation_and_generation_recompute_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT2(preset("gpt2-nano"))
    model.init_weights(0)
    recompute_blocks(model, "block")
    monkeypatch.setattr(recompute, "checkpoint", lambda *_, **__: pytest.fail("recomputed"))
    model.eval()(torch.zeros(1, 8, dtype=torch.long))
    with torch.no_grad():
        model.train()(torch.zeros(1, 8, dtype=torch.long))


def test_automatic_recomputation_takes_the_least_that_fits(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    shape, setting = preset("7b"), Setting(512, cpu=True)
    whole, some = activation_bytes(shape, setting), product_bytes(shape, setting)
    assert some < 0.5 * whole
    for free, compiled, expected in [
        (whole * 1.2, False, "none"), (whole * 1.05, False, "selective"), (some * 1.2, False, "selective"),
        (some * 1.2, True, "block"), (some * 1.05, False, "block"),
    ]:  # fmt: skip
        monkeypatch.setattr(recompute, "memory_limit", lambda free=free: (0, free))
        assert pick_recompute(shape, setting, 0.0, "cpu", compiled) == expected
        assert ("recompute: " in capsys.readouterr().err) == (expected != "none")
    monkeypatch.setattr(recompute, "memory_limit", lambda: (0, whole * 1.2))
    assert pick_recompute(shape, setting, whole, "cpu", False) == "block"


def test_what_cannot_be_recomputed_is_refused() -> None:
    with pytest.raises(HeptaError, match="a FeedForward has no blocks to recompute"):
        recompute_blocks(FeedForward(preset("feedforward")), "block")
    with pytest.raises(HeptaError, match="compiled blocks choose for themselves"):
        recompute_blocks(Decoder(SHAPE), "selective", compiled=True)
