"""``--profile N``: a few steps recorded operator by operator, as a trace and as a table."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from hepta.config import HeptaError
from hepta.console import say
from hepta.stage import disk_errors, write_atomic

WARM = 3  # steps before the first one recorded: kernels chosen, blocks compiled, memory touched
SHOWN = 25  # operators in the table for people


class Profiler:
    """Records ``steps`` steps of this process after ``WARM`` others; with None it does nothing.

    Recording slows steps down and changes no number in them. Of several processes the first one writes its own.
    """

    def __init__(self, run: Path, steps: int | None, writes: bool = True) -> None:
        self.place, self.steps, self.writes = run / "profile", steps, writes
        self._recording: Any = None

    def check(self, left: int) -> None:
        """Refuse to profile a run that ends before the profile would.

        Raises:
            HeptaError: fewer than ``WARM + steps`` steps are ``left``.
        """
        if self.steps is not None and left < WARM + self.steps:
            needs = f"{WARM} steps to warm up and {self.steps} to record"
            raise HeptaError(f"profile {self.steps}: needs {needs}, the run has {left} left; raise its budget")

    @contextmanager
    def around(self, number: int, step: int) -> Iterator[None]:
        """Around the ``number``-th step of this process (from 1), which is the run's ``step``-th."""
        if self.steps is None or not WARM < number <= WARM + self.steps:
            yield
            return
        if number == WARM + 1:
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of itself on stderr otherwise
            self._recording = torch.profiler.profile(activities=kinds, with_flops=True, acc_events=True)
            self._recording.start()
        yield
        if number == WARM + self.steps:
            self._recording.stop()
            if self.writes:
                self._write(step - self.steps + 1, step)

    def _write(self, first: int, last: int) -> None:
        trace, table = self.place / f"steps-{first}-{last}.json.gz", self.place / "operators.txt"
        with disk_errors(self.place):
            self.place.mkdir(exist_ok=True)
            self._recording.export_chrome_trace(str(trace))
        found = operators(self._recording.key_averages())
        text = json.dumps({"first_step": first, "last_step": last, "operators": found}, indent=1)
        write_atomic(self.place / "operators.json", text + "\n")
        write_atomic(table, show_operators(found, last - first + 1))
        self._recording = None
        say(f"profile of steps {first} to {last}: {trace} (open it at https://ui.perfetto.dev), {table}")


def refuse_if_done(config: Any) -> None:
    """A finished run takes no steps, so a wish to profile it is refused.

    Raises:
        HeptaError: ``profile`` is given.
    """
    if config.profile is not None:
        told = "is finished and takes no more steps; raise its budget, or choose another --output"
        raise HeptaError(f"{config.output}: profile {config.profile}: {told}")


def operators(averages: Any) -> list[dict[str, Any]]:
    """Operators by time spent in themselves, largest first: ``name, calls, self_ms, share`` and ``gflops`` per second.

    The time is the device's where it did the work; the rate is given where the operator's FLOPs are known.
    """
    rows = []
    for event in averages:
        microseconds = max(event.self_cpu_time_total, event.self_device_time_total)
        row = {"name": event.key, "calls": event.count, "self_ms": microseconds / 1000}
        if event.flops and microseconds:
            row["gflops"] = event.flops / microseconds / 1000
        rows.append(row)
    whole = sum(row["self_ms"] for row in rows) or 1.0
    return sorted(({**row, "share": row["self_ms"] / whole} for row in rows), key=lambda row: -row["self_ms"])


def show_operators(rows: list[dict[str, Any]], steps: int) -> str:
    """The table for people: milliseconds and calls of one step."""
    lines = [f"{'operator':44}{'ms/step':>10}{'share':>8}{'calls':>8}{'GFLOP/s':>10}"]
    for row in rows[:SHOWN]:
        rate = f"{row['gflops']:,.1f}" if "gflops" in row else ""
        each = f"{row['self_ms'] / steps:10.2f}{row['share']:8.1%}{row['calls'] / steps:8.0f}"
        lines.append(f"{row['name'][:43]:44}{each}{rate:>10}".rstrip())
    return "\n".join(lines) + "\n"
