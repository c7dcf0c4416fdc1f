"""What a run leaves to read: metrics.jsonl, samples.jsonl, journal.jsonl and TensorBoard curves."""

import json
import math
import re
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hepta.stage import disk_errors, write_atomic

METRICS, SAMPLES, JOURNAL = "metrics.jsonl", "samples.jsonl", "journal.jsonl"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file that processes append to; a half-written last line is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # only the last line can be cut short, by a kill
        if isinstance(row, dict):
            rows.append(row)
    return rows


def cut_back(run: Path, step: int, evaluated: bool = True, rollbacks: int = 0) -> None:
    """Forget rows after the checkpoint that the run goes on from: they will be written again.

    Args:
        run: the run directory.
        step: the checkpoint's step.
        evaluated: whether the evaluation at that very step stands; the last one comes after its checkpoint.
        rollbacks: how many the checkpoint knows of; the rows of others stand at the step gone back to.
    """

    def stays(row: dict[str, Any]) -> bool:
        redone = not evaluated and row.get("step") == step and ("val_loss" in row or "prompt" in row)
        redone = redone or row.get("number", 0) > rollbacks
        return row.get("step", 0) <= step and not redone

    for name in (METRICS, SAMPLES, JOURNAL):
        path = run / name
        if path.is_file():
            rows = [row for row in read_rows(path) if stays(row)]
            write_atomic(path, "".join(_line(row) for row in rows))


def waste(tokens: int, batches: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What a step reads: ``positions`` of its batches, real ``tokens``, and tokens that are not ``supervised``.

    Args:
        tokens: real ones, as the order counts them.
        batches: of the step; labels of one for each position say what is supervised.
    """
    inputs = [batch[name] for batch in batches for name in ("input_ids", "source_ids") if name in batch]
    read = {"positions": sum(ids.numel() for ids in inputs), "tokens": tokens}
    if all("source_ids" not in batch and batch["labels"].shape == batch["input_ids"].shape for batch in batches):
        read["unsupervised"] = tokens - sum(int((batch["labels"] >= 0).sum()) for batch in batches)
    return read


def shares(read: Mapping[str, int]) -> dict[str, float]:
    """Of ``waste``'s counts, the shares of all positions that are padding, and that teach nothing though real."""
    places = max(read["positions"], 1)
    found = {"padded": 1 - read["tokens"] / places}
    return {**found, "unsupervised": read["unsupervised"] / places} if "unsupervised" in read else found


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far; what rusage says on Linux begins with its parent's."""
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # NaN is no JSON
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value


def _numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a row by name; those of nested values as ``key/key``."""
    for key, value in row.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value


def _line(row: dict[str, Any]) -> str:
    return json.dumps(_finite(row), ensure_ascii=False) + "\n"


class RunLog:
    """Appends rows to a run's files; every row carries its ``step``."""

    def __init__(
        self, run: Path, step: int, evaluated: bool = True, rollbacks: int = 0, tracker: Any | None = None
    ) -> None:
        """Cut the files back to ``step`` (see ``cut_back``) and open them for the rows after it; a ``tracker`` is told
        of their numbers."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self.run, self.tracker = run, tracker
        cut_back(run, step, evaluated, rollbacks)
        with disk_errors(run):
            self._files = {name: (run / name).open("a", encoding="utf-8") for name in (METRICS, SAMPLES, JOURNAL)}
            self._curves = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def _append(self, name: str, row: dict[str, Any]) -> None:
        with disk_errors(self.run / name):
            self._files[name].write(_line(row))
            self._files[name].flush()

    def metrics(self, row: dict[str, Any]) -> None:
        """One train or evaluation row; its numbers become TensorBoard curves too."""
        self._append(METRICS, row)
        kind = "val" if "val_loss" in row else "train"
        numbers = dict(_numbers({key: value for key, value in row.items() if key != "step"}, f"{kind}/"))
        for name, number in numbers.items():
            self._curves.add_scalar(name, number, row["step"])
        if self.tracker is not None:
            self.tracker.log(row["step"], numbers)

    def sample(self, row: dict[str, Any]) -> None:
        """One generated text."""
        self._append(SAMPLES, row)
        self._curves.add_text(f"samples/{row['prompt'][:40]}", row["text"], row["step"])

    def event(self, row: dict[str, Any]) -> None:
        """One line of the journal: starts, skips, ends."""
        self._append(JOURNAL, row)

    def close(self) -> None:
        """Flush and close everything."""
        for file in self._files.values():
            file.close()
        self._curves.close()
