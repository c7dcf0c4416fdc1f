"""``hepta report``: a run as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from hepta.cli.command import ConfigFile, DryRun, Json, Overrides, describe_keys, execute

app = typer.Typer(add_completion=False)


@app.command(epilog=describe_keys("report"))
def report(
    run: Annotated[Path | None, typer.Argument(help="output folder of a recipe, or a run", show_default=False)] = None,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="the page; RUN/report.html if empty")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write one self-contained page, English and Chinese: data, curves, answers before and after, what was lost.

    Example: hepta report out/demo
    """
    execute("report", {"run": run, "output": output}, overrides, config, dry_run, as_json, _show)


def _show(result: object) -> str:
    from hepta.reports.page import ReportResult, show_report

    assert isinstance(result, ReportResult)
    return show_report(result)
