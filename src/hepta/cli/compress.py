"""``hepta compress``: smaller models, measured."""

from pathlib import Path
from typing import Annotated

import typer

from hepta.cli.command import ConfigFile, DryRun, Fresh, Json, Overrides, describe_keys, execute

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def compress() -> None:
    """Make a model smaller and say what it costs. Example: hepta compress distill --help"""


@app.command(epilog=describe_keys("compress distill"))
def distill(
    overrides: Overrides = None,
    teacher: Annotated[str | None, typer.Option(help="trained model: directory, run or catalogue name")] = None,
    student: Annotated[str | None, typer.Option(help="preset or model directory; or keep_layers=N")] = None,
    data: Annotated[Path | None, typer.Option(help="token shards made with the teacher's tokenizer")] = None,
    output: Annotated[Path | None, typer.Option(help="run directory")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = None,
) -> None:
    """Train a small model from a larger one's distributions beside the data; repeat the command to go on.

    Example: hepta compress distill --teacher out/base --student nano --data out/tokens --output out/small minutes=5
    """
    options = {"teacher": teacher, "student": student, "data": data, "output": output, "fresh": fresh}
    execute("compress distill", options, overrides, config, dry_run, as_json)
