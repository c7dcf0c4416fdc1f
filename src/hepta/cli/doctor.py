"""``hepta doctor``: check before you spend."""

from typing import Annotated

import typer

from hepta.cli.command import DryRun, Json, Overrides, describe_keys, execute

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def doctor() -> None:
    """Check before you spend. Example: hepta doctor machine"""


@app.command(epilog=describe_keys("doctor machine"))
def machine(
    overrides: Overrides = None,
    threads: Annotated[int | None, typer.Option(help="threads to measure with")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Cores, memory, disk, GPUs and measured speed of this machine, and the precision to choose.

    Example: hepta doctor machine
    """
    from hepta.planning.probe import show_machine

    execute("doctor machine", {"threads": threads}, overrides, None, dry_run, as_json, show_machine)
