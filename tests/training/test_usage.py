"""Promises of what a run tells of itself: phases add up, memory is what it is, sources are told apart."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import TwoSources, byte_tokenizer, half_padding, tiny_job, tiny_run

from hepta.data.order import IGNORE
from hepta.objectives.causal import Causal
from hepta.tokenizer.load import load_tokenizer
from hepta.training.clock import Clock
from hepta.training.evaluate import bytes_per_token, evaluate
from hepta.training.held_out import read_documents
from hepta.training.metrics import shares, waste


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_phases_of_a_step_add_up_to_its_seconds(tmp_path: Path) -> None:
    outcome = tiny_run(tmp_path / "run", max_steps=6)
    steps = [row for row in rows_of(tmp_path / "run") if "phases" in row]
    before = 0.0
    for row in steps:
        inside = sum(value for name, value in row["phases"].items() if name not in ("evaluation", "save"))
        assert inside == pytest.approx(row["seconds"] - before, rel=1e-6)
        assert row["data_wait"] == pytest.approx(row["phases"]["data"] / inside, rel=1e-6)
        before = row["seconds"]
    assert "evaluation" in steps[0]["phases"], "the evaluation before the first step"
    assert "save" in steps[4]["phases"], "the checkpoint of step 4"
    assert outcome.state.phases["save"] > steps[4]["phases"]["save"], "the last save is counted too"


def test_seconds_of_phases_go_on_after_a_stop(tmp_path: Path) -> None:
    from test_checkpoint import tiny_run_until

    tiny_run_until(tmp_path / "run", 8)
    outcome = tiny_run(tmp_path / "run", max_steps=12)
    inside = sum(v for name, v in outcome.state.phases.items() if name not in ("evaluation", "save"))
    assert inside == pytest.approx(outcome.state.seconds, rel=1e-6)


def test_a_slow_reader_shows_as_waiting_for_data(tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "run")
    batch = job.train.batch
    job.train.batch = lambda start, count: (torch.linalg.inv(torch.eye(400)), batch(start, count))[1]
    tiny_run(tmp_path / "run", job, max_steps=3)
    slow = [row["data_wait"] for row in rows_of(tmp_path / "run") if "data_wait" in row]
    tiny_run(tmp_path / "plain", max_steps=3)
    plain = [row["data_wait"] for row in rows_of(tmp_path / "plain") if "data_wait" in row]
    assert min(slow) > max(plain)


def test_a_watcher_sees_each_phase_end_and_waiting_hands_everything_on() -> None:
    clock, seen = Clock(), []
    clock.watch = seen.append
    assert list(clock.waiting(iter([1, 2]))) == [1, 2]
    with clock.phase("forward"):
        pass
    assert seen == ["forward"]
    taken = clock.take(1.0)
    assert sum(taken.values()) == pytest.approx(1.0)
    assert clock.take(0.0)["data"] == 0.0


def test_memory_by_class_is_counted_from_the_tensors(tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "run")
    outcome = tiny_run(tmp_path / "run", job, max_steps=3)
    weights = 4 * sum(p.numel() for p in job.model.parameters())
    memory = outcome.state.memory
    assert memory["parameters"] == memory["gradients"] == weights
    count = len(list(job.model.parameters()))
    assert memory["optimizer"] == 2 * weights + 4 * count, "two moments, and a step counter for each tensor"
    assert sum("memory" in row for row in rows_of(tmp_path / "run")) == 1


def test_the_peak_is_that_of_the_process_not_of_the_one_that_started_it() -> None:
    """A recipe started by a large program reported that program's memory."""
    child = "from hepta.training.metrics import peak_memory_bytes; print(peak_memory_bytes())"
    run = "subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    parent = f"import subprocess, sys; held = bytearray(b'x' * 10**9); {run}"
    told = subprocess.run([sys.executable, "-c", parent, child], check=True, capture_output=True, text=True).stdout
    assert 10_000_000 < int(told) < 800_000_000


def test_activations_are_what_the_first_forward_pass_adds() -> None:
    """A forward pass that holds 64 MB is measured as that, also where as much was used and freed before."""
    from hepta.planning.machine import keep_memory
    from hepta.training.usage import MemoryMeter

    keep_memory()
    layer = torch.nn.Linear(4, 4)
    freed = torch.ones(16 << 20)
    del freed
    meter, clock = MemoryMeter(layer, torch.optim.AdamW(layer.parameters())), Clock()
    clock.watch = meter.leave
    with clock.phase("forward"):
        held = torch.ones(16 << 20)
    assert held.numel() * 4 == pytest.approx(meter.row()["activations"], rel=0.05)


def test_loss_by_source_and_by_document_is_the_sum_over_their_tokens(tmp_path: Path) -> None:
    """Against losses of single windows: a source is not averaged by windows, its tokens are."""
    job = tiny_job(tmp_path / "run")
    order = TwoSources(32, 8, seed=9)
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path / "bytes"))
    widths = bytes_per_token(tokenizer, job.model.config.vocab_size)
    row = (scores := evaluate(job.model, Causal(), order, widths, (), 3)).row()
    nats: dict[str, list[float]] = {"left": [], "right": []}
    documents: dict[str, list[float]] = {}
    job.model.eval()
    for n in range(8):
        batch = {name: torch.from_numpy(value) for name, value in order.batch(n, 1).items()}
        losses = Causal().scores(job.model, batch).losses[0]
        for place, (lost, label) in enumerate(zip(losses.tolist(), batch["labels"][0].tolist(), strict=True)):
            if label != IGNORE:
                source, name = order.sources(n)[place // 16], order.where(n)[place // 16]
                nats[source].append(lost)
                documents.setdefault(name, []).append(lost)
    for source, found in nats.items():
        assert row["val_loss_by_source"][source] == pytest.approx(np.mean(found), rel=1e-5)
    assert scores.by_document is not None
    assert {name for name, _, _ in scores.by_document} == set(documents)
    for (name, source, _), sums in scores.by_document.items():
        assert name.startswith(source)
        assert sums.nats == pytest.approx(sum(documents[name]), rel=1e-5)
        assert sums.tokens == len(documents[name])


def test_the_last_evaluation_leaves_its_documents(tmp_path: Path) -> None:
    outcome = tiny_run(tmp_path / "run", max_steps=3)
    found = read_documents(tmp_path / "run")
    assert sum(tokens for _, tokens, _ in found.values()) == outcome.final["val_tokens"]
    total = sum(nats for nats, _, _ in found.values())
    assert total / outcome.final["val_tokens"] == pytest.approx(outcome.final["val_loss"], rel=1e-9)
    bits = total / math.log(2) / sum(size for _, _, size in found.values())
    assert bits == pytest.approx(outcome.final["val_bpb"]["all"], rel=1e-9)
    assert pq.read_schema(tmp_path / "run" / "held_out.parquet").names[0] == "document"
    assert read_documents(tmp_path / "nowhere") == {}


def test_waste_counts_padding_and_tokens_that_teach_nothing() -> None:
    batch = {"input_ids": torch.zeros(2, 8), "labels": torch.full((2, 8), IGNORE)}
    batch["labels"][0, :3] = 5
    read = waste(10, [batch])
    assert read == {"positions": 16, "tokens": 10, "unsupervised": 7}
    assert shares(read) == {"padded": 6 / 16, "unsupervised": 7 / 16}
    pairs = {"source_ids": torch.zeros(2, 5), "input_ids": torch.zeros(2, 4), "labels": torch.zeros(2, 4)}
    assert waste(12, [pairs]) == {"positions": 18, "tokens": 12}
    classes = {"input_ids": torch.zeros(2, 8), "labels": torch.zeros(2)}
    assert shares(waste(8, [classes])) == {"padded": 0.5}


def test_padding_of_the_whole_run_is_told(tmp_path: Path) -> None:
    job = half_padding(tiny_job(tmp_path / "run"))
    outcome = tiny_run(tmp_path / "run", job, max_steps=3)
    assert outcome.state.positions == 2 * outcome.state.tokens
    assert {row["waste"]["padded"] for row in rows_of(tmp_path / "run") if "waste" in row} == {0.5}
