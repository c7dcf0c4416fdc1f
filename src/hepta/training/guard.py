"""Decides whether a step's gradients may touch the weights, and remembers what is usual."""

import math
import statistics
from dataclasses import dataclass, field

WINDOW = 100  # recent gradient norms remembered
ENOUGH = 20  # norms needed before a spike can be told from the usual
PATIENCE = 10  # skips in a row after which the run goes back to a checkpoint


@dataclass
class Guard:
    """A window of gradient norms; it is saved in every checkpoint, so that a restart judges alike (trap R6)."""

    factor: float
    norms: list[float] = field(default_factory=list)
    skipped: int = 0
    in_a_row: int = 0

    def verdict(self, loss: float, norm: float) -> str | None:
        """Why this step must be skipped, or None; a finite norm joins the window either way.

        A spiking norm joins too: were the usual to change for good, the median follows within half a window.

        Args:
            loss: the step's mean loss in nats.
            norm: gradient norm before clipping.
        """
        reason, usual = None, statistics.median(self.norms) if len(self.norms) >= ENOUGH else math.inf
        if not math.isfinite(loss):
            reason = f"loss is {loss}"
        elif not math.isfinite(norm):
            reason = f"gradient norm is {norm}"
        elif norm > self.factor * usual:
            reason = f"gradient norm {norm:.3g} is over {self.factor:g} times the recent median {usual:.3g}"
        if math.isfinite(norm):
            self.norms = [*self.norms, norm][-WINDOW:]
        self.skipped += reason is not None
        self.in_a_row = self.in_a_row + 1 if reason else 0
        return reason

    @property
    def hopeless(self) -> bool:
        """So many skips in a row that going straight on is a waste."""
        return self.in_a_row >= PATIENCE

    def state(self) -> dict[str, object]:
        """JSON of everything that decides later verdicts."""
        return {"norms": self.norms, "skipped": self.skipped, "in_a_row": self.in_a_row}
