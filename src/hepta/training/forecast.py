"""What a run will take, said before its first step; what it took, said soon after and kept for the next run."""

import statistics
import time
from itertools import pairwise

import torch

from hepta.console import duration, say
from hepta.objectives.causal import head_rows
from hepta.planning.calibration import case_of, outdated, recall, remember
from hepta.planning.machine import give_back, machine_key
from hepta.planning.memory import Setting
from hepta.planning.peak import step_bytes
from hepta.planning.speed import Speed, machine_speed, step_seconds
from hepta.training.config import LoopConfig
from hepta.training.job import Job
from hepta.training.metrics import JOURNAL, RunLog, peak_memory_bytes, read_rows
from hepta.training.recompute import product_bytes
from hepta.training.resolve import Resolved
from hepta.training.step import micro_batches
from hepta.training.usage import resident_bytes

STEPS = 20  # after which prediction and measurement are compared
WORTH_TRYING = 150  # steps of a run of which the first ones are tried beforehand, where nothing like it ran here
FEW, LONG = 3, 60.0  # steps that are compared already, where they took so many seconds
VERBS = ("pretrain", "sft")  # whose sequences all have one length, and nothing but the model takes part in a step
OTHERS = {  # verbs of which nothing is predicted
    "tune": "texts are as long as they are, so no step is like another",
    "distill": "the teacher's part in a step was never learnt",
    "prune": "what is left of a layer is not what a shape's layers are",
}


def setting_of(config: LoopConfig, resolved: Resolved) -> Setting:
    """One micro-batch of a run, as plans count it."""
    return Setting(
        config.sequence_length, resolved.micro_batch, getattr(config, "rank", 16), resolved.recompute == "block",
        precision=resolved.precision, cpu=True, optimizer=config.optimizer,
        update_in_backward=getattr(config, "update_in_backward", False),
    )  # fmt: skip


def unpredictable(verb: str, resolved: Resolved) -> str | None:
    """Why nothing is predicted of such a run; None: something is."""
    if resolved.device != "cpu":
        return f"what a step takes on {resolved.device} was never learnt"
    if resolved.processes > 1:
        return "several processes wait for one another and gather weights from one another"
    if verb not in VERBS:
        return OTHERS[verb]
    return None


class Forecast:
    """A run's expected step time and memory, and what became of them."""

    def __init__(self, config: LoopConfig, job: Job, resolved: Resolved, restored: int) -> None:
        """``restored``: bytes of optimizer state that a checkpoint has put back already."""
        self.config, self.resolved, self.shape, self.job = config, resolved, job.model.config, job
        self.why_not = unpredictable(job.verb, resolved)
        self.method = getattr(config, "method", "full")
        wide = (p for p in job.model.parameters() if not p.requires_grad and p.dtype == torch.float32)
        self.frozen = sum(2.0 * p.numel() for p in wide) if resolved.compute_dtype else 0.0  # bytes of their copies
        self.restored = restored
        self.seconds: list[float] = []  # cumulative, after each step
        self.compared = False
        self.raw = self.expected = 0.0  # seconds of a step before and after calibration
        self.memory = 0.0  # expected peak
        if self.why_not is None:
            machine = machine_key(resolved.threads)
            way = (self.method, resolved.precision, resolved.compile, resolved.recompute)
            parts, self.setting = config.sequences_per_step / resolved.micro_batch, setting_of(config, resolved)
            self.case = case_of(self.shape, machine, *way, tokens=self.setting.tokens)
            speed = machine_speed(machine, resolved.precision) or Speed(resolved.peak_gflops, None, None)
            self.raw = step_seconds(self.shape, self.method, self.setting, parts, speed)

    def unsure(self, steps: int) -> bool:
        """Whether a few of the run's steps should be tried before anything is said: nothing quite like it ran here, and
        they are a small part of it."""
        if self.why_not is not None or steps < WORTH_TRYING:
            return False
        known = recall(self.case)
        unsure = known is None or not known.same
        if unsure and self.raw > 1.0:
            say("trying a few steps: nothing quite like this ran here before")
        return unsure

    def tell(self, log: RunLog, step: int, total: int, tokens: float, measured: float | None) -> None:
        """Say and log what is expected; after the first evaluation, whose memory a step can use again.

        Args:
            log: where it is written.
            step: steps done.
            total: steps of the whole run.
            tokens: real tokens of a step.
            measured: seconds of a step where a few were tried already.
        """
        if step >= total:
            return
        if self.why_not is not None:
            say(f"no forecast: {self.why_not}")
            return
        known, source = recall(self.case), "not calibrated: the first run of this kind here"
        if known is None and (versions := outdated(self.case)):
            source = f"not calibrated: runs under torch {', '.join(versions)} no longer count"
        self.expected = self.raw * (known.factor if known else 1.0)
        source = known.told if known else source
        if measured is not None:
            self.expected, source = measured, "measured in a few steps"
        kept = product_bytes(self.shape, self.setting) if self.resolved.recompute == "selective" else None
        rows, compiled = self._head_rows(step), self.resolved.compile
        several = self.config.sequences_per_step > self.resolved.micro_batch
        more = step_bytes(self.shape, self.method, self.setting, several, compiled, kept, rows)
        held = self._held(log)
        self.memory = max(held + self.frozen + more, peak_memory_bytes())
        told = f"expected: {self.expected:.3g} s a step, {tokens / self.expected:,.0f} tokens/s"
        say(f"{told}, {self.memory / 1e9:.2f} GB of memory; {_ending(total - step, self.expected)} ({source})")
        log.event({
            "step": step, "event": "forecast", "step_seconds": self.expected,
            "tokens_per_second": tokens / self.expected, "memory_bytes": self.memory, "held_bytes": held,
            "source": source,
        })  # fmt: skip

    def _held(self, log: RunLog) -> float:
        """Bytes without optimizer state; a run that goes on has not loaded yet what evaluations need, but once had."""
        give_back()
        earlier = [row.get("held_bytes", 0) for row in read_rows(log.run / JOURNAL) if row["event"] == "forecast"]
        return max(resident_bytes() - self.restored, *earlier, 0)

    def _head_rows(self, step: int) -> int:
        """Positions that meet the head in the fullest micro-batch of the next step."""
        per_step, micro = self.config.sequences_per_step, self.resolved.micro_batch
        return max(head_rows(batch["labels"]) for batch in micro_batches(self.job.train, step, per_step, micro))

    def check(self, log: RunLog, step: int, total: int, seconds: float) -> None:
        """After ``STEPS`` steps, or fewer long ones: say what they took, how wrong that was, keep it for the next run.

        Args:
            log: where it is written.
            step: steps done.
            total: steps of the whole run.
            seconds: spent in steps so far.
        """
        if not self.expected or self.compared:
            return
        self.seconds.append(seconds)
        count = len(self.seconds)
        self.compared = count == STEPS or (count >= FEW and self.seconds[-1] - self.seconds[0] >= LONG)
        if not self.compared:
            return
        took = statistics.median(after - before for before, after in pairwise(self.seconds))
        remember(self.case, took / self.raw)
        peak = peak_memory_bytes()
        errors = {"step_seconds": took / self.expected - 1, "memory_bytes": peak / self.memory - 1}
        told = f"after {count} steps: {took:.3g} s a step, {_difference(errors['step_seconds'])}"
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
