"""What real runs took, against what was predicted: kept per machine, so that the next prediction is better.

A calibration holds for one processor, thread count and torch, one kind of model of about this width, one precision, one
way to train. Another torch drops it; its age is told wherever it is used. No torch here.
"""

import contextlib
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

from hepta.config import MachineError
from hepta.model.families import family_of
from hepta.model.shape import Shape
from hepta.planning.machine import cache_directory
from hepta.stage import write_json

KEPT = 5  # newest runs whose median counts: one run on a busy machine does not decide
DAY = 86_400.0


@dataclass(frozen=True)
class Case:
    """What a calibration is for."""

    machine: str  # ``machine_key``
    family: str
    width: int  # the power of two at or below the model's
    way: str  # method, precision, compiled or not

    @property
    def key(self) -> str:
        """The name it is kept under."""
        return f"{self.machine} | {self.family}, width {self.width} to {2 * self.width - 1} | {self.way}"


@dataclass(frozen=True)
class Calibration:
    """Measured seconds per predicted second, and where that is from."""

    factor: float
    told: str  # for people: of which runs, how old


def case_of(config: Shape, machine: str, method: str, precision: str, compiled: bool, recompute: str = "none") -> Case:
    """The case of a training run."""
    words = [method, precision, "compiled" if compiled else "eager"]
    if recompute != "none":
        words.append(f"recompute {recompute}")
    name = family_of(config).network.rpartition(":")[2]
    return Case(machine, name, 1 << config.hidden_size.bit_length() - 1, ", ".join(words))


def _read() -> dict[str, dict[str, Any]]:
    try:
        value = json.loads((cache_directory() / "calibration.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # nothing known is only a worse prediction
    return value if isinstance(value, dict) else {}


def recall(case: Case) -> Calibration | None:
    """What is known of a case, or else of the next width trained the same way; None where nothing holds."""
    known = _read()
    near = [Case(case.machine, case.family, case.width << shift, case.way) for shift in (0, 1, 2)]
    near += [Case(case.machine, case.family, case.width >> shift, case.way) for shift in (1, 2)]
    for other in near:
        if found := known.get(other.key):
            days = max(0, int((time.time() - found["when"]) / DAY))
            age = f"{days} days ago" if days > 1 else "yesterday" if days else "today"
            where = "" if other == case else f" at widths {other.width} to {2 * other.width - 1}"
            runs = "1 run" if len(found["factors"]) == 1 else f"{len(found['factors'])} runs"
            return Calibration(statistics.median(found["factors"]), f"calibrated by {runs} here{where}, last {age}")
    return None


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
