"""``hepta doctor``: check before you spend."""

from pathlib import Path
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


@app.command(epilog=describe_keys("doctor run"))
def run(
    run: Annotated[Path | None, typer.Argument(help="run directory, under way or not", show_default=False)] = None,
    overrides: Overrides = None,
    step: Annotated[int | None, typer.Option(help="name the documents of this step")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Where a training run stands and what went wrong in it: skips, spikes, slow steps, checkpoints, memory, losses.

    Example: hepta doctor run out/demo/base --step 100
    """
    execute("doctor run", {"run": run, "step": step}, overrides, None, dry_run, as_json, _show)


def _show(found: object) -> str:
    from hepta.training.diagnosis import Diagnosis
    from hepta.training.diagnosis_text import show_diagnosis

    assert isinstance(found, Diagnosis)
    return show_diagnosis(found)
