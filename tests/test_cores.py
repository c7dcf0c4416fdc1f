"""How threads wait: they spin only where cores are idle as a command begins, and the user's own word wins."""

import json
import os
import subprocess
import sys
import time

import pytest

from hepta import cores

BURN = "while True: pass"
ASK = (
    "import json, os\nfrom hepta import cores\ncores.choose_waiting()\n"
    "print(json.dumps([cores.waiting(), os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT')]))"
)


def ask(**environment: str) -> list[str | None]:
    plain = {key: value for key, value in os.environ.items() if key not in (cores.POLICY, cores.SPINS)}
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, timeout=60, env={**plain, **environment}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_threads_sleep_where_other_work_keeps_every_core():
    """A fault of spinning threads: a step beside other work takes twice the time (docs/log.md)."""
    burning = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(0.3)
        assert ask(OMP_NUM_THREADS=str(os.cpu_count())) == ["sleeping", "PASSIVE", None]
    finally:
        for process in burning:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("others", "threads", "usable", "spins"),
    [(0.0, 2, 2, True), (0.4, 2, 2, True), (0.6, 2, 2, False), (1.0, 1, 2, True), (3.0, 8, 8, False), (None, 1, 8, 0)],
)
def test_threads_spin_where_they_and_the_others_fit(monkeypatch, others, threads, usable, spins):
    monkeypatch.delenv(cores.POLICY, raising=False)
    monkeypatch.delenv(cores.SPINS, raising=False)
    monkeypatch.setattr(cores, "others_running", lambda: others)
    monkeypatch.setattr(cores, "cores_usable", lambda: float(usable))
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    cores.choose_waiting()
    assert cores.waiting() == ("spinning" if spins else "sleeping")
    assert os.environ[cores.POLICY] == "PASSIVE"


def test_the_users_own_word_wins():
    assert ask(OMP_WAIT_POLICY="active") == ["spinning", "active", None]
    assert ask(OMP_WAIT_POLICY="passive") == ["sleeping", "passive", None]
    assert ask(GOMP_SPINCOUNT="0") == ["sleeping", None, "0"]


def test_threads_wanted_reads_what_openmp_reads(monkeypatch):
    for value, wanted in (("3", 3), ("4,2", 4), ("", cores.cores_allowed()), ("many", cores.cores_allowed())):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert cores.threads_wanted() == wanted
