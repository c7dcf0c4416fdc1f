"""Recipes: ordered stages, all checked before the first one works, each skipped when it is done."""

import gc
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from hepta.config import HeptaError, StageConfig, build, merge, nearest, parse_overrides, read_yaml
from hepta.console import duration, say
from hepta.planning.machine import give_back
from hepta.runner.config import Recipe, RunConfig
from hepta.runner.foresee import foresee
from hepta.runner.verbs import VERBS
from hepta.stage import ASIDE_HINT, read_manifest, write_atomic, write_json

REFERENCE = re.compile(r"\$\{([^}]*)\}")


@dataclass
class PlannedStage:
    """A stage with its config resolved: ready to run."""

    id: str
    verb: str
    config: StageConfig


@dataclass
class StageOutcome:
    """What became of one stage."""

    id: str
    verb: str
    output: str
    seconds: float
    skipped: bool


@dataclass
class RunResult:
    """What ``hepta run`` made."""

    name: str
    output: str
    stages: list[StageOutcome] = field(default_factory=list)
    report: str | None = None
    seconds: float = 0.0


def load_recipe(path: Path, overrides: list[str]) -> tuple[Recipe, dict[str, dict[str, Any]]]:
    """Read a recipe and sort overrides into the recipe's own keys and those of its stages.

    Returns:
        the recipe, and per stage id the keys to override.

    Raises:
        HeptaError: an unknown stage id or key, an id used twice.
    """
    values = read_yaml(path)
    given = parse_overrides(overrides)
    own = {key: value for key, value in given.items() if key in Recipe.model_fields and key != "stages"}
    recipe = build(Recipe, merge(values, own), str(path))
    ids = [stage.id for stage in recipe.stages]
    for stage_id in ids:
        if ids.count(stage_id) > 1:
            raise HeptaError(f"{path}: stage id {stage_id!r} stands twice; give each stage its own")
    per_stage: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        if key in own:
            continue
        if key not in ids or not isinstance(value, dict):
            hint = f"{nearest(key, ids)} (form: id.key=value)"
            raise HeptaError(f"override {key!r}: no stage of {path} has this id; {hint}")
        per_stage[key] = value
    return recipe, per_stage


def _resolve(value: Any, outputs: Mapping[str, Path], where: str) -> Any:
    """Replace ``${id}`` by that stage's output directory, at any depth."""
    if isinstance(value, list):
        return [_resolve(item, outputs, where) for item in value]
    if isinstance(value, dict):
        return {key: _resolve(item, outputs, where) for key, item in value.items()}
    if not isinstance(value, str):
        return value

    def output_of(match: re.Match[str]) -> str:
        if match[1] not in outputs:
            raise HeptaError(f"{where}: ${{{match[1]}}} names no earlier stage; {nearest(match[1], list(outputs))}")
        return str(outputs[match[1]])

    return REFERENCE.sub(output_of, value)


def plan_stages(config: RunConfig) -> tuple[Recipe, Path, list[PlannedStage]]:
    """Resolve every stage of a recipe, so that a slip in the last one is told before the first runs."""
    recipe, per_stage = load_recipe(config.recipe, config.overrides)
    root = recipe.output or Path("out") / recipe.name
    stage_verbs = [verb for verb in VERBS if issubclass(VERBS[verb].load_config_class(), StageConfig)]
    ids = [stage.id for stage in recipe.stages]
    for name in (config.until, config.fresh_from):
        if name is not None and name not in ids:
            raise HeptaError(f"{config.recipe}: no stage {name!r}; {nearest(name, ids)}")
    outputs: dict[str, Path] = {}
    planned: list[PlannedStage] = []
    fresh = config.fresh
    for stage in recipe.stages:
        where = f"{config.recipe}: stage {stage.id!r}"
        if stage.verb not in stage_verbs:
            raise HeptaError(f"{where}: unknown verb {stage.verb!r}; {nearest(stage.verb, stage_verbs)}")
        config_class = VERBS[stage.verb].load_config_class()
        fresh = fresh or stage.id == config.fresh_from
        shared = {"seed": recipe.seed, "sample_prompts": recipe.prompts}
        defaults: dict[str, Any] = {key: value for key, value in shared.items() if key in config_class.model_fields}
        defaults |= {"output": str(root / stage.id), "fresh": fresh}
        keys = merge(merge(defaults, stage.keys), per_stage.get(stage.id, {}))
        resolved = build(config_class, _resolve(keys, outputs, where), where)
        assert isinstance(resolved, StageConfig)
        outputs[stage.id] = resolved.output
        planned.append(PlannedStage(stage.id, stage.verb, resolved))
    if config.until:
        planned = planned[: ids.index(config.until) + 1]
    return recipe, root, planned


def environment() -> dict[str, Any]:
    """Machine, interpreter and package versions, for people who compare runs."""
    packages = ["hepta", "torch", "numpy", "pyarrow", "duckdb", "tokenizers", "tiktoken", "safetensors"]
    versions = {name: metadata.version(name) for name in packages}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": versions,
        "command": ["hepta", *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _snapshot(recipe: Recipe, root: Path, planned: list[PlannedStage]) -> None:
    """Write what is about to run beside its outputs."""
    stages = [{"id": s.id, "verb": s.verb} | s.config.model_dump(mode="json", exclude={"fresh"}) for s in planned]
    resolved = recipe.model_dump(mode="json", exclude={"stages"}) | {"output": str(root), "stages": stages}
    write_atomic(root / "recipe.yaml", yaml.safe_dump(resolved, allow_unicode=True, sort_keys=False))
    write_json(root / "environment.json", environment())


def run_recipe(config: RunConfig) -> RunResult:
    """Run all stages of a recipe, skipping what is done, and write the report.

    Raises:
        HeptaError: a wrong recipe (before anything runs), or a stage's own error with its id in front.
    """
    recipe, root, planned = plan_stages(config)
    started = time.monotonic()
    result = RunResult(recipe.name, str(root))
    if config.dry_run:
        for stage in planned:
            done = read_manifest(stage.config.output) is not None
            say(f"{stage.id}: {stage.verb} → {stage.config.output}{' (something is there)' if done else ''}")
            say(f"    {stage.config.model_dump(mode='json', exclude={'output', 'fresh'}, exclude_defaults=True)}")
            for line in foresee(stage.config, [s.config for s in planned], recipe.devices):
                say(f"    {line}")
        return result
    if recipe.note:
        say(recipe.note.rstrip() + "\n")
    _snapshot(recipe, root, planned)
    for number, stage in enumerate(planned, 1):
        say(f"[{number}/{len(planned)}] {stage.id}: {stage.verb} → {stage.config.output}")
        before = read_manifest(stage.config.output)
        _begin_memory()
        begun = time.monotonic()
        try:
            VERBS[stage.verb].call(stage.config)
        except HeptaError as error:
            hint = f"--fresh-from {stage.id} moves it and all after it aside"
            raise type(error)(f"stage {stage.id!r}: {str(error).replace(ASIDE_HINT, hint)}") from None
        after = read_manifest(stage.config.output)
        skipped = before is not None and before == after and not stage.config.fresh
        seconds = time.monotonic() - begun
        outcome = "already done" if skipped else f"done in {duration(seconds)}"
        say(f"[{number}/{len(planned)}] {stage.id}: {outcome}\n")
        result.stages.append(StageOutcome(stage.id, stage.verb, str(stage.config.output), round(seconds, 2), skipped))
    result.seconds = round(time.monotonic() - started, 2)
    _record_times(root, result)
    report_config = VERBS["report"].load_config_class()
    written = VERBS["report"].load_function()(build(report_config, {"run": str(root)}))
    result.report = str(written.path)
    return result


def _begin_memory() -> None:
    """Give back what earlier stages have freed, and count the process's peak of memory from here, where Linux can."""
    gc.collect()
    give_back()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak


def _record_times(root: Path, result: RunResult) -> None:
    """Append this run's stage times to ``runs.jsonl``: a re-run that skips everything is told apart."""
    path = root / "runs.jsonl"
    old = path.read_bytes() if path.exists() else b""
    row = json.dumps(asdict(result), ensure_ascii=False)
    write_atomic(path, old + row.encode() + b"\n")
