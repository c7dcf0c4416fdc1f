"""Cores of this machine, and whether threads that wait for work spin or sleep: decided when a command begins.

Between two passes of a step lie microseconds. Waking a thread that sleeps takes longer than that, so on idle cores a
step of a small model loses a quarter of its time, and one of 7B nearly half. Where other work wants the same cores, a
thread that spins keeps it, and its own partner, from running: twice the time. Figures in docs/log.md.

The choice is read by OpenMP when torch loads it, so it stands for as long as the process does. No torch here.
"""

import os
import time
from pathlib import Path

POLICY, SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
TURNS = "20000"  # some 0.2 ms: nearly every wait within a step, and far from a whole turn of the scheduler
LOOKS, PAUSE = 20, 0.002  # seconds between looks at who is running


def choose_waiting() -> None:
    """Set the environment that OpenMP will read, unless the user, or the command that began this one, has set it."""
    if POLICY in os.environ or SPINS in os.environ:
        return
    os.environ[POLICY] = "PASSIVE"
    others = others_running()
    if others is not None and others + threads_wanted() <= cores_usable() + 0.5:
        os.environ[SPINS] = TURNS


def waiting() -> str:
    """How the threads of this process wait, for reports: ``spinning``, ``sleeping``, or what OpenMP does by itself."""
    if SPINS in os.environ:
        return "spinning" if os.environ[SPINS] != "0" else "sleeping"
    return {"passive": "sleeping", "active": "spinning"}.get(os.environ.get(POLICY, "").lower(), "as OpenMP decides")


def others_running() -> float | None:
    """Threads of others that run or want to, on average over a few looks; None where the system does not tell."""
    seen = []
    for _ in range(LOOKS):
        time.sleep(PAUSE)
        try:
            running = Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[0]
            seen.append(int(running) - 1)  # the one that looks
        except (OSError, ValueError, IndexError):
            return None
    return sum(seen) / len(seen)


def threads_wanted() -> int:
    """Threads that torch will use: ``OMP_NUM_THREADS``, else the cores this process may run on."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else cores_allowed()


def cores_allowed() -> int:
    """Cores this process may run on (containers and taskset give fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_usable() -> float:
    """Cores of the machine, or the share of them that a container grants."""
    cores = float(os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        return cores  # no limit ("max") or another system
