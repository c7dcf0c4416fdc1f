"""``hepta doctor run``: where a run stands and what went wrong in it, from the files it leaves; nothing is computed.

Works on a run that is under way, stopped, killed or finished. What is told apart from the usual is told apart by
medians of the steps before, so that a learning rate that falls or a loss that falls is no finding.
"""

import fcntl
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hepta.config import HeptaError, read_yaml
from hepta.stage import MANIFEST, UNFINISHED, read_json
from hepta.training.checkpoint import STATE, seal_fault
from hepta.training.config import RunDoctorConfig
from hepta.training.metrics import JOURNAL, METRICS, read_rows
from hepta.training.resolve import RECIPE
from hepta.training.sequences import documents_of_step

PAST = 100  # steps that say what is usual
SPIKE = 5.0  # times the usual gradient norm
STALL = 5.0  # times the usual seconds of a step
LEAST_STALL = 0.2  # seconds above the usual below which nobody cares
WAITING = 0.01  # share of a step spent on data above which it is told
GROWTH = 0.05  # of peak memory after the first quarter
MOST = 8  # of a kind that are listed


@dataclass
class Diagnosis:
    """What is known of a run. Seconds, bytes, nats per token."""

    run: str
    verb: str
    status: str  # running, finished, stopped (its last step is saved), killed (it is not), or nothing done
    step: int
    total_steps: int
    seconds_per_step: float | None  # with evaluations and saves
    eta_seconds: float | None
    silent_seconds: float | None  # running: since the last row
    train_loss: list[float]  # mean of the first steps and of the last ones
    trend: str  # of the last half of the steps
    val_loss: list[tuple[int, float]]  # step, loss: the first, the best and the last evaluation
    checkpoints: list[dict[str, Any]]  # step, fault (None where every byte is as it was sealed)
    skips: list[dict[str, Any]]
    rollbacks: list[dict[str, Any]]
    spikes: list[dict[str, Any]]
    stalls: list[dict[str, Any]]
    data_wait: float | None
    phases: dict[str, float]  # share of the time, evaluations and saves among it
    memory: dict[str, Any]  # peak bytes, growth after the first quarter, bytes by class
    layers: dict[str, Any] = field(default_factory=dict)  # the last row of statistics
    by_source: dict[str, dict[str, float]] = field(default_factory=dict)  # loss and share of tokens, of the last steps
    asked: dict[str, Any] = field(default_factory=dict)  # --step: its row, sequences and documents
    findings: list[str] = field(default_factory=list)  # what deserves a look, most urgent first


def diagnose(config: RunDoctorConfig) -> Diagnosis:
    """Look at a run: the library function behind ``hepta doctor run``.

    Raises:
        HeptaError: no training run lies there, or the step asked for was not taken.
    """
    run = config.run
    if not (run / RECIPE).is_file() or not (run / METRICS).is_file():
        raise HeptaError(f"{run}: no training run ({RECIPE} and {METRICS} are missing); give what --output named")
    recipe = read_yaml(run / RECIPE)
    rows, events = read_rows(run / METRICS), read_rows(run / JOURNAL)
    steps = [row for row in rows if "grad_norm" in row]
    total, step = int(recipe["resolved"]["total_steps"]), steps[-1]["step"] if steps else 0
    saved = checkpoints(run)
    status = _status(run, step, [c["step"] for c in saved if c["fault"] is None])
    each = seconds_per_step(steps)
    running = status == "running"
    evaluated = [(row["step"], row["val_loss"]) for row in rows if row.get("val_loss") is not None]
    best = [min(evaluated, key=lambda pair: pair[1])] if evaluated else []
    losses = [row["loss"] for row in steps if row.get("loss") is not None]
    few = max(1, min(20, len(losses) // 4))
    found = Diagnosis(
        run=str(run), verb=str(recipe["verb"]), status=status, step=step, total_steps=total, seconds_per_step=each,
        eta_seconds=each * (total - step) if each and status != "finished" else None,
        silent_seconds=time.time() - (run / METRICS).stat().st_mtime if running else None,
        train_loss=[statistics.fmean(losses[:few]), statistics.fmean(losses[-few:])] if losses else [],
        trend=trend(losses), val_loss=sorted({*evaluated[:1], *best, *evaluated[-1:]}), checkpoints=saved,
        skips=[event for event in events if event.get("event") == "skip"],
        rollbacks=[event for event in events if event.get("event") == "rollback"],
        spikes=spikes(steps), stalls=stalls(steps),
        data_wait=_mean(row.get("data_wait") for row in steps[PAST // 10 :]),
        phases=_shares(steps), memory=_memory(steps),
        layers=next((row["layers"] for row in reversed(rows) if "layers" in row), {}),
        by_source=by_source(steps[-PAST:]),
    )  # fmt: skip
    if config.step is not None:
        found.asked = _asked(run, recipe, config.step, steps, events)
    found.findings = findings(found)
    return found


def _status(run: Path, step: int, sealed: Sequence[int]) -> str:
    with (run / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return "running"
    if (run / MANIFEST).is_file() and not (run / UNFINISHED).is_file():
        return "finished"
    if step == 0:
        return "nothing done"
    return "stopped" if step in sealed else "killed"


def checkpoints(run: Path) -> list[dict[str, Any]]:
    """The run's checkpoints in order, each with what is wrong with its seal (trap R8); torn ones are listed too."""
    found = []
    for directory in sorted((run / "checkpoints").glob("step-*")):
        state = read_json(directory / STATE) if (directory / STATE).is_file() else {}
        fault = seal_fault(directory)
        step = int(directory.name.removeprefix("step-"))
        found.append({"step": step, "fault": fault, "val_loss": state.get("val_loss")})
    return found


def seconds_per_step(steps: Sequence[dict[str, Any]]) -> float | None:
    """Mean seconds of one of the last steps, evaluations and saves included; None before there are two."""
    recent = steps[-2 * PAST :] if len(steps) > 4 else steps[1:]
    times = [sum(row["phases"].values()) for row in recent if isinstance(row.get("phases"), dict)]
    if not times and len(steps) > 1:  # a run of an older version
        times = [(steps[-1]["seconds"] - steps[0]["seconds"]) / (len(steps) - 1)]
    return statistics.fmean(times) if times else None


def trend(losses: Sequence[float]) -> str:
    """``falling``, ``flat`` or ``rising``: the last quarter of the losses beside the one before, and their noise."""
    quarter = len(losses) // 4
    if quarter < 5:
        return "too early to tell"
    before, last = losses[-2 * quarter : -quarter], losses[-quarter:]
    change = statistics.fmean(last) - statistics.fmean(before)
    noise = 2 * (statistics.variance(last) / quarter + statistics.variance(before) / quarter) ** 0.5
    word = "flat" if abs(change) <= noise else "falling" if change < 0 else "rising"
    return f"{word} ({change:+.4f} from one quarter of the steps to the next, noise ± {noise:.4f})"


def spikes(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps whose gradient norm was ``SPIKE`` times the median of the steps before, largest first."""
    found, past = [], []
    for row in steps:
        norm = row.get("grad_norm")
        if norm is None:  # not finite: it was skipped, which the journal tells
            continue
        usual = statistics.median(past[-PAST:]) if len(past) >= 20 else None
        if usual and norm > SPIKE * usual:
            found.append({"step": row["step"], "grad_norm": norm, "times": norm / usual, "loss": row.get("loss")})
        past.append(norm)
    return sorted(found, key=lambda spike: -spike["times"])


def stalls(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps that took ``STALL`` times the median, longest first, with the phase that took most of it."""
    taken = [
        (row["step"], sum(inside.values()), inside)
        for row in steps[3:]  # the first ones choose kernels and compile
        if isinstance(row.get("phases"), dict)
        for inside in [{k: v for k, v in row["phases"].items() if k not in ("evaluation", "save")}]
    ]
    if not taken:
        return []
    usual = statistics.median(seconds for _, seconds, _ in taken)
    found = [
        {"step": step, "seconds": seconds, "times": seconds / usual, "phase": max(inside, key=lambda k: inside[k])}
        for step, seconds, inside in taken
        if seconds > max(STALL * usual, usual + LEAST_STALL)
    ]
    return sorted(found, key=lambda stall: -stall["seconds"])


def by_source(steps: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Training ``loss`` and ``share`` of the tokens of each source over some steps, the largest first; {} where one."""
    nats: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for row in steps:
        for name, loss in (row.get("loss_by_source") or {}).items():
            if loss is not None:  # not finite: the step was skipped
                met = row["tokens_by_source"][name]
                nats[name] += loss * met
                tokens[name] += met
    whole = tokens.total()
    return {name: {"loss": nats[name] / met, "share": met / whole} for name, met in tokens.most_common()}


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _shares(steps: Sequence[dict[str, Any]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for row in steps:
        for name, value in (row.get("phases") or {}).items():
            total[name] = total.get(name, 0.0) + value
    whole = sum(total.values()) or 1.0
    return {name: value / whole for name, value in sorted(total.items(), key=lambda part: -part[1])}


def _memory(steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not steps:
        return {}
    early, peak = steps[len(steps) // 4]["memory_bytes"], steps[-1]["memory_bytes"]
    classes = next((row["memory"] for row in reversed(steps) if row.get("memory")), {})
    return {"peak": peak, "growth": peak - early, "classes": classes}


def _asked(run: Path, recipe: dict[str, Any], step: int, steps: Sequence[Any], events: Any) -> dict[str, Any]:
    row = next((row for row in steps if row["step"] == step), None)
    if row is None:
        raise HeptaError(f"{run}: step {step} was not taken; it has steps 1 to {steps[-1]['step'] if steps else 0}")
    first, end, documents = documents_of_step(run, recipe, step)
    told = [event for event in events if event.get("step") == step and event.get("event") == "skip"]
    return {"row": row, "sequences": [first, end], "documents": documents, "events": told}


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def findings(d: Diagnosis) -> list[str]:
    """What deserves a look, in sentences that say what to do."""
    found: list[str] = []
    torn = [c for c in d.checkpoints if c["fault"]]
    if d.status == "killed":
        valid = [c["step"] for c in d.checkpoints if not c["fault"]]
        back = f"step {valid[-1]}" if valid else "its beginning"
        found.append(f"it ended without saving: the same command goes on from {back}, {d.step} steps were taken")
    found += [f"checkpoint of step {c['step']} is damaged ({c['fault']}): the one before it is used" for c in torn]
    if d.silent_seconds and d.seconds_per_step and d.silent_seconds > max(60.0, 20 * d.seconds_per_step):
        found.append(f"no step for {d.silent_seconds:.0f} s: it evaluates, saves, or hangs")
    if d.rollbacks:
        found.append(f"it went back {_times(len(d.rollbacks))}; the sequences left out are in {JOURNAL}")
    if d.skips:
        found.append(f"skipped {_times(len(d.skips))}: {JOURNAL} names the documents of those steps")
    if d.spikes:
        found.append(f"gradient norm above {SPIKE:g} times the usual {_times(len(d.spikes))}: a lower lr or clip_norm")
    if d.stalls:
        found.append(
            f"a step took {STALL:g} times the usual and more {_times(len(d.stalls))}: something else ran beside it"
        )
    if d.data_wait is not None and d.data_wait > WAITING:
        found.append(f"{d.data_wait:.1%} of a step waits for data: workers=1 prepares batches beside it")
    if d.memory and d.memory["growth"] > GROWTH * d.memory["peak"]:
        found.append(f"memory grew by {d.memory['growth'] / 1e6:,.0f} MB after the first quarter of the steps")
    if d.trend.startswith("rising"):
        found.append("the training loss rises: a lower lr, or look at the data of the last steps")
    last = d.val_loss[-1][1] if d.val_loss else None
    if last is not None and last > min(loss for _, loss in d.val_loss) * 1.01:
        found.append("held-out loss was lower before: it learns by heart; end earlier or give more data")
    return found
