"""Tokens to text as they come: whole characters only, and nothing of a stop string."""

import codecs
from collections.abc import Callable, Sequence


class TextStream:
    """Joins the bytes of tokens into text.

    What it emits, joined, is the text up to the first stop string; bytes that are not UTF-8 become
    U+FFFD (traps G3, G4). A character split over tokens waits for its last byte; text that could be the
    beginning of a stop string waits until it is not.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stops: Sequence[str] = ()) -> None:
        self._bytes, self._stops = token_bytes, [stop for stop in stops if stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take one token; give the text that is certain now (often none)."""
        return self._emit(self._decoder.decode(self._bytes(token)), final=False)

    def finish(self) -> str:
        """No more tokens: give what was waiting, unless a stop string was found."""
        return self._emit(self._decoder.decode(b"", final=True), final=True)

    def _emit(self, piece: str, final: bool) -> str:
        if self.stopped:
            return ""
        self._waiting += piece
        found = [at for stop in self._stops if (at := self._waiting.find(stop)) >= 0]
        if found:
            self.stopped = True
            keep = min(found)
        else:
            keep = len(self._waiting) - (0 if final else self._beginning())
        text, self._waiting = self._waiting[:keep], self._waiting[keep:]
        return text

    def _beginning(self) -> int:
        """Length of the longest end of the waiting text that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(self._waiting)), 0, -1):
            if any(stop.startswith(self._waiting[-length:]) for stop in self._stops):
                return length
        return 0
