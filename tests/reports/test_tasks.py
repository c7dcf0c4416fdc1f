"""Tuned classifiers on the report: every figure of the run, hostile labels and texts harmless, both languages."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from demo_output import HOSTILE

from hepta.evaluation.classification import score_classes, score_numbers
from hepta.reports.config import ReportConfig
from hepta.reports.gather import gather
from hepta.reports.page import write_report
from hepta.reports.tasks import confusion_svg, view_tasks
from hepta.stage import write_json

LABELS = ["好", HOSTILE, "neutral"]


def make_run(folder: Path, task: str = "classify") -> Path:
    """A finished tuning run's files."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, 90)
    logits = generator.normal(size=(90, 3))
    logits[np.arange(90), truth] += 1
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if task == "classify":
        scores = asdict(score_classes(truth, chances.argmax(1), LABELS, chances))
        worst = [{"row": "a row 3", "text": HOSTILE, "truth": "好", "predicted": HOSTILE, "probability": 0.93}]
    else:
        scores = asdict(score_numbers(truth.astype(float), logits[:, 0]))
        worst = [{"row": "a row 3", "text": HOSTILE, "truth": 1.0, "predicted": 4.5}]
    better = {"name": "TF-IDF", "about": HOSTILE, "scores": scores, "better": True, "p_value": 0.2}
    facts = {
        "task": task, "labels": LABELS, "test": scores, "test_before": scores, "baselines": [better], "worst": worst,
        "verdict": "TF-IDF + logistic regression is better here: 80% against 70%", "uniform_loss": 1.1, "steps": 20,
        "parameters": 1000, "trained_parameters": 1000, "data_report": {"duplicates merged": 7}, "seconds": 12.0,
    }  # fmt: skip
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", {
        "format": 1, "verb": "tune", "facts": facts, "seconds": 20.0, "finished": "2026-11-22T00:00:00Z",
        "identity": {}, "budget": {}, "digest": "0",
    })  # fmt: skip
    rows = [{"step": n, "epoch": n / 10, "loss": 1.0 / n} for n in range(1, 21)]
    rows += [{"step": n, "val_loss": 0.5, "val_accuracy": 0.7, "train_accuracy": 0.8} for n in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("task", ["classify", "regress"])
def test_the_page_shows_scores_baselines_and_errors_and_escapes_what_it_is_told(tmp_path, task):
    run = make_run(tmp_path / "run", task)
    page = write_report(ReportConfig(run=run)).path.read_text(encoding="utf-8")
    assert "is better here" in page
    assert "错得最远的" in page
    assert "Its worst errors" in page
    assert HOSTILE not in page
    assert page.count("<script") == 1
    assert "hepta predict --model" in page
    assert ("混淆矩阵" in page) == (task == "classify")
    assert ("Reliability" in page) == (task == "classify")
    assert "duplicates merged" in page
    assert "Nothing was trained here" not in page
    assert gather(run).problems == []


def test_the_confusion_drawing_holds_every_count_of_the_matrix():
    matrix = [[5, 0, 1], [2, 7, 0], [0, 3, 9]]
    drawn = str(confusion_svg(["a", "b<c", "d"], matrix, [2, 0]))
    assert drawn.count("<rect") == 4
    assert "b<c" not in drawn
    assert [n for n in ("9", "5", "1") if f">{n}</text>" in drawn] == ["9", "5", "1"]
    assert drawn.count('class="right"') == 2


def test_curves_run_over_epochs(tmp_path):
    view = view_tasks(gather(make_run(tmp_path / "run")))[0]
    assert [en.split(":")[0].split(" by")[0] for en, _, _ in view["figures"]] == ["Loss", "Accuracy", "Reliability"]
    assert all("epoch" in svg for en, _, svg in view["figures"] if "by epoch" in en)
