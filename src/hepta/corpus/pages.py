"""The main text of an HTML page, under a time limit."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hepta.corpus.streams import DamagedFile


class _TooSlow(BaseException):
    """Not an Exception, so that no handler inside the extractor swallows it."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise ``_TooSlow`` in the main thread after ``seconds``; elsewhere the size cap alone protects."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise _TooSlow

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def page_text(data: bytes, seconds: float) -> str:
    """Main text of a page: headings and paragraphs, without navigation, scripts and comments.

    Raises:
        DamagedFile: too slow, not HTML, or no text in it.
    """
    import trafilatura

    try:
        with _time_limit(seconds):
            text = trafilatura.extract(data, include_comments=False, include_tables=True, favor_recall=True)
    except _TooSlow:
        raise DamagedFile(f"HTML extraction took longer than {seconds:g} s") from None
    except (RecursionError, MemoryError, ValueError, AttributeError, TypeError) as error:
        raise DamagedFile(f"HTML extraction failed: {type(error).__name__}: {error}") from None
    if not text:
        raise DamagedFile("no text found in this HTML page")
    return text
