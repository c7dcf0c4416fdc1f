"""Tuned classifiers on the page: learning by epoch, confusion, reliability, classes, baselines and the worst errors."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from hepta.console import duration
from hepta.reports.figures import COLOURS, Figure, Line, draw
from hepta.reports.gather import RunRecord, StageRecord
from hepta.reports.views import number, size

MOST_CLASSES = 20  # drawn in the confusion matrix: the commonest ones
MOST_TEXT = 400  # characters of a text on the page
CELL, LABELS = 34, 150
LEAN = 80  # what the label of the last column reaches beyond it


def view_tasks(record: RunRecord) -> list[dict[str, Any]]:
    """Per tuned classifier or regressor: everything its facts say."""
    return [_task(stage) for stage in record.of("tune") if isinstance(stage.facts.get("test"), dict)]


def _task(stage: StageRecord) -> dict[str, Any]:
    facts = stage.facts
    test, classify = facts["test"], "confusion" in facts["test"]
    order = sorted(range(len(test.get("classes") or [])), key=lambda i: -test["classes"][i]["support"])
    return {
        "id": stage.id, "classify": classify, "rows": test["rows"], "verdict": facts.get("verdict") or "",
        "figures": _figures(stage, test),
        "confusion": confusion_svg(facts["labels"], test["confusion"], order[:MOST_CLASSES]) if classify else None,
        "hidden": max(0, len(order) - MOST_CLASSES),
        "classes": [test["classes"][i] for i in order],
        "compared": _compared(facts, classify), "facts": _facts(facts),
        "worst": [_error(row, classify) for row in facts.get("worst") or []],
    }  # fmt: skip


def _figures(stage: StageRecord, test: dict[str, Any]) -> list[tuple[str, str, Markup]]:
    """Loss and accuracy over epochs, and the reliability curve; title in both languages."""
    rows, tag = stage.metrics, f"tune-{stage.id}"
    last = next((row for row in reversed(rows) if row.get("epoch") and row.get("step")), None)
    per_step = last["epoch"] / last["step"] if last else 1.0

    def line(key: str, label: str, colour: str, dots: bool = True) -> Line:
        pairs = [(row["step"] * per_step, row[key]) for row in rows if isinstance(row.get(key), int | float)]
        return Line(label, [x for x, _ in pairs], [y for _, y in pairs], dots, colour)

    known = stage.facts.get("uniform_loss")
    even = {"even guessing": float(known)} if isinstance(known, int | float) else {}
    losses = [line("loss", "train", COLOURS[0], False), line("val_loss", "held out", COLOURS[1])]
    right = [line("train_accuracy", "train", COLOURS[0]), line("val_accuracy", "held out", COLOURS[1])]
    figures = [
        ("Loss by epoch", "每轮损失", Figure(f"loss-{tag}", "loss", losses, even, xlabel="epoch")),
        ("Accuracy by epoch", "每轮准确率", Figure(f"accuracy-{tag}", "accuracy", right, xlabel="epoch")),
    ]
    if bins := test.get("calibration"):
        curve = Line("model", [b["confidence"] for b in bins], [b["accuracy"] for b in bins], True, COLOURS[0])
        honest = Line("as sure as right", [0.0, 1.0], [0.0, 1.0], False, COLOURS[6])
        title = f"Reliability: how often right, by how sure; ECE {test['ece']:.3f}"
        figures.append((
            title, f"可靠性曲线：置信度与实际正确率；ECE {test['ece']:.3f}",
            Figure(f"reliability-{tag}", "share right", [curve, honest], xlabel="highest probability"),
        ))  # fmt: skip
    drawn = [(en, zh, draw(figure)) for en, zh, figure in figures]
    return [(en, zh, Markup(svg)) for en, zh, svg in drawn if svg is not None]


def confusion_svg(labels: Sequence[str], matrix: Sequence[Sequence[int]], shown: Sequence[int]) -> Markup:
    """The confusion matrix as a drawing: rows are true classes, columns predicted ones, darker is a larger share."""
    height = LABELS + CELL * len(shown) + 8
    width = height + LEAN
    parts = [
        Markup('<svg class="confusion" viewBox="0 0 {} {}" role="img" aria-label="confusion">').format(width, height)
    ]
    for column, place in enumerate(shown):
        x = LABELS + column * CELL + CELL / 2
        parts.append(Markup('<text x="{x}" y="{y}" transform="rotate(-50 {x} {y})">{label}</text>').format(
            x=x, y=LABELS - 6, label=_short(labels[place]),
        ))  # fmt: skip
    for row, truth in enumerate(shown):
        y = LABELS + row * CELL
        parts.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(
            LABELS - 6, y + CELL / 2 + 4, _short(labels[truth]),
        ))  # fmt: skip
        total = max(1, sum(matrix[truth]))
        for column, predicted in enumerate(shown):
            count = matrix[truth][predicted]
            kind, shade = "right" if truth == predicted else "wrong", round(0.06 + 0.84 * count / total, 3)
            x, side = LABELS + column * CELL, CELL - 2
            cell = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" style="fill-opacity:{}"/>')
            parts.append(cell.format(kind, x, y, side, side, shade))
            if count:
                parts.append(Markup('<text class="count" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                    LABELS + column * CELL + CELL / 2 - 1, y + CELL / 2 + 4, count,
                ))  # fmt: skip
    return Markup("").join([*parts, Markup("</svg>")])


def _short(label: str) -> str:
    return label if len(label) <= 20 else label[:19] + "…"


def _compared(facts: dict[str, Any], classify: bool) -> list[dict[str, Any]]:
    """The model, the same before training, and each baseline: figures as text."""
    named = [("model", "模型", "", facts["test"], None)]
    if isinstance(facts.get("test_before"), dict):
        named.append(("before training", "训练之前", "", facts["test_before"], None))
    for entry in facts.get("baselines") or []:
        named.append((entry["name"], entry["name"], entry.get("about", ""), entry["scores"], entry))
    rows = []
    for en, zh, about, scores, entry in named:
        low, high = scores["accuracy_interval" if classify else "rmse_interval"]
        cells = (
            [number(scores["accuracy"], ".1%"), f"{low:.1%} – {high:.1%}", number(scores["f1"]["macro"], ".3f"),
             number(scores["mcc"], ".3f")]
            if classify
            else [number(scores["rmse"], ".4g"), f"{low:.4g} – {high:.4g}", number(scores["mae"], ".4g"),
                  number(scores["r2"], ".3f"), number(scores["spearman"], ".3f")]
        )  # fmt: skip
        better = bool(entry and entry.get("better"))
        chance = number(entry.get("p_value"), ".2g") if entry else ""
        rows.append({"en": en, "zh": zh, "about": about, "cells": cells, "better": better, "p": chance})
    return rows


def _facts(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    seconds = facts.get("seconds")
    trained, whole = facts.get("trained_parameters"), facts.get("parameters")
    rows = [
        ("parameters", "参数量", number(whole)),
        ("trained parameters", "训练的参数", number(trained) if trained != whole else "–"),
        ("steps", "步数", number(facts.get("steps"))),
        ("time in steps", "训练用时", duration(seconds) if isinstance(seconds, int | float) else "–"),
        ("rows per second", "每秒行数", number(facts.get("rows_per_second"), ",.0f")),
        ("peak learning rate", "峰值学习率", number(facts.get("lr"), ".3g")),
        ("precision", "精度", str(facts.get("precision", "–"))),
        ("peak memory", "内存峰值", size(facts.get("peak_memory_bytes"))),
    ]
    return [row for row in rows if row[2] != "–"]


def _error(row: dict[str, Any], classify: bool) -> dict[str, Any]:
    text = str(row.get("text", ""))
    said = f"{row['predicted']} ({row['probability']:.0%})" if classify else f"{row['predicted']:.4g}"
    truth = str(row["truth"]) if classify else f"{row['truth']:.4g}"
    shown = text[:MOST_TEXT] + (" …" if len(text) > MOST_TEXT else "")
    return {"row": str(row.get("row", "")), "text": shown, "truth": truth, "said": said}
