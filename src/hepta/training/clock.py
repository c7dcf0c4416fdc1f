"""Where the time of a run goes: seconds by phase, from marks that cost a few microseconds."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

IN_STEP = ("data", "forward", "backward", "optimizer")  # the rest of a step is "other"
BETWEEN = ("evaluation", "save")


class Clock:
    """Seconds by phase since they were last taken.

    On a GPU work is queued, so the phases of a step are timed by events on its stream, which are read when the step
    has ended; waiting for data, evaluating and saving are the host's time everywhere.

    Attributes:
        watch: called with a phase's name as it ends, while work is still alive in memory; None: nobody watches.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.cuda = torch.device(device).type == "cuda"
        self.watch: Callable[[str], None] | None = None
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block as part of a phase; a profiler that is on shows it under that name."""
        queued = self.cuda and name not in ("data", *BETWEEN)
        began = self._mark() if queued else time.perf_counter()
        with torch.profiler.record_function(name):
            yield
        if queued:
            self._events.append((name, began, self._mark()))
        else:
            self._seconds[name] += time.perf_counter() - began
        if self.watch is not None:
            self.watch(name)

    def waiting(self, stream: Iterator[Any]) -> Iterator[Any]:
        """The items of a stream; the time until each comes is time spent on data."""
        while True:
            began = time.perf_counter()
            with torch.profiler.record_function("data"):
                item = next(stream, None)
            if item is None:  # finding the end is no waiting
                return
            self._seconds["data"] += time.perf_counter() - began
            yield item

    def take(self, seconds: float) -> dict[str, float]:
        """Seconds of each phase since the last call, for a step that took ``seconds`` from its data to its update."""
        for name, began, ended in self._events:
            ended.synchronize()
            self._seconds[name] += began.elapsed_time(ended) / 1000
        found = {name: self._seconds.get(name, 0.0) for name in IN_STEP}
        found["other"] = max(0.0, seconds - sum(found.values()))
        found |= {name: self._seconds[name] for name in BETWEEN if name in self._seconds}
        self._seconds.clear()
        self._events.clear()
        return found

    def _mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
