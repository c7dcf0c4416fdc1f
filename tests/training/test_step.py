"""Promises of one step: accumulation, masking, skipping, groups, precision."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny import SHAPE, ByteOrder, half_padding, losses, tiny_job, tiny_run

from hepta.model.decoder import Decoder
from hepta.objectives.causal import IGNORE, Causal
from hepta.planning.cost import flops_per_token
from hepta.planning.machine import measured_peak
from hepta.training.guard import ENOUGH, Guard
from hepta.training.optimizer import make_optimizer, parameter_groups
from hepta.training.resolve import pick_device
from hepta.training.step import Batch, run_step


def fresh() -> Decoder:
    model = Decoder(SHAPE)
    model.init_weights(5)
    return model


def uneven_batches(parts: list[list[int]]) -> list[Batch]:
    """Rows of text with as many supervised tokens as ``parts`` says, padded to 128; one micro-batch per part."""
    order, result, n = ByteOrder(128, 8), [], 0
    for lengths in parts:
        rows = order.batch(n, len(lengths))
        n += len(lengths)
        for row, length in enumerate(lengths):
            rows["labels"][row, length:] = IGNORE
        result.append({name: torch.from_numpy(value) for name, value in rows.items()})
    return result


LENGTHS = [1, 2, 5, 60, 120, 1, 60, 5]


@pytest.mark.parametrize("cut", [[2, 2, 2, 2], [1] * 8, [3, 5]])
def test_accumulation_equals_one_big_batch(cut: list[int]) -> None:
    """Trap R1: lengths 1 … 120; 8×1, 4×2, 1×8 give the same loss, norm and weights over three steps."""
    models, results = [], []
    for sizes in ([8], cut):
        model, places = fresh(), iter(LENGTHS)
        optimizer, guard = make_optimizer(model, 0.1), Guard(math.inf)
        batches = uneven_batches([[next(places) for _ in range(size)] for size in sizes])
        results.append([run_step(model, optimizer, Causal(), batches, 1e-3, 1.0, guard) for _ in range(3)])
        models.append(model)
    for one, other in zip(*results, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
        assert one.weight == other.weight
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_no_window_is_left_partly_filled_at_the_edge_of_an_epoch(tmp_path: Path) -> None:
    """Trap R3: 19 sequences an epoch, 4 a step: every step has 4, none is missed or read twice, no gradient is left."""
    job = tiny_job(tmp_path / "run")
    seen: list[int] = []
    batch = job.train.batch
    job.train.batch = lambda start, count: (seen.extend(range(start, start + count)), batch(start, count))[1]
    tiny_run(tmp_path / "run", job, max_steps=10)
    trained = seen[20:]  # four steps are read beforehand to count their tokens, one for the forecast
    assert trained == list(range(40))
    assert sorted(job.train.index(n) for n in range(19)) == list(range(19))
    assert all(parameter.grad is None for parameter in job.model.parameters())


def test_fully_masked_micro_batch_is_named_and_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trap R4: its weight is zero; a whole step of it leaves the weights alone."""
    run = tmp_path / "run"
    job = tiny_job(run, poison=(2, 3, 8, 9, 10, 11))  # a micro-batch of step 1, all of step 3
    tiny_run(run, job, max_steps=4)
    message = capsys.readouterr().err
    assert "no supervised token" in message
    assert f"window-{job.train.index(2)}" in message
    assert all(math.isfinite(loss) for _, loss in losses(run))
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert [row["step"] for row in journal if row["event"] == "skip"] == [3]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 100.0])
def test_bad_step_leaves_weights_and_moments_bit_equal(bad: float) -> None:
    """Trap R5: NaN, Inf and a 100× spike."""
    model, guard = fresh(), Guard(20.0)
    optimizer, batches = make_optimizer(model, 0.1), uneven_batches([[100, 100]])
    for _ in range(ENOUGH):
        assert run_step(model, optimizer, Causal(), batches, 1e-4, 1.0, guard).skipped is None
    before = [p.clone() for p in model.parameters()] + [
        v.clone() for s in optimizer.state.values() for v in s.values()
    ]

    def broken(hidden: torch.Tensor) -> torch.Tensor:
        return hidden * bad

    handle = model.model.norm.weight.register_hook(broken)
    result = run_step(model, optimizer, Causal(), batches, 1e-4, 1.0, guard)
    handle.remove()
    after = [*model.parameters(), *(v for s in optimizer.state.values() for v in s.values())]
    if bad == 100.0:
        assert result.skipped is None, "a norm 100 times the usual in one small tensor is no spike of the whole"
        hooks = [p.register_hook(broken) for p in model.parameters()]
        before = [v.clone() for v in after]
        result = run_step(model, optimizer, Causal(), batches, 1e-4, 1.0, guard)
        for hook in hooks:
            hook.remove()
    assert result.skipped is not None
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert run_step(model, optimizer, Causal(), batches, 1e-4, 1.0, guard).skipped is None


def test_guard_window_survives_a_restart(tmp_path: Path) -> None:
    """Trap R6: the norms before the stop judge the steps after it."""
    from test_checkpoint import tiny_run_until

    tiny_run(tmp_path / "whole", max_steps=12)
    tiny_run_until(tmp_path / "run", 8)
    outcome = tiny_run(tmp_path / "run", max_steps=12)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert outcome.state.guard.norms == [row["grad_norm"] for row in rows if "grad_norm" in row]


def test_decay_is_on_matrices_that_are_not_embeddings_only() -> None:
    """Trap R11: no decay on norms, biases, embeddings, tied or not."""
    for config in (SHAPE, SHAPE.replace(tied=False, family="qwen2", attention_bias=True)):
        model = Decoder(config)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        decayed, plain = ([names[id(p)] for p in group["params"]] for group in parameter_groups(model, 0.1))
        assert sorted(decayed + plain) == sorted(names.values())
        assert all("proj.weight" in name or name == "lm_head.weight" for name in decayed)
        assert all("norm" in name or "embed" in name or "bias" in name for name in plain)


def test_small_updates_accumulate_on_fp32_masters_under_bf16_compute() -> None:
    """Trap R16: 100 steps of about 1e-5 move weights by about 1e-3; bf16 weights would stand still."""
    model = fresh()
    model.compute_dtype = torch.bfloat16
    weight = model.model.layers[0].mlp.up_proj.weight
    start, optimizer, guard = weight.detach().clone(), make_optimizer(model, 0.0), Guard(math.inf)
    for _ in range(100):
        run_step(model, optimizer, Causal(), uneven_batches([[100, 100]]), 1e-5, 1.0, guard)
    moved = (weight.detach() - start).abs()
    assert weight.dtype == torch.float32
    assert 2e-4 < float(moved.mean()) < 2e-3


def test_device_is_compared_by_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap R14: ``torch.device("cuda:0") == "cuda"`` is False; asking for a GPU that is not there is an error."""
    from hepta.config import HeptaError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"
    with pytest.raises(HeptaError, match="no GPU"):
        pick_device("cuda:0")
    with pytest.raises(HeptaError, match="unknown"):
        pick_device("gpu")


def test_tokens_per_second_and_seen_count_no_padding(tmp_path: Path) -> None:
    """Trap R13: half the positions are padding, so half the tokens count; MFU divides by the peak measured here."""
    job = half_padding(tiny_job(tmp_path / "run"))
    outcome = tiny_run(tmp_path / "run", job, max_steps=3)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if "mfu" in row]
    assert [row["tokens_seen"] for row in train] == [64, 128, 192]
    assert outcome.state.tokens == 192
    for earlier, row in pairwise(train):
        seconds = row["seconds"] - earlier["seconds"]
        assert row["tokens_per_second"] == pytest.approx(64 / seconds, rel=1e-6)
        flops = 3 * flops_per_token(job.model.config, 32) * 64
        assert row["mfu"] == pytest.approx(flops / seconds / 1e9 / outcome.resolved.peak_gflops, rel=1e-6)
        assert outcome.resolved.peak_gflops == measured_peak("fp32", 1, "cpu")
