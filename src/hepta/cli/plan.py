"""``hepta plan``: what a model needs, before you spend."""

from pathlib import Path
from typing import Annotated

import typer

from hepta.cli.command import ConfigFile, DryRun, Json, Overrides, describe_keys, execute

app = typer.Typer(add_completion=False)


@app.command(epilog=describe_keys("plan"))
def plan(
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="preset (nano … 7b) or model directory")] = None,
    devices: Annotated[str | None, typer.Option(help="for example 1080ti,3070,3090,4090,8xH100,cpu")] = None,
    tokens: Annotated[float | None, typer.Option(help="training tokens, for example 2e9")] = None,
    sequence_length: Annotated[int | None, typer.Option(help="tokens per sequence")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="sequences held at once")] = None,
    minutes: Annotated[float | None, typer.Option(help="advise what this machine trains best in this time")] = None,
    data: Annotated[Path | None, typer.Option(help="with --minutes: token shards to train on")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Parameters, memory by class, tokens, time and cost; says for each device whether it fits.

    Examples:  hepta plan --model 7b --devices 4090,8xH100

    hepta plan --minutes 30 --data out/tokens
    """
    from hepta.planning.advise import show_answer

    options = {
        "model": model, "devices": devices, "tokens": tokens,
        "sequence_length": sequence_length, "micro_batch": micro_batch,
        "minutes": minutes, "data": data,
    }  # fmt: skip
    execute("plan", options, overrides, config, dry_run, as_json, show_answer)
