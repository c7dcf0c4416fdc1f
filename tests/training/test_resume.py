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
from tiny import add_dropout, curse, losses, tiny_job, tiny_run

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


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_thirty_kills_end_like_none(tmp_path: Path) -> None:
    """Trap R7: 200 steps with dropout, epoch edges, evaluations and a rollback; 30 times SIGKILL, saves included.

    24 kills fall at random moments, spread over the run; 6 in the middle of a save, after the weights are written.
    Weights, losses, evaluations and the journal of what was left out are those of the run that nobody killed.
    """
    bad, keys = [400, 444], {"max_steps": 200, "checkpoint": {"every": 5}, "eval": {"every": 40, "tokens": 256}}
    whole = tiny_run(tmp_path / "whole", curse(add_dropout(tiny_job(tmp_path / "whole")), *bad), threads=1, **keys)
    assert whole.state.rollbacks == [100]
    words = [str(tmp_path / "run"), "max_steps=200", "checkpoint.every=5", "eval.every=40", "eval.tokens=256"]
    words.append(f"curse=[{bad[0]},{bad[1]}]")
    chance, run, kills, torn = random.Random(7), tmp_path / "run", 0, 0
    moments = sorted(chance.randint(1, 190) for _ in range(24))
    in_saves = {place: chance.randint(1, 3) for place in chance.sample(range(24), 6)}
    for place, target in enumerate(moments):
        if place in in_saves:
            died = program(run, *words[1:], f"die_save={in_saves[place]}")
            kills += died.returncode == -signal.SIGKILL
            torn += bool(list((run / "checkpoints").glob(".step-*.tmp-*")))
        kills += kill_at(run, words, target, 0.1 * chance.random())
    last = program(run, *words[1:])
    assert last.returncode == 0, last.stderr
    assert kills >= 28, "a kill or two may find a process that has ended"
    assert torn >= 4, "kills inside a save leave it half-written"
    assert last.stdout.strip() == whole.weights_sha256
    assert losses(run) == losses(tmp_path / "whole")
    kept = {"metrics.jsonl": ("step", "val_loss", "grad_norm"), "journal.jsonl": ("step", "sequences", "documents")}
    for name, fields in kept.items():
        rows = [[json.loads(x) for x in (p / name).read_text().splitlines()] for p in (tmp_path / "whole", run)]
        about = [[row for row in part if row.get("event") in (None, "skip", "rollback")] for part in rows]
        told = [[[row.get(field) for field in fields] for row in part] for part in about]
        assert told[0] == told[1], name


def kill_at(run: Path, words: list[str], target: int, more: float) -> bool:
    """Start the program, SIGKILL it ``more`` seconds after its ``target``-th step; whether it was still running."""
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen([*PROGRAM, *words], env=ENVIRONMENT, stdout=nowhere, stderr=nowhere)
    rows = run / "metrics.jsonl"
    while process.poll() is None and not (rows.is_file() and rows.read_bytes().count(b"grad_norm") >= target):
        time.sleep(0.005)
    time.sleep(more)
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


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
