"""``hepta eval``: score a model on text."""

from pathlib import Path
from typing import Annotated

import typer

from hepta.cli.command import ConfigFile, DryRun, Fresh, Json, Overrides, describe_keys, execute

app = typer.Typer(add_completion=False)


@app.command(epilog=describe_keys("eval"))
def evaluate(
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="model, run or adapter directory, or a name")] = None,
    text: Annotated[Path | None, typer.Option(help="corpus directory, or .txt and .jsonl files")] = None,
    split: Annotated[str | None, typer.Option(help="train, val or test; test if empty")] = None,
    output: Annotated[Path | None, typer.Option(help="directory for the result, if it is to be kept")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = None,
) -> None:
    """Bits per byte beside xz -9, perplexity by token, word and document, top-1 accuracy, per language.

    Example: hepta eval --model out/demo/base --text out/demo/corpus
    """
    options = {"model": model, "text": text, "split": split, "output": output, "fresh": fresh}
    execute("eval", options, overrides, config, dry_run, as_json, _show)


def _show(result: object) -> str:
    from hepta.evaluation.text import EvalResult, show_scores

    assert isinstance(result, EvalResult)
    return show_scores(result)
