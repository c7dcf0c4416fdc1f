"""``hepta tune``: teach a model a task."""

from pathlib import Path
from typing import Annotated

import typer

from hepta.cli.command import ConfigFile, DryRun, Fresh, Json, Overrides, describe_keys, execute

app = typer.Typer(add_completion=False)


@app.command(epilog=describe_keys("tune"))
def tune(
    overrides: Overrides = None,
    task: Annotated[str | None, typer.Option(help="classify, regress or translate")] = None,
    model: Annotated[str | None, typer.Option(help="preset, model directory, run or catalogue name")] = None,
    data: Annotated[list[str] | None, typer.Option(help="CSV, JSON Lines …; may be given several times")] = None,
    lr: Annotated[str | None, typer.Option(help="peak learning rate, auto or find")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, muon, adafactor, sgd or adamw8bit")] = None,
    output: Annotated[Path | None, typer.Option(help="run directory")] = None,
    profile: Annotated[int | None, typer.Option(help="steps to record; a trace and a table in RUN/profile")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = None,
) -> None:
    """Teach a model to name a text's class or number, or to translate, from a table; beside simple baselines.

    Example: hepta tune --task classify --model minilm-l6 --data my.csv --output out/run
    """
    options = {"task": task, "model": model, "data": data or None, "output": output, "fresh": fresh}
    options |= {"optimizer": optimizer, "profile": profile, "lr": lr}
    execute("tune", options, overrides, config, dry_run, as_json)
