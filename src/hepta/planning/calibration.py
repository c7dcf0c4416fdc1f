"""What real runs took, against what was predicted: kept per machine, so that the next prediction is better.

A calibration holds for one processor, thread count and torch, one kind of model of about this width, one precision, one
way to train, about as many tokens at once. Another torch drops it; its age is told wherever it is used. No torch here.
"""

import contextlib
import json
import statistics
import time
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from hepta.config import MachineError
from hepta.cores import waiting
from hepta.model.families import family_of
from hepta.model.shape import Shape
from hepta.planning.machine import cache_directory
from hepta.stage import write_json

KEPT = 5  # newest runs whose median counts: one run on a busy machine does not decide
DAY = 86_400.0
NEAR = (0, 1, -1, 2, -2)  # doublings of width and micro-batch over which a calibration says something


@dataclass(frozen=True)
class Case:
    """What a calibration is for."""

    machine: str  # ``machine_key``
    family: str
    width: int  # the power of two at or below the model's
    way: str  # method, precision, compiled or not, how threads wait
    tokens: int  # of a micro-batch: the power of two at or below

    @property
    def key(self) -> str:
        """The name it is kept under."""
        width, tokens = (f"{low} to {2 * low - 1}" for low in (self.width, self.tokens))
        return f"{self.machine} | {self.family}, width {width} | {self.way} | {tokens} tokens"


@dataclass(frozen=True)
class Calibration:
    """Measured seconds per predicted second, and where that is from."""

    factor: float
    told: str  # for people: of which runs, how old
    same: bool  # of runs of this width and micro-batch


def case_of(
    config: Shape, machine: str, method: str, precision: str, compiled: bool, recompute: str = "none", *, tokens: int
) -> Case:
    """The case of a training run."""
    words = [method, precision, "compiled" if compiled else "eager", f"threads {waiting()}"]
    if recompute != "none":
        words.append(f"recompute {recompute}")
    name = family_of(config).network.rpartition(":")[2]
    width, at_once = (1 << number.bit_length() - 1 for number in (config.hidden_size, tokens))
    return Case(machine, name, width, ", ".join(words), at_once)


def _read() -> dict[str, dict[str, Any]]:
    try:
        value = json.loads((cache_directory() / "calibration.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # nothing known is only a worse prediction
    return value if isinstance(value, dict) else {}


def recall(case: Case) -> Calibration | None:
    """What is known of a case, or else of the one nearest in width and micro-batch that is trained the same way; None
    where nothing holds."""
    known = _read()
    for width, tokens in sorted(product(NEAR, NEAR), key=lambda shifts: (abs(shifts[0]) + abs(shifts[1]), shifts)):
        other = replace(case, width=_doubled(case.width, width), tokens=_doubled(case.tokens, tokens))
        if found := known.get(other.key):
            days = max(0, int((time.time() - found["when"]) / DAY))
            age = f"{days} days ago" if days > 1 else "yesterday" if days else "today"
            where = f" at widths {other.width} to {2 * other.width - 1}" if width else ""
            where += f" at {other.tokens} to {2 * other.tokens - 1} tokens at once" if tokens else ""
            runs = "1 run" if len(found["factors"]) == 1 else f"{len(found['factors'])} runs"
            told = f"calibrated by {runs} here{where}, last {age}"
            return Calibration(statistics.median(found["factors"]), told, other == case)
    return None


def _doubled(number: int, times: int) -> int:
    return number << times if times >= 0 else number >> -times


def outdated(case: Case) -> list[str]:
    """Versions of torch whose calibrations of this very processor no longer hold."""
    here, _, version = case.machine.rpartition(", torch ")
    machines = {key.partition(" | ")[0] for key in _read()}
    return sorted(v for place, _, v in (m.rpartition(", torch ") for m in machines) if place == here and v != version)


def remember(case: Case, factor: float) -> None:
    """Add what a run took; what other versions of torch took on this processor is dropped."""
    here, _, version = case.machine.rpartition(", torch ")
    known = {}
    for key, value in _read().items():
        place, _, other = key.partition(" | ")[0].rpartition(", torch ")
        if place != here or other == version:
            known[key] = value
    factors = [*known.get(case.key, {}).get("factors", []), round(factor, 4)][-KEPT:]
    known[case.key] = {"factors": factors, "when": int(time.time())}
    with contextlib.suppress(OSError, MachineError):  # an unwritable cache costs the next prediction its calibration
        write_json(cache_directory() / "calibration.json", known)
