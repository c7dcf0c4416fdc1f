"""Promises of going on: a run that is stopped anywhere ends as if it had never been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import add_dropout, losses, tiny_job, tiny_run

from hepta.config import HeptaError

PROGRAM = [sys.executable, str(Path(__file__).with_name("tiny.py"))]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def program(output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, str(output), *words], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )


def uninterrupted(output: Path, **values: object) -> tuple[str, list[tuple[int, float]]]:
    outcome = tiny_run(output, add_dropout(tiny_job(output)), threads=1, **values)
    return outcome.weights_sha256, losses(output)


def test_resume_is_bit_exact_after_kill_and_after_kill_inside_a_save(tmp_path: Path) -> None:
    """Trap R7: kill −9 before step 10 and in the middle of the second save; across epoch edges, with dropout."""
    wanted = uninterrupted(tmp_path / "whole", max_steps=18)
    run = tmp_path / "killed"
    assert program(run, "max_steps=18", "die_step=10").returncode == -signal.SIGKILL
    half_way = [step for step, _ in losses(run)]
    assert half_way[-1] == 10
    assert program(run, "max_steps=18", "die_save=2", "workers=2").returncode == -signal.SIGKILL
    assert list((run / "checkpoints").glob(".step-*.tmp-*")), "the kill left a half-written checkpoint"
    last = program(run, "max_steps=18")
    assert last.returncode == 0, last.stderr
    assert "going on from step 12" in last.stderr
    assert last.stdout.strip() == wanted[0]
    assert losses(run) == wanted[1], "each step once, with the loss of the uninterrupted run"
    assert not list((run / "checkpoints").glob(".*")), "what the kill left is swept away"
    before, after = (
        [json.loads(x) for x in (p / "metrics.jsonl").read_text().splitlines()] for p in (tmp_path / "whole", run)
    )
    for key in ("step", "epoch", "tokens_seen", "epoch_loss", "val_loss", "val_bpb", "grad_norm", "lr"):
        assert [row.get(key) for row in after] == [row.get(key) for row in before], key


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(4))
def test_resume_is_bit_exact_after_kills_at_random_moments(tmp_path: Path, seed: int) -> None:
    """Trap R7: SIGKILL at random times, saves at every second step so that many fall inside one."""
    keys = ["max_steps=60", "checkpoint.every=2", "eval.every=10"]
    wanted = uninterrupted(tmp_path / "whole", max_steps=60, checkpoint={"every": 2}, eval={"every": 10})
    chance, run, kills = random.Random(seed), tmp_path / "killed", 0
    for target in sorted(chance.randint(1, 58) for _ in range(6)):
        process = subprocess.Popen(
            [*PROGRAM, str(run), *keys], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        rows = run / "metrics.jsonl"
        while process.poll() is None and not (rows.is_file() and rows.read_bytes().count(b"grad_norm") >= target):
            time.sleep(0.005)
        time.sleep(0.1 * chance.random())  # a step and its save take about that long
        kills += process.poll() is None
        process.kill()
        process.wait()
    last = program(run, *keys)
    assert last.returncode == 0, last.stderr
    assert kills >= 4
    assert (last.stdout.strip(), losses(run)) == wanted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_the_same_command_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    """Exit by ``Interrupted`` with the state of the step just done, and a hint."""
    wanted = uninterrupted(tmp_path / "whole", max_steps=30)
    run = tmp_path / "stopped"
    process = subprocess.Popen(
        [*PROGRAM, str(run), "max_steps=30", "checkpoint.every=1000"],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (run / "metrics.jsonl").is_file() or len(losses(run)) < 3:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate()
    assert "the same command goes on from here" in errors
    saved = [path.name for path in (run / "checkpoints").iterdir()]
    assert saved == [f"step-{losses(run)[-1][0]:08d}"], "the only checkpoint is that of the last step done"
    last = program(run, "max_steps=30", "checkpoint.every=1000")
    assert (last.stdout.strip(), losses(run)) == wanted


def test_larger_budget_goes_on_from_the_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    constant = {"schedule": "constant", "warmup": 1}
    tiny_run(run, max_steps=8, **constant)
    outcome = tiny_run(run, max_steps=12, **constant)
    straight = tiny_run(tmp_path / "straight", max_steps=12, **constant)
    assert outcome.weights_sha256 == straight.weights_sha256
    assert losses(run) == losses(tmp_path / "straight")


def test_another_identity_key_never_overwrites_a_run(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", max_steps=2)
    with pytest.raises(HeptaError, match="seed"):
        tiny_run(tmp_path / "run", max_steps=2, seed=8)


def test_workers_do_not_change_the_run(tmp_path: Path) -> None:
    """Trap R7: 0 and 2 loader threads give the same weights."""
    assert tiny_run(tmp_path / "a", workers=0).weights_sha256 == tiny_run(tmp_path / "b", workers=2).weights_sha256
