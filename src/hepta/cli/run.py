"""``hepta run``: all stages of a recipe."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hepta.cli.command import DryRun, Json, Overrides, to_json
from hepta.config import build
from hepta.console import duration
from hepta.cores import choose_waiting
from hepta.runner.config import RunConfig
from hepta.runner.recipe import RunResult, run_recipe

NEXT = 'hepta chat --model smollm2-135m --message "What is the capital of France?"'

app = typer.Typer(add_completion=False)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="recipe file", show_default=False)],
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(help="stop after this stage")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="move outputs aside and make every stage anew")] = False,
    fresh_from: Annotated[str | None, typer.Option(help="the same, from this stage on")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run all stages of a recipe; what is done already is skipped, what was stopped goes on.

    Examples:  hepta run recipes/demo.yaml

    hepta run recipes/demo.yaml base.minutes=1 output=/tmp/try
    """
    values = {
        "recipe": recipe,
        "overrides": overrides or [],
        "until": until,
        "fresh": fresh,
        "fresh_from": fresh_from,
        "dry_run": dry_run,
    }
    if not dry_run:
        choose_waiting()
    result = run_recipe(build(RunConfig, values))
    if not dry_run:
        print(to_json(result) if as_json else show(result))


def show(result: RunResult) -> str:
    """Stages, the last model's answers, and where to look next."""
    lines = [f"{result.name}: {len(result.stages)} stages in {duration(result.seconds)}", ""]
    width = max((len(stage.id) for stage in result.stages), default=0)
    for stage in result.stages:
        took = "already done" if stage.skipped else duration(stage.seconds)
        lines.append(f"  {stage.id:{width}} {took:>12}  {stage.output}")
    chats = [s for s in result.stages if s.verb == "sft"]
    if chats:
        lines += ["", *answers(Path(chats[-1].output) / "samples.jsonl")]
        lines += ["", f"talk to it:  hepta chat --model {chats[-1].output}/model"]
    if result.report:
        lines += [f"look at it:  {result.report}"]
    if chats:
        lines += ["", "ask a model that knows facts (SmolLM2, 93 MB, fetched once):", f"  {NEXT}"]
    return "\n".join(lines)


def answers(samples: Path) -> list[str]:
    """Prompt and answer of a run's last samples, for the screen."""
    if not samples.exists():
        return []
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    last = max((row["step"] for row in rows), default=0)
    lines = []
    for row in rows:
        if row["step"] == last:
            lines += [f"  > {row['prompt']}", f"    {row['text'].strip()}"]
    return lines
