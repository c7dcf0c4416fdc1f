"""``hepta pretrain``: train a language model from token shards."""

from pathlib import Path
from typing import Annotated

import typer

from hepta.cli.command import ConfigFile, DryRun, Fresh, Json, Overrides, describe_keys, execute

app = typer.Typer(add_completion=False)


@app.command(epilog=describe_keys("pretrain"))
def pretrain(
    overrides: Overrides = None,
    data: Annotated[Path | None, typer.Option(help="token shards (hepta tokens build)")] = None,
    model: Annotated[str | None, typer.Option(help="preset (nano … 7b, gpt2-nano, bert-nano) or directory")] = None,
    objective: Annotated[str | None, typer.Option(help="causal (next token) or masked (BERT)")] = None,
    lr: Annotated[str | None, typer.Option(help="peak learning rate, auto or find")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, muon, adafactor, sgd or adamw8bit")] = None,
    branch: Annotated[str | None, typer.Option(help="RUN@STEP: another run's checkpoint to go on from")] = None,
    output: Annotated[Path | None, typer.Option(help="run directory")] = None,
    profile: Annotated[int | None, typer.Option(help="steps to record; a trace and a table in RUN/profile")] = None,
    nproc: Annotated[int | None, typer.Option(help="processes on this machine that train together")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = None,
) -> None:
    """Train a language model from token shards; repeat the command to go on after a stop.

    Examples:  hepta pretrain --data out/tokens --model nano --output out/base minutes=5

    hepta pretrain --data out/tokens --objective masked --output out/bert minutes=5
    """
    options = {"data": data, "model": model, "objective": objective, "output": output, "fresh": fresh}
    options |= {"optimizer": optimizer, "profile": profile, "nproc": nproc, "branch": branch, "lr": lr}
    execute("pretrain", options, overrides, config, dry_run, as_json)
