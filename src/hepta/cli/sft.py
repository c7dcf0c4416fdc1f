"""``hepta sft``: instruction tuning, full or LoRA."""

from pathlib import Path
from typing import Annotated

import typer

from hepta.cli.command import ConfigFile, DryRun, Fresh, Json, Overrides, describe_keys, execute

app = typer.Typer(add_completion=False)


@app.command(epilog=describe_keys("sft"))
def sft(
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="model directory or run to start from")] = None,
    data: Annotated[list[str] | None, typer.Option(help="conversations; may be given several times")] = None,
    method: Annotated[str | None, typer.Option(help="full or lora")] = None,
    lr: Annotated[str | None, typer.Option(help="peak learning rate, auto or find")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, muon, adafactor, sgd or adamw8bit")] = None,
    output: Annotated[Path | None, typer.Option(help="run directory")] = None,
    profile: Annotated[int | None, typer.Option(help="steps to record; a trace and a table in RUN/profile")] = None,
    nproc: Annotated[int | None, typer.Option(help="processes on this machine that train together")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = None,
) -> None:
    """Teach a language model to answer; repeat the command to go on after a stop.

    Example: hepta sft --model out/base --data data/chat-en --data data/chat-zh --output out/chat epochs=3
    """
    options = {"model": model, "data": data or None, "method": method, "output": output, "fresh": fresh}
    options |= {"optimizer": optimizer, "profile": profile, "nproc": nproc, "lr": lr}
    execute("sft", options, overrides, config, dry_run, as_json)
