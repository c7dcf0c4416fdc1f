"""A signal asks for a stop; the loop finishes its step, saves, and only then ends."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from hepta.console import say


@dataclass
class Stop:
    """Whether SIGINT or SIGTERM has come."""

    asked: bool = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Catch SIGINT and SIGTERM inside the block; a second one ends at once. Outside the main thread: nothing."""
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        say(f"{signal.Signals(number).name}: finishing this step, then saving (once more to stop at once)")

    with handled(handle):
        yield stop


@contextmanager
def handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGINT and SIGTERM go to ``handle`` inside the block; outside the main thread, where none arrive: nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
