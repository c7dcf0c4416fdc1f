"""Read a recipe's output folder, or one run's directory, into plain values; what is missing or broken is said."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hepta.config import HeptaError, parse_yaml
from hepta.stage import MANIFEST, UNFINISHED

SMALLER_VERBS = ("compress distill", "compress prune")  # a smaller language model, trained in the same loop
TRAINING_VERBS = ("pretrain", "sft", "tune", *SMALLER_VERBS)
MOST_ROWS = 200_000  # of one metrics file; beyond it every other row is enough for a curve


@dataclass
class StageRecord:
    """One stage as it lies on disk: ``done``, ``unfinished``, ``missing`` or ``unreadable``."""

    id: str
    verb: str
    path: Path
    status: str = "missing"
    config: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    finished: str = ""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    journal: list[dict[str, Any]] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)  # a trained model's config.json


@dataclass
class RunRecord:
    """A run's stages in order, its recipe and machine, and what could not be read."""

    name: str
    path: Path
    stages: list[StageRecord]
    recipe: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def of(self, *verbs: str) -> list[StageRecord]:
        """Stages of these verbs, in order."""
        return [stage for stage in self.stages if stage.verb in verbs]


def gather(run: Path) -> RunRecord:
    """Read what lies in ``run``.

    Raises:
        HeptaError: no such directory, or nothing in it that hepta made.
    """
    if not run.is_dir():
        raise HeptaError(f"{run}: no such directory; give a recipe's output folder (out/demo) or a run's directory")
    record = RunRecord(run.resolve().name, run, [])
    record.environment = _mapping(run / "environment.json", record.problems)
    if (run / MANIFEST).is_file() or (run / UNFINISHED).is_file():
        record.stages = [_stage(run.resolve().name, "", run, record.problems)]
        return record
    record.recipe = _yaml(run / "recipe.yaml", record.problems)
    record.runs = _rows(run / "runs.jsonl", record.problems)
    record.name = str(record.recipe.get("name") or record.name)
    listed = record.recipe.get("stages")
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict) and "id" in entry:
            path = _output(run, entry, record.recipe.get("output"))
            stage = _stage(str(entry["id"]), str(entry.get("verb", "")), path, record.problems)
            stage.config = entry
            record.stages.append(stage)
    if not record.stages:
        found = sorted(p.parent for pattern in (f"*/{MANIFEST}", f"*/{UNFINISHED}") for p in run.glob(pattern))
        stages = [_stage(path.name, "", path, record.problems) for path in dict.fromkeys(found)]
        record.stages = sorted(stages, key=lambda stage: (not stage.finished, stage.finished))
    if not record.stages:
        raise HeptaError(f"{run}: nothing here that hepta made (no recipe.yaml, no {MANIFEST}); give a run's directory")
    return record


def _output(run: Path, entry: dict[str, Any], home: Any) -> Path:
    """Where a stage lies: beside the recipe, also after the folder was moved from ``home``; else where its key says."""
    beside, said = run / str(entry["id"]), Path(str(entry.get("output") or entry["id"]))
    elsewhere = said.name != beside.name or (isinstance(home, str) and said.parent != Path(home))
    return said if elsewhere and not beside.is_dir() else beside


def _stage(name: str, verb: str, path: Path, problems: list[str]) -> StageRecord:
    stage = StageRecord(name, verb, path)
    if not (path / MANIFEST).is_file():
        if (path / UNFINISHED).is_file():
            stage.status = "unfinished"
            stage.verb = verb or str(_mapping(path / UNFINISHED, problems).get("verb", ""))
    else:
        manifest = _mapping(path / MANIFEST, problems)
        stage.status = "done" if "verb" in manifest else "unreadable"
        if (path / UNFINISHED).is_file() and stage.status == "done":
            stage.status = "unfinished"  # a larger budget is under way
        stage.verb = verb or str(manifest.get("verb", ""))
        facts, seconds = manifest.get("facts"), manifest.get("seconds")
        stage.facts = facts if isinstance(facts, dict) else {}
        stage.seconds = float(seconds) if isinstance(seconds, int | float) else None
        stage.finished = str(manifest.get("finished", ""))
        keys = [manifest.get(part) for part in ("identity", "budget")]
        stage.config = {k: v for part in keys if isinstance(part, dict) for k, v in part.items()}
    if stage.verb in TRAINING_VERBS and path.is_dir():
        stage.metrics = _rows(path / "metrics.jsonl", problems)
        stage.samples = _rows(path / "samples.jsonl", problems)
        stage.journal = _rows(path / "journal.jsonl", problems)
        stage.model = _mapping(path / "model" / "config.json", problems)
    return stage


def _mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON object, or an empty one and a problem noted."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} of {path.parent.name} is not readable: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} of {path.parent.name} holds no JSON object")
        return {}
    return value


def _yaml(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    except (OSError, ValueError, HeptaError, yaml.YAMLError) as error:
        problems.append(f"{path.name} is not readable: {error}")
        return {}
    return value if isinstance(value, dict) else {}


def _rows(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Objects of a JSON Lines file; lines that are none are counted as a problem."""
    if not path.is_file():
        return []
    rows, bad = [], 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                value = json.loads(line)
            except ValueError:
                bad += bool(line.strip())
                continue
            if isinstance(value, dict):
                rows.append(value)
            else:
                bad += 1
    if bad:
        problems.append(f"{path.name} of {path.parent.name}: {bad} lines could not be read")
    return rows[:: len(rows) // MOST_ROWS + 1]
