"""What a training verb gives back, and keeps in the run's manifest as facts."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hepta.config import StageConfig
from hepta.console import duration, say
from hepta.stage import Stage, digest_json
from hepta.training.job import Job, Outcome, State
from hepta.training.metrics import METRICS, peak_memory_bytes, read_rows
from hepta.training.profiling import refuse_if_done
from hepta.training.world import world


@dataclass(frozen=True)
class TrainingResult:
    """A finished training run."""

    output: str
    model: str  # the model (or adapter) directory
    parameters: int
    trained_parameters: int
    steps: int
    tokens: int  # real tokens read
    tokens_per_second: float
    mfu: float  # of the measured peak of matrix products
    seconds: float
    final: dict[str, Any]  # train_loss, val_loss, val_bpb per language, val_accuracy, p_stop
    before: dict[str, Any]  # the same before the first step
    uniform_loss: float  # ln V: the loss of guessing evenly
    weights_sha256: str
    peak_memory_bytes: int
    skipped_steps: int
    precision: str
    compiled: bool
    lr: float
    data_report: dict[str, Any]
    p_stop: dict[str, float | None]  # sft: mean probability of the stop token where answers end, train and held_out
    prompt_language: dict[str, dict[str, int]]  # sft: asked and answered in the prompt's language, per language
    translation: dict[str, Any] = field(default_factory=dict)  # translate: scores, baselines, samples
    teacher: dict[str, Any] = field(default_factory=dict)  # distill: its parameters and held-out scores
    phases: dict[str, float] = field(default_factory=dict)  # seconds by phase, evaluations and saves among them
    memory: dict[str, int] = field(default_factory=dict)  # bytes by class, see ``MemoryMeter``
    padded: float | None = None  # share of all positions read that were padding

    def __str__(self) -> str:
        rows = {"model": self.model, "parameters": f"{self.parameters:,}"}
        if self.trained_parameters != self.parameters:
            rows["parameters"] += f", {self.trained_parameters:,} trained"
        speed = f"{self.tokens_per_second:,.0f} tokens/s, MFU {self.mfu:.0%}"
        rows["trained"] = f"{self.steps:,} steps, {self.tokens:,} tokens in {duration(self.seconds)}: {speed}"
        if not self.steps:  # n-grams
            del rows["trained"]
            rows["counted"] = f"{self.tokens:,} tokens in {duration(self.seconds)}"
        held_out = _validation(self.before, self.final)
        rows["loss"] = f"{self.final['train_loss']:.4f} train{held_out} (even guessing {self.uniform_loss:.4f})"
        bpb = {lang: value for lang, value in (self.final.get("val_bpb") or {}).items() if value is not None}
        if bpb:
            rows["bits per byte"] = "  ".join(f"{lang} {value:.3f}" for lang, value in bpb.items())
            rows["accuracy"] = f"{self.final['val_accuracy']:.1%} of next tokens"
        stops = [f"{value:.3f} {kind.replace('_', ' ')}" for kind, value in self.p_stop.items() if value is not None]
        if stops:
            rows["P(stop)"] = f"{', '.join(stops)}, where answers end"
        for lang, count in self.prompt_language.items():
            rows[f"answers in {lang}"] = f"{count['right']} of {count['asked']} held-out prompts, in their language"
        if self.teacher:
            held_out = f", loss {self.teacher['val_loss']:.4f} held out" if "val_loss" in self.teacher else ""
            rows["teacher"] = f"{self.teacher['parameters']:,} parameters{held_out}"
        rows |= _translation(self.translation)
        rows |= describe_usage(self.phases, self.memory)
        rows["peak memory"] = f"{self.peak_memory_bytes / 2**30:.2f} GiB"
        rows["weights sha256"] = self.weights_sha256
        return "\n".join(f"{name:15} {value}" for name, value in rows.items())


def _validation(before: dict[str, Any], final: dict[str, Any]) -> str:
    if final.get("val_loss") is None:
        return ""
    start = f"{before['val_loss']:.4f} → " if before.get("val_loss") is not None else ""
    return f", {start}{final['val_loss']:.4f} held out"


def _translation(found: dict[str, Any]) -> dict[str, str]:
    """BLEU and chrF on the test pairs, and the baselines' beside them."""
    told = {}
    for name in ("bleu", "chrf") if found else ():
        low, high = found["interval"][name]
        others = ", ".join(f"{kind} {scores[name]:.1f}" for kind, scores in found["baselines"].items())
        told[f"test {name}"] = f"{found[name]:.1f} (95 % {low:.1f} to {high:.1f}); {others}"
    if found and found["baselines"]["memory"]["bleu"] > found["bleu"]:
        told["note"] = "the most similar training pair translates better than this model; it needs more pairs or steps"
    return told


def describe_usage(phases: dict[str, float], memory: dict[str, int]) -> dict[str, str]:
    """Shares of time by phase and memory by class, largest first; nothing of what was not measured."""
    told, whole = {}, sum(phases.values())
    if whole:
        parts = sorted(phases.items(), key=lambda part: -part[1])
        told["time"] = ", ".join(f"{name} {value / whole:.1%}" for name, value in parts if value / whole >= 0.0005)
    if memory:
        parts = sorted(memory.items(), key=lambda part: -part[1])
        told["memory"] = ", ".join(f"{name} {value / 1e6:,.0f} MB" for name, value in parts)
    return told


def _evaluation(row: dict[str, Any]) -> dict[str, Any]:
    kept = ("val_loss", "val_bpb", "val_accuracy", "val_loss_by_source", "p_stop")
    return {key: row[key] for key in kept if key in row}


def result_of(
    stage: Stage,
    job: Job,
    outcome: Outcome,
    data_report: dict[str, Any],
    p_stop: dict[str, float | None] | None = None,
    prompt_language: dict[str, dict[str, int]] | None = None,
    translation: dict[str, Any] | None = None,
    teacher: dict[str, Any] | None = None,
) -> TrainingResult:
    """What a run leaves, before it is sealed."""
    state, model = outcome.state, job.model
    rates = [row for row in read_rows(stage.output / METRICS) if "mfu" in row][3:] or [{"mfu": 0.0}]
    return TrainingResult(
        output=str(stage.output), model=str(stage.output / "model"),
        parameters=model.config.num_parameters,
        trained_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        steps=state.step, tokens=state.tokens, tokens_per_second=state.tokens / max(state.seconds, 1e-9),
        mfu=sum(row["mfu"] for row in rates) / len(rates), seconds=state.seconds,
        final={"train_loss": outcome.train_loss, **_evaluation(outcome.final)}, before=_evaluation(outcome.before),
        uniform_loss=math.log(model.config.vocab_size), weights_sha256=outcome.weights_sha256,
        peak_memory_bytes=peak_memory_bytes(), skipped_steps=state.guard.skipped, precision=outcome.resolved.precision,
        compiled=outcome.resolved.compile, lr=outcome.resolved.lr, data_report=data_report,
        p_stop=p_stop or {}, prompt_language=prompt_language or {}, translation=translation or {},
        teacher=teacher or {}, **usage(state),
    )  # fmt: skip


def usage(state: State) -> dict[str, Any]:
    """Where a run's time, memory and positions went."""
    padded = 1 - state.tokens / state.positions if state.positions else None
    return {"phases": dict(state.phases), "memory": dict(state.memory), "padded": padded}


def finish(stage: Stage, job: Job, outcome: Outcome, data_report: dict[str, Any], **more: Any) -> TrainingResult:
    """Seal the run with its facts and give them back; ``more`` as in ``result_of``."""
    result = result_of(stage, job, outcome, data_report, **more)
    facts = {key: value for key, value in asdict(result).items() if key not in ("output", "model")}
    if world().main:
        stage.finish(digest_json([result.weights_sha256, job.tokenizer.sha256]), facts)
    return result


def already_done(stage: Stage, config: StageConfig) -> TrainingResult:
    """The result of a run finished earlier."""
    assert stage.manifest is not None
    refuse_if_done(config)
    say(f"{config.output}: already done")
    return TrainingResult(
        output=str(config.output), model=str(Path(config.output) / "model"), **stage.manifest["facts"]
    )
