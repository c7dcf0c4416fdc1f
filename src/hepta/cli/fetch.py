"""``hepta fetch``: bring pinned public data."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hepta.cli.command import ConfigFile, DryRun, Fresh, Json, describe_keys, execute

app = typer.Typer(add_completion=False)

WORDS = "NAME... [key=value]..."
Names = Annotated[list[str] | None, typer.Argument(metavar=WORDS, help="catalogue names", show_default=False)]


@app.command(epilog=describe_keys("fetch"))
def fetch(
    names: Names = None,
    show_list: Annotated[bool, typer.Option("--list", help="print the catalogue")] = False,
    output: Annotated[Path | None, typer.Option(help="directory that gets one folder per name (default data)")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = None,
) -> None:
    """Bring pinned public data sets as JSON Lines, models as directories: sha256 checked, licence printed.

    Examples:  hepta fetch wiki-en sanguo-zh --output data

    hepta fetch smollm2-135m hf:owner/name
    """
    if show_list:
        from hepta.catalog.fetch import catalogue

        rows = catalogue()
        print(json.dumps({"catalogue": rows}, ensure_ascii=False) if as_json else "\n".join(map(_line, rows)))
        return
    words = [word for word in names or [] if "=" not in word]
    overrides = [word for word in names or [] if "=" in word]
    options = {"names": words or None, "output": output, "fresh": fresh}
    execute("fetch", options, overrides, config, dry_run, as_json)


def _line(row: dict[str, object]) -> str:
    languages = "+".join(row["languages"])  # type: ignore[arg-type]
    caution = " (!)" if row["caution"] else ""
    return f"{row['name']:<14} {row['kind']:<13} {languages:<6} {str(row['licence']) + caution:<20} {row['about']}"
