"""What people see while work goes on: lines, warnings and progress, all on stderr."""

import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

WARNINGS: Counter[str] = Counter()  # warning text → how often, for reports


def say(text: str) -> None:
    """Print one line to stderr."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning once; count every repeat in ``WARNINGS``."""
    WARNINGS[text] += 1
    if WARNINGS[text] == 1:
        say(f"warning: {text}")


def duration(seconds: float) -> str:
    """``75 s`` → ``1m15s``; for ETAs and times taken."""
    if seconds < 60:
        return f"{seconds:.0f}s" if seconds >= 10 else f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"


def terminal_width(text: str) -> int:
    """Columns of a terminal: Han characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


class Progress:
    """A live line with rate and ETA on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, label: str, total: float, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0.0
        self.started = self.shown = time.monotonic()
        self.live = sys.stderr.isatty()

    def advance(self, amount: float, note: str = "") -> None:
        """Count ``amount`` more units done and redraw when due."""
        self.done += amount
        now = time.monotonic()
        if now - self.shown >= (0.2 if self.live else 10):
            self.shown = now
            self._draw(note, end="\r" if self.live else "\n")

    def _draw(self, note: str, end: str) -> None:
        taken = time.monotonic() - self.started
        rate = self.done / taken if taken else 0.0
        share = self.done / self.total if self.total else 1.0
        left = (self.total - self.done) / rate if rate else 0.0
        text = f"{self.label}: {share:4.0%}  {self.done:,.4g}/{self.total:,.4g} {self.unit}  {rate:,.3g} {self.unit}/s"
        text += f"  ETA {duration(max(left, 0))}  {note}"
        clear = "\x1b[K" if self.live else ""
        print(text + clear, file=sys.stderr, end=end, flush=True)

    def close(self) -> None:
        """Clear the live line."""
        if self.live:
            print("\r\x1b[K", file=sys.stderr, end="", flush=True)


@contextmanager
def progress(label: str, total: float, unit: str) -> Iterator[Progress]:
    """``with progress("tokens", 10, "MB") as bar: bar.advance(1)``."""
    bar = Progress(label, total, unit)
    try:
        yield bar
    finally:
        bar.close()
