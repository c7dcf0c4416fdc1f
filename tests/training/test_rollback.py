"""Promises of going back: steps that fail in a row are undone, their sequences left out, and all of it is exact."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import add_dropout, curse, losses, tiny_job, tiny_run

from hepta.config import MachineError
from hepta.data.around import Around, merged, place_around
from hepta.training.checkpoint import checkpoint_path, prune, save_checkpoint
from hepta.training.guard import PATIENCE

PROGRAM = [sys.executable, str(Path(__file__).with_name("tiny.py"))]
FIRST, BAD = 10, PATIENCE + 1  # step of the first bad sequence, and how many steps are bad
CURSE = (4 * FIRST, 4 * (FIRST + BAD))


def journal(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]


def cursed_job(run: Path) -> object:
    return curse(add_dropout(tiny_job(run)), *CURSE)


def test_skips_in_a_row_go_back_and_leave_their_sequences_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends bit for bit as one whose data never held those sequences."""
    run = tmp_path / "run"
    job = cursed_job(run)
    outcome = tiny_run(run, job, max_steps=24)
    told = capsys.readouterr().err
    assert "10 steps in a row had to be skipped (loss is nan): back to step 8, without sequences 40 to 79" in told
    left_out = [[4 * FIRST, 4 * (FIRST + PATIENCE)]]
    assert outcome.state.left_out == left_out
    assert outcome.state.rollbacks == [8]
    clean = cursed_job(tmp_path / "clean")
    clean.train = Around(clean.train, left_out)
    wanted = tiny_run(tmp_path / "clean", clean, max_steps=24)
    assert outcome.weights_sha256 == wanted.weights_sha256
    assert [step for step, _ in losses(run)] == list(range(1, 25)), "each step once"
    same = zip(losses(run), losses(tmp_path / "clean"), strict=True)
    assert all(one == other for one, other in same), "and with the same losses"
    event = next(row for row in journal(run) if row["event"] == "rollback")
    assert (event["step"], event["from"], event["sequences"]) == (8, 20, left_out)
    assert event["documents"] == sorted({f"window-{tiny_job(run).train.index(n)}" for n in range(*left_out[0])})
    assert outcome.state.guard.skipped == 1, "the eleventh bad step was skipped alone"


@pytest.mark.parametrize(
    "moment", [pytest.param(15, marks=pytest.mark.chaos), 21, pytest.param(23, marks=pytest.mark.chaos)]
)
def test_kill_before_and_after_a_rollback_changes_nothing(tmp_path: Path, moment: int) -> None:
    """Trap R7: kill −9 among the skips, right after going back, and after the next checkpoint."""
    wanted = tiny_run(tmp_path / "whole", cursed_job(tmp_path / "whole"), max_steps=24)
    run, environment = tmp_path / "run", {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [*PROGRAM, str(run), "max_steps=24", f"curse=[{CURSE[0]},{CURSE[1]}]"]
    died = subprocess.run([*words, f"die_step={moment}"], env=environment, capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL
    last = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert last.stdout.strip() == wanted.weights_sha256, last.stderr
    assert losses(run) == losses(tmp_path / "whole")
    assert [row for row in journal(run) if row["event"] == "rollback"] == [
        row for row in journal(tmp_path / "whole") if row["event"] == "rollback"
    ]


def test_a_run_that_cannot_go_back_far_enough_stops_with_one_line(tmp_path: Path) -> None:
    """Everything from step 6 on is bad: three returns to step 4, then an end that names the journal."""
    job = curse(tiny_job(tmp_path / "run"), 24, 10_000)
    with pytest.raises(MachineError, match=r"in a row had to be skipped \(loss is nan\), after 3 returns to step 4;"):
        tiny_run(tmp_path / "run", job, max_steps=40)
    assert len([row for row in journal(tmp_path / "run") if row["event"] == "rollback"]) == 3


def test_a_run_bad_from_its_beginning_stops_with_one_line(tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "run")
    job = curse(job, 0, 10_000)
    with pytest.raises(MachineError, match="in a row .* no checkpoint from before them"):
        tiny_run(tmp_path / "run", job, max_steps=40)


def test_only_checkpoints_at_multiples_are_gone_back_to_and_kept_for_it(tmp_path: Path) -> None:
    """A checkpoint that a signal made must not decide where a run goes back to."""
    for step in (4, 8, 9, 11):
        save_checkpoint(tmp_path, step, lambda place: (place / "config.json").write_text("{}"), {}, {"val_loss": None})
    prune(tmp_path, 1, 4)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000008", "step-00000011"]


def test_stop_before_a_rollback_changes_nothing(tmp_path: Path) -> None:
    """The checkpoint of a signal, three steps after a multiple, is no place to go back to."""
    wanted = tiny_run(tmp_path / "whole", cursed_job(tmp_path / "whole"), max_steps=24)
    run = tmp_path / "run"
    tiny_run(run, cursed_job(run), max_steps=9, schedule="cosine")
    assert checkpoint_path(run, 9).is_dir()
    outcome = tiny_run(run, cursed_job(run), max_steps=24)
    assert outcome.state.rollbacks == wanted.state.rollbacks == [8]


def test_ranges_are_read_around() -> None:
    assert merged([[8, 12], [0, 4], [12, 16]]) == [[0, 4], [8, 16]]
    kept = [n for n in range(40) if not 4 <= n < 8 and not 12 <= n < 20]
    assert [place_around(n, [[4, 8], [12, 20]]) for n in range(len(kept))] == kept
