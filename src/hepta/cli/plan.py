"""``hepta plan``: what a model needs, before you spend."""

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
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Parameters, memory by class, tokens, time and cost; says for each device whether it fits.

    Example: hepta plan --model 7b --devices 4090,8xH100
    """
    from hepta.planning.plan import show_plan

    options = {
        "model": model, "devices": devices, "tokens": tokens,
        "sequence_length": sequence_length, "micro_batch": micro_batch,
    }  # fmt: skip
    execute("plan", options, overrides, config, dry_run, as_json, show_plan)
