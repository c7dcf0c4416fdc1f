"""``hepta predict``: ask a tuned model about texts."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hepta.cli.command import ConfigFile, DryRun, Overrides, describe_keys, execute

app = typer.Typer(add_completion=False)

MOST_SHOWN = 4  # classes shown beside the first one
MOST_TEXT = 60  # characters of a text shown


@app.command(epilog=describe_keys("predict"))
def predict(
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="run or directory of a tuned model")] = None,
    text: Annotated[list[str] | None, typer.Option(help="text to ask about; may be given several times")] = None,
    input: Annotated[Path | None, typer.Option(help=".txt lines, CSV, JSON Lines …; stdin if neither is given")] = None,
    output: Annotated[Path | None, typer.Option(help="write JSON Lines here")] = None,
    beam: Annotated[int | None, typer.Option(help="translators: translations under way; 1 is greedy")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object per text")] = False,
) -> None:
    """Ask a tuned model about texts: class and probabilities, a number, or a translation.

    Example: hepta predict --model out/reviews --text "很好看，推荐" --text "太失望了"
    """
    options = {"model": model, "text": text or None, "input": input, "output": output, "beam": beam}
    execute("predict", options, overrides, config, dry_run, dry_run and as_json, show_json if as_json else show)


def show_json(result: Any) -> str:
    """One JSON object per line."""
    return "" if result.output else "\n".join(json.dumps(row, ensure_ascii=False) for row in result.predictions)


def show(result: Any) -> str:
    """One line per text: what was predicted, how likely, and the text's beginning."""
    return result.output or "\n".join(map(_line, result.predictions))


def _line(row: dict[str, Any]) -> str:
    text = (row["text"] or "").replace("\n", " ")
    shown = text[:MOST_TEXT] + ("…" if len(text) > MOST_TEXT else "")
    if "error" in row:
        return f"–  ({row['row']}: {row['error']})"
    if "value" in row:
        return f"{row['value']:.4g}\t{shown}"
    if "probabilities" not in row:
        return str(row.get("prediction", ""))
    others = sorted(row["probabilities"].items(), key=lambda item: -item[1])[1 : 1 + MOST_SHOWN]
    told = "  ".join(f"{name} {share:.2f}" for name, share in others)
    return f"{row['label']} {row['probability']:.2f}\t({told})\t{shown}"
