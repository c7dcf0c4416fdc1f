"""Promises of ``hepta doctor run``: what went wrong is found, in runs of every state, and named."""

import fcntl
import json
from pathlib import Path

import numpy as np
import pytest
from test_checkpoint import damage, tiny_run_until
from test_rollback import cursed_job
from tiny import TwoSources, tiny_job, tiny_run

from hepta.config import HeptaError
from hepta.training.checkpoint import checkpoint_path
from hepta.training.config import RunDoctorConfig
from hepta.training.diagnosis import by_source, diagnose, spikes, stalls, trend
from hepta.training.diagnosis_text import show_diagnosis


def look(run: Path, **more: object) -> str:
    return show_diagnosis(diagnose(RunDoctorConfig(run=run, **more)))  # pyright: ignore[reportArgumentType]


def test_a_finished_run_has_nothing_unusual(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", max_steps=12)
    found = diagnose(RunDoctorConfig(run=tmp_path / "run"))
    assert (found.status, found.step, found.total_steps, found.eta_seconds) == ("finished", 12, 12, None)
    assert [c["step"] for c in found.checkpoints] == [8, 12]
    assert not any(c["fault"] for c in found.checkpoints)
    assert sum(found.phases.values()) == pytest.approx(1.0)
    assert not found.skips
    assert not found.spikes
    assert "step           12 of 12 (100%)" in look(tmp_path / "run")


def test_a_killed_run_says_where_it_would_go_on_and_which_checkpoint_is_torn(tmp_path: Path) -> None:
    """Trap R8."""
    run = tmp_path / "run"
    tiny_run_until(run, 10)
    damage(checkpoint_path(run, 8) / "model.safetensors", "truncated")
    text = look(run)
    assert "ended without saving" in text
    assert "step 8 DAMAGED (model.safetensors is not as it was sealed)" in text
    assert "! it ended without saving: the same command goes on from step 4, 11 steps were taken" in text
    assert "s to go" in text


def test_a_run_under_way_is_seen_and_not_disturbed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny_run(run, max_steps=4)
    (run / ".stage.json").write_text("{}")
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert diagnose(RunDoctorConfig(run=run)).status == "running"
    assert diagnose(RunDoctorConfig(run=run)).status == "stopped", "its lock is free again, its last step is saved"


def test_skips_and_rollbacks_name_their_documents(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = cursed_job(run)
    tiny_run(run, job, max_steps=24)
    text = look(run)
    assert "! it went back once" in text
    assert "from step 20 to 8 (window-" in text
    assert "step 11: loss is nan (window-" in text, "the eleventh bad step, now step 11, was skipped alone"


def test_sources_are_told_with_their_losses_and_shares(tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "run")
    job.train = TwoSources(32, 19)
    tiny_run(tmp_path / "run", job, max_steps=6)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss_by_source"]["left"] for row in rows if "loss_by_source" in row]
    found = diagnose(RunDoctorConfig(run=tmp_path / "run")).by_source
    assert found["left"]["loss"] == pytest.approx(np.mean(losses)), "each step has as many tokens of it"
    assert found["left"]["share"] == pytest.approx(15 / 31)
    assert f"by source      right {found['right']['loss']:.4f} (52%), left" in look(tmp_path / "run")
    rows = [{"loss_by_source": {"a": None, "b": 2.0}, "tokens_by_source": {"a": 3, "b": 4}}, {"loss": 1.0}]
    assert by_source(rows) == {"b": {"loss": 2.0, "share": 1.0}}, "a skipped step's loss is no number"


def test_spikes_and_stalls_are_told_from_the_usual() -> None:
    generator = np.random.default_rng(3)
    rows = [
        {"step": n + 1, "grad_norm": float(2 * 0.99**n * generator.uniform(0.8, 1.25)),
         "phases": {"data": 0.001, "backward": 0.1, "save": 9.0}}
        for n in range(200)
    ]  # fmt: skip
    assert spikes(rows) == []
    assert stalls(rows) == [], "saving is not part of a step"
    rows[120]["grad_norm"] *= 12
    rows[150]["phases"] = {"data": 2.0, "backward": 0.1}
    assert [spike["step"] for spike in spikes(rows)] == [121]
    assert [(stall["step"], stall["phase"]) for stall in stalls(rows)] == [(151, "data")]


def test_trend_is_told_from_noise() -> None:
    generator = np.random.default_rng(3)
    noise = generator.normal(0, 0.05, 400)
    assert trend(list(3 + noise)).startswith("flat")
    assert trend(list(3 + noise - np.arange(400) * 1e-3)).startswith("falling")
    assert trend(list(3 + noise + np.arange(400) * 1e-3)).startswith("rising")
    assert trend([3.0, 2.0]) == "too early to tell"


def test_the_table_of_layers_and_json(tmp_path: Path, cli) -> None:
    tiny_run(tmp_path / "run", max_steps=4, statistics=2)
    text = cli("doctor", "run", tmp_path / "run").out
    assert "update_ratio" in text
    assert "layer 1 " in text
    value = json.loads(cli("doctor", "run", tmp_path / "run", "--json").out)
    assert value["layers"]["layer 1"]["grad_norm"] > 0


def test_what_is_no_run_is_one_line(tmp_path: Path, cli) -> None:
    found = cli("doctor", "run", tmp_path)
    assert found.code == 2
    assert "no training run" in found.err
    tiny_run(tmp_path / "run", max_steps=2)
    with pytest.raises(HeptaError, match="step 7 was not taken; it has steps 1 to 2"):
        look(tmp_path / "run", step=7)


def test_step_names_the_documents_that_training_read(tmp_path: Path, tokenizer_dir: Path, wiki_en: Path, cli) -> None:
    """Against the order of data itself, in a real run over token shards."""
    from itertools import islice

    from hepta.data.order import TokenOrder

    texts = tmp_path / "texts.jsonl"
    with wiki_en.open(encoding="utf-8") as lines:
        texts.write_text("".join(islice(lines, 60)), encoding="utf-8")
    assert cli("corpus", "build", "--input", f"wiki={texts}", "--output", tmp_path / "corpus").code == 0
    tokens, run = tmp_path / "tokens", tmp_path / "run"
    made = cli("tokens", "build", "--input", tmp_path / "corpus", "--tokenizer", tokenizer_dir, "--output", tokens)
    assert made.code == 0, made.err
    keys = ["max_steps=3", "sequence_length=64", "batch_tokens=128", "compile=false", "sample_prompts=[]"]
    done = cli("pretrain", "--data", tokens, "--model", "nano", "--output", run, *keys)
    assert done.code == 0, done.err
    order = TokenOrder(tokens, "train", 64, 7)
    told = cli("doctor", "run", run, "--step", 2).out
    assert "sequences 2 to 3" in told
    for name in {*order.where(2), *order.where(3)}:
        assert f"  {name}" in told
