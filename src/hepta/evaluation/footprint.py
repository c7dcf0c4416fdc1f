"""Memory and speed of models, each in a process of its own, so that neither's memory or warmth is the other's.

A process loads its model, says how much memory that took, and then measures once for each line it is sent; the models
are asked in turns, so that a machine that slows down slows all of them.
"""

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from hepta.config import MachineError
from hepta.console import progress

PROMPT, FIRST, ANSWER, PREFILL = 16, 4, 48, 512  # tokens: of a prompt, a first answer, an answer, a text to read
ROWS = 32  # texts of a classifier in one pass


@dataclass(frozen=True)
class Rate:
    """Tokens a second: median, lowest and highest of the rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Footprint:
    """What a model takes while it answers.

    Attributes:
        rss_bytes: resident memory of the process after loading and a first short answer.
        model_bytes: how much of it came with the model.
        prefill: reading, tokens a second (one text of 512 tokens, or less where the model reads less).
        decode: writing at one text at a time; None for a model that writes none.
    """

    rss_bytes: int
    model_bytes: int
    prefill: Rate
    decode: Rate | None


class Worker:
    """A process that holds one model and measures it when told."""

    def __init__(self, directory: Path, precision: str, threads: int | None) -> None:
        self.directory = directory
        command = [sys.executable, "-m", "hepta.evaluation.footprint", str(directory), precision, str(threads or 0)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def read(self) -> dict[str, Any]:
        """Its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise MachineError(f"{self.directory}: the process that measured it ended ({self.process.wait()})")
        return json.loads(line)

    def ask(self) -> dict[str, Any]:
        """One measurement."""
        assert self.process.stdin is not None
        self.process.stdin.write("measure\n")
        self.process.stdin.flush()
        return self.read()


def footprints(
    directories: Sequence[Path], precision: str = "bf16", rounds: int = 5, threads: int | None = None
) -> list[Footprint]:
    """Measure models in turns.

    Args:
        directories: resolved model directories of causal models or classifiers.
        precision: of products and unquantised weights, ``bf16`` or ``fp32``.
        rounds: times each is measured.
        threads: of each process; all cores when None.

    Raises:
        MachineError: a process ended, for example because memory did not suffice for all models at once.
    """
    with ExitStack() as stack, progress("measuring speed", rounds * len(directories), "rounds") as bar:
        workers, memory = [], []
        for directory in directories:  # one loads after the other
            workers.append(stack.enter_context(Worker(directory, precision, threads)))
            memory.append(workers[-1].read())
        taken: list[list[dict[str, Any]]] = [[] for _ in workers]
        for number in range(rounds):
            order = range(len(workers)) if number % 2 == 0 else reversed(range(len(workers)))
            for place in order:
                taken[place].append(workers[place].ask())
                bar.advance(1)
    return [
        Footprint(held["rss_bytes"], held["model_bytes"], _rate(rows, "prefill"), _rate(rows, "decode"))  # type: ignore
        for held, rows in zip(memory, taken, strict=True)
    ]


def _rate(rows: list[dict[str, Any]], name: str) -> Rate | None:
    values = [row[name] for row in rows if row[name] is not None]
    return Rate(statistics.median(values), min(values), max(values)) if values else None


def _resident() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def _classifier_rates(directory: Path) -> Any:
    import torch

    from hepta.model.classifier import load_classifier

    model = load_classifier(directory)
    length = min(model.task.sequence_length, model.config.longest or PREFILL)
    ids, lengths = torch.ones((ROWS, length), dtype=torch.long), torch.full((ROWS,), length)

    def measure(tokens: int) -> dict[str, Any]:
        with torch.inference_mode():
            started = time.perf_counter()
            model.eval()(ids, lengths)
            return {"prefill": ids.numel() / (time.perf_counter() - started), "decode": None}

    return measure


def _causal_rates(directory: Path, precision: str) -> Any:
    import torch

    from hepta.evaluation.text import load_pair
    from hepta.generation.engine import Engine

    model, tokenizer, _ = load_pair(str(directory), None, precision, "cpu")
    engine = Engine(model.eval(), tokenizer)
    longest = model.config.longest or PREFILL
    prompt = [10 + i % 50 for i in range(min(PROMPT, longest // 2))]
    text = torch.tensor([[10 + i % 50 for i in range(min(PREFILL, longest))]])

    def seconds(tokens: int) -> float:
        started = time.perf_counter()
        engine.generate([prompt], max_new_tokens=tokens, stop_ids=[])
        return time.perf_counter() - started

    def measure(tokens: int) -> dict[str, Any]:
        answer = min(tokens, longest - len(prompt) - 1) if model.config.longest else tokens
        with torch.inference_mode():
            started = time.perf_counter()
            model(text, head=lambda hidden, weight, bias: hidden)
            prefill = text.numel() / (time.perf_counter() - started)
        return {"prefill": prefill, "decode": answer / max(seconds(answer + 1) - seconds(1), 1e-9)}

    return measure


def main(directory: Path, precision: str, threads: int) -> None:
    """The process: one JSON line after loading, one for each line read."""
    import torch

    from hepta.model.classifier import is_classifier

    # What only libraries take is none of the model's memory.
    importlib.import_module("hepta.generation.engine")
    importlib.import_module("hepta.tokenizer.load")
    if threads:
        torch.set_num_threads(threads)
    for dtype in (torch.float32, torch.bfloat16):
        torch.mm(torch.ones(64, 64, dtype=dtype), torch.ones(64, 64, dtype=dtype))
    before = _resident()
    measure = _classifier_rates(directory) if is_classifier(directory) else _causal_rates(directory, precision)
    measure(FIRST)  # a long answer also keeps a kernel for each length, tens of megabytes that are not the model's
    now = _resident()
    print(json.dumps({"rss_bytes": now, "model_bytes": now - before}), flush=True)
    measure(ANSWER)
    for _ in sys.stdin:
        print(json.dumps(measure(ANSWER)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
