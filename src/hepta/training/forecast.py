"""What a run will take, said before its first step; what it took, said after twenty and kept for the next run."""

import statistics
import time
from itertools import pairwise

import psutil
import torch

from hepta.console import duration, say
from hepta.planning.calibration import case_of, outdated, recall, remember
from hepta.planning.machine import machine_key
from hepta.planning.memory import Setting
from hepta.planning.peak import step_bytes
from hepta.planning.speed import Speed, machine_speed, step_seconds
from hepta.training.config import LoopConfig
from hepta.training.job import Job
from hepta.training.metrics import RunLog, peak_memory_bytes
from hepta.training.recompute import product_bytes
from hepta.training.resolve import Resolved

STEPS = 20  # after which prediction and measurement are compared
VERBS = ("pretrain", "sft")  # whose sequences all have one length, so that a step's work is known


def setting_of(config: LoopConfig, resolved: Resolved) -> Setting:
    """One micro-batch of a run, as plans count it."""
    return Setting(
        config.sequence_length, resolved.micro_batch, getattr(config, "rank", 16), resolved.recompute == "block",
        precision=resolved.precision, cpu=True, optimizer=config.optimizer,
        update_in_backward=getattr(config, "update_in_backward", False),
    )  # fmt: skip


class Forecast:
    """A run's expected step time and memory; made before evaluations have touched memory."""

    def __init__(self, config: LoopConfig, job: Job, resolved: Resolved, restored: int) -> None:
        """``restored``: bytes of optimizer state that a checkpoint has put back already."""
        self.config, self.resolved, self.shape = config, resolved, job.model.config
        self.possible = job.verb in VERBS and resolved.device == "cpu" and resolved.processes == 1
        self.method = getattr(config, "method", "full")
        wide = (p for p in job.model.parameters() if not p.requires_grad and p.dtype == torch.float32)
        self.frozen = sum(2.0 * p.numel() for p in wide) if resolved.compute_dtype else 0.0  # bytes of their copies
        self.began = psutil.Process().memory_info().rss - restored
        self.seconds: list[float] = []  # cumulative, after each step
        self.raw = self.expected = 0.0  # seconds of a step before and after calibration
        self.memory = 0.0  # expected peak
        if self.possible:
            machine = machine_key(resolved.threads)
            way = (self.method, resolved.precision, resolved.compile, resolved.recompute)
            self.case = case_of(self.shape, machine, *way)
            self.speed = machine_speed(machine, resolved.precision) or Speed(resolved.peak_gflops, None, None)

    def tell(self, log: RunLog, step: int, total: int, tokens: float, measured: float | None) -> None:
        """Say and log what is expected.

        Args:
            log: where it is written.
            step: steps done.
            total: steps of the whole run.
            tokens: real tokens of a step.
            measured: seconds of a step where a few were tried already (``minutes``).
        """
        if not self.possible or step >= total:
            return
        setting, several = setting_of(self.config, self.resolved), self.resolved.micro_batch
        parts = self.config.sequences_per_step / several
        self.raw = step_seconds(self.shape, self.method, setting, parts, self.speed)
        known, source = recall(self.case), "not calibrated: the first run of this kind here"
        if known is None and (versions := outdated(self.case)):
            source = f"not calibrated: runs under torch {', '.join(versions)} no longer count"
        self.expected = self.raw * (known.factor if known else 1.0)
        source = known.told if known else source
        if measured is not None:
            self.expected, source = measured, "measured in a few steps"
        kept = product_bytes(self.shape, setting) if self.resolved.recompute == "selective" else None
        more = step_bytes(self.shape, self.method, setting, parts > 1, self.resolved.compile, kept)
        self.memory = self.began + self.frozen + more
        told = f"expected: {self.expected:.3g} s a step, {tokens / self.expected:,.0f} tokens/s"
        say(f"{told}, {self.memory / 1e9:.2f} GB of memory; {_ending(total - step, self.expected)} ({source})")
        log.event({
            "step": step, "event": "forecast", "step_seconds": self.expected,
            "tokens_per_second": tokens / self.expected, "memory_bytes": self.memory, "source": source,
        })  # fmt: skip

    def check(self, log: RunLog, step: int, total: int, seconds: float) -> None:
        """After ``STEPS`` steps: say what they took, how wrong that was, and keep it for the next run.

        Args:
            log: where it is written.
            step: steps done.
            total: steps of the whole run.
            seconds: spent in steps so far.
        """
        if not self.expected or len(self.seconds) >= STEPS:
            return
        self.seconds.append(seconds)
        if len(self.seconds) < STEPS:
            return
        took = statistics.median(after - before for before, after in pairwise(self.seconds))
        remember(self.case, took / self.raw)
        peak = peak_memory_bytes()
        errors = {"step_seconds": took / self.expected - 1, "memory_bytes": peak / self.memory - 1}
        told = f"after {STEPS} steps: {took:.3g} s a step, {_difference(errors['step_seconds'])}"
        told += f"; {peak / 1e9:.2f} GB of memory, {_difference(errors['memory_bytes'])}"
        say(f"{told}; {_ending(total - step, took)}")
        measured = {"step_seconds": took, "memory_bytes": peak, "error": errors}
        log.event({"step": step, "event": "measured", **measured})


def _difference(error: float) -> str:
    """``0.043`` → ``4 % more than expected``."""
    if round(100 * abs(error)) == 0:
        return "as expected"
    return f"{100 * abs(error):.0f} % {'more' if error > 0 else 'less'} than expected"


def _ending(steps: int, seconds: float) -> str:
    """How long that many steps take, and when they end."""
    left = steps * seconds
    clock = time.strftime("%H:%M" if left < 12 * 3600 else "%Y-%m-%d %H:%M", time.localtime(time.time() + left))
    return f"{steps:,} steps in {duration(left)}, until {clock}"
