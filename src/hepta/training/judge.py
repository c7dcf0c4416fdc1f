"""What a tuned classifier is worth: test scores before and after, beside simple baselines, and its worst errors."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hepta.config import StageConfig
from hepta.console import duration, say
from hepta.data.tables import Labelled
from hepta.evaluation.baselines import Baseline, Part, classification_baselines, regression_baselines
from hepta.evaluation.classification import (
    ClassScores,
    NumberScores,
    mcnemar,
    score_classes,
    score_numbers,
    show_class_scores,
)  # fmt: skip
from hepta.evaluation.predict import probabilities
from hepta.model.classifier import Task
from hepta.stage import Stage, digest_json, write_atomic
from hepta.training.config import TuneConfig
from hepta.training.job import Job, Outcome
from hepta.training.metrics import METRICS, peak_memory_bytes, read_rows
from hepta.training.profiling import refuse_if_done
from hepta.training.result import describe_usage, usage
from hepta.training.splits import Splits

PREDICTIONS = "predictions.jsonl"
MOST_ERRORS = 20
SHOWN_CLASSES = 30  # in the table printed at the end; the report shows all


@dataclass(frozen=True)
class Judged:
    """Predictions on the test split and their scores; ``rows`` is what ``predictions.jsonl`` holds."""

    scores: ClassScores | NumberScores
    predicted: np.ndarray
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class TuneResult:
    """A finished tuning run."""

    output: str
    model: str  # the model (or adapter) directory
    task: str
    labels: list[str]
    parameters: int
    trained_parameters: int
    steps: int
    tokens: int
    tokens_per_second: float
    rows_per_second: float
    mfu: float
    seconds: float
    final: dict[str, Any]  # train_loss, and the validation split's scores
    before: dict[str, Any]  # the latter before the first step
    uniform_loss: float  # of guessing evenly: ln C; for numbers 1, the variance of standardised targets
    weights_sha256: str
    peak_memory_bytes: int
    skipped_steps: int
    precision: str
    compiled: bool
    lr: float
    data_report: dict[str, Any]
    test: dict[str, Any]  # scores on the test split
    test_before: dict[str, Any]  # the same before training
    baselines: list[dict[str, Any]]  # name, about, scores, better, p_value
    verdict: str  # the model beside the best baseline, in words
    worst: list[dict[str, Any]]
    phases: dict[str, float] = field(default_factory=dict)  # seconds by phase
    memory: dict[str, int] = field(default_factory=dict)  # bytes by class
    padded: float | None = None  # share of all positions read that were padding

    def __str__(self) -> str:
        rows = {"model": self.model, "parameters": f"{self.parameters:,}"}
        if self.trained_parameters != self.parameters:
            rows["parameters"] += f", {self.trained_parameters:,} trained"
        speed = f"{self.rows_per_second:,.0f} rows/s, {self.tokens_per_second:,.0f} tokens/s"
        rows["trained"] = f"{self.steps:,} steps in {duration(self.seconds)}: {speed}"
        rows["loss"] = f"{self.final['train_loss']:.4f} train, {self.final['val_loss']:.4f} held out"
        rows["rows"] = ", ".join(f"{count:,} {name}" for name, count in self.data_report["splits"].items())
        rows |= describe_usage(self.phases, self.memory)
        lines = [f"{name:12}{value}" for name, value in rows.items()]
        if self.task == "classify":
            lines += ["", *show_class_scores({**self.test, "classes": self._shown_classes()})]
        lines += ["", *self._comparison(), "", self.verdict]
        return "\n".join(lines)

    def _shown_classes(self) -> list[dict[str, Any]]:
        return sorted(self.test["classes"], key=lambda c: -c["support"])[:SHOWN_CLASSES]

    def _comparison(self) -> list[str]:
        named = [("this model", self.test), ("  before training", self.test_before)]
        named += [(baseline["name"], baseline["scores"]) for baseline in self.baselines]
        width = max(len(name) for name, _ in named)
        if self.task == "classify":
            head = f"{'':{width}}  accuracy  95 % interval   macro F1    MCC"
            return [head, *(f"{name:{width}}  {_class_line(scores)}" for name, scores in named)]
        head = f"{'':{width}}      RMSE  95 % interval            MAE      R²  Spearman"
        return [head, *(f"{name:{width}}  {_number_line(scores)}" for name, scores in named)]


def _class_line(scores: dict[str, Any]) -> str:
    low, high = scores["accuracy_interval"]
    macro = scores["f1"]["macro"]
    return f"{scores['accuracy']:8.1%}  {low:6.1%}–{high:6.1%}  {macro:8.3f}  {scores['mcc']:6.3f}"


def _number_line(scores: dict[str, Any]) -> str:
    low, high = scores["rmse_interval"]
    rank = "–" if scores["spearman"] is None else f"{scores['spearman']:.3f}"
    return f"{scores['rmse']:8.4g}  {low:8.4g}–{high:8.4g}  {scores['mae']:8.4g}  {scores['r2']:6.3f}  {rank:>8}"


def judge(task: Task, test: Sequence[Labelled], logits: np.ndarray) -> Judged:
    """Score a model's logits (N, C) on the test split."""
    where = [{"row": e.name, "text": e.text} for e in test]
    if task.is_number:
        numbers = np.array([float(e.label) for e in test])
        values = logits[:, 0].astype(np.float64) * task.std + task.mean
        rows = [
            {**place, "truth": float(a), "predicted": float(b)}
            for place, a, b in zip(where, numbers, values, strict=True)
        ]
        return Judged(score_numbers(numbers, values), values, rows)
    truth = np.array([task.labels.index(str(e.label)) for e in test])
    chances = probabilities(logits)
    predicted = chances.argmax(1)
    rows = [
        {
            **place, "truth": task.labels[a], "predicted": task.labels[b], "probability": float(row[b]),
            "probabilities": dict(zip(task.labels, map(float, row), strict=True)),
        }
        for place, a, b, row in zip(where, truth.tolist(), predicted.tolist(), chances, strict=True)
    ]  # fmt: skip
    return Judged(score_classes(truth, predicted, task.labels, chances), predicted, rows)


def worst_errors(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The test rows a model is most wrong about: classes by the probability of the wrong one, numbers by distance."""
    if rows and "probability" not in rows[0]:
        return sorted(rows, key=lambda row: -abs(row["predicted"] - row["truth"]))[:MOST_ERRORS]
    wrong = [row for row in rows if row["predicted"] != row["truth"]]
    kept = ("row", "text", "truth", "predicted", "probability")
    return [{key: row[key] for key in kept} for row in sorted(wrong, key=lambda row: -row["probability"])[:MOST_ERRORS]]


def compare(task: Task, splits: Splits, judged: Judged) -> tuple[list[dict[str, Any]], str]:
    """The baselines on the same splits, and the model beside the best of them, in words."""

    def part(examples: list[Labelled]) -> Part:
        labels = [float(e.label) if task.is_number else task.labels.index(str(e.label)) for e in examples]
        return Part([e.text for e in examples], np.array(labels))

    say("baselines: most frequent, keyword, TF-IDF, on the same splits")
    train, val, test = part(splits.train), part(splits.val), part(splits.test)
    found = regression_baselines(train, val, test) if task.is_number else classification_baselines(
        train, val, test, task.labels
    )  # fmt: skip
    rows = []
    for baseline in found:
        better = _merit(baseline.scores) > _merit(judged.scores)
        chance = None if task.is_number else mcnemar(test.labels, judged.predicted, baseline.predicted)
        row = {"name": baseline.name, "about": baseline.about, "scores": asdict(baseline.scores)}
        rows.append({**row, "better": better, "p_value": chance})
    return rows, _verdict(judged, max(found, key=lambda b: _merit(b.scores)), rows)


def _merit(scores: ClassScores | NumberScores) -> float:
    return scores.accuracy if isinstance(scores, ClassScores) else -scores.rmse


def _verdict(judged: Judged, best: Baseline, rows: list[dict[str, Any]]) -> str:
    row = next(row for row in rows if row["name"] == best.name)
    if isinstance(judged.scores, ClassScores):
        assert isinstance(best.scores, ClassScores)
        figures = f"{best.scores.accuracy:.1%} against this model's {judged.scores.accuracy:.1%} accuracy"
        chance = row["p_value"]
        figures += f" (p = {chance:.2g}{'; may be chance' if chance > 0.05 else ''})"
    else:
        assert isinstance(best.scores, NumberScores)
        figures = f"RMSE {best.scores.rmse:.4g} against this model's {judged.scores.rmse:.4g}"
    if row["better"]:
        advice = "It trains in less than a minute: use it, or a larger model, or more data."
        return f"{best.name} is better here: {figures}. {advice}"
    return f"The best baseline is {best.name}: {figures}."


def finish_tuning(
    stage: Stage, config: TuneConfig, job: Job, outcome: Outcome, splits: Splits, report: dict[str, Any],
    before: Judged, after: Judged,
) -> TuneResult:  # fmt: skip
    """Compare with the baselines, write ``predictions.jsonl``, and seal the run with its facts."""
    state, model, task = outcome.state, job.model, job.model.task
    baselines, verdict = compare(task, splits, after)
    lines = (json.dumps(row, ensure_ascii=False) for row in after.rows)
    write_atomic(stage.output / PREDICTIONS, "".join(f"{line}\n" for line in lines))
    rates = [row for row in read_rows(stage.output / METRICS) if "mfu" in row][3:] or [{"mfu": 0.0}]
    parameters = sum(p.numel() for p in model.parameters())
    result = TuneResult(
        output=str(stage.output), model=str(stage.output / "model"), task=config.task, labels=list(task.labels),
        parameters=parameters, trained_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        steps=state.step, tokens=state.tokens, tokens_per_second=state.tokens / max(state.seconds, 1e-9),
        rows_per_second=state.step * config.rows / max(state.seconds, 1e-9),
        mfu=sum(row["mfu"] for row in rates) / len(rates), seconds=state.seconds,
        final={"train_loss": outcome.train_loss, **_scores(outcome.final)}, before=_scores(outcome.before),
        uniform_loss=1.0 if task.is_number else math.log(len(task.labels)), weights_sha256=outcome.weights_sha256,
        peak_memory_bytes=peak_memory_bytes(), skipped_steps=state.guard.skipped, precision=outcome.resolved.precision,
        compiled=outcome.resolved.compile, lr=outcome.resolved.lr, data_report=report,
        test=asdict(after.scores), test_before=asdict(before.scores), baselines=baselines, verdict=verdict,
        worst=worst_errors(after.rows), **usage(state),
    )  # fmt: skip
    facts = {key: value for key, value in asdict(result).items() if key not in ("output", "model")}
    stage.finish(digest_json([result.weights_sha256, job.tokenizer.sha256]), facts)
    return result


def _scores(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key.startswith(("val_", "train_"))}


def already_tuned(stage: Stage, config: StageConfig) -> TuneResult:
    """The result of a run finished earlier."""
    assert stage.manifest is not None
    refuse_if_done(config)
    say(f"{config.output}: already done")
    return TuneResult(output=str(config.output), model=str(Path(config.output) / "model"), **stage.manifest["facts"])
