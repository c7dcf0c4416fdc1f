"""``hepta compare``: what a smaller model costs beside its original, and what it saves."""

from pathlib import Path
from typing import Annotated

import typer

from hepta.cli.command import ConfigFile, DryRun, Fresh, Json, describe_keys, execute

app = typer.Typer(add_completion=False)

WORDS = "ORIGINAL SMALL... [key=value]..."
Words = Annotated[list[str] | None, typer.Argument(metavar=WORDS, help="model directories", show_default=False)]


@app.command(epilog=describe_keys("compare"))
def compare(
    words: Words = None,
    text: Annotated[Path | None, typer.Option(help="corpus directory, or .txt and .jsonl files")] = None,
    data: Annotated[Path | None, typer.Option(help="rows with known answers: labels, or choices")] = None,
    output: Annotated[Path | None, typer.Option(help="directory for the result and its page")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = None,
) -> None:
    """Bytes, memory, speed, bits per byte, divergence and right answers of models beside the first one.

    Language models read a text (--text) or answer questions (--data); classifiers answer the test rows of the
    original's run.

    Examples:  hepta compare smollm2-135m out/int8 --text out/demo/corpus --output out/compared

    hepta compare out/topics out/topics-int8
    """
    models = [word for word in words or [] if "=" not in word]
    overrides = [word for word in words or [] if "=" in word]
    options = {"models": models or None, "text": text, "data": data, "output": output, "fresh": fresh}
    execute("compare", options, overrides, config, dry_run, as_json, _show)


def _show(result: object) -> str:
    from hepta.compression.compare import show_comparison
    from hepta.evaluation.compare import CompareResult

    assert isinstance(result, CompareResult)
    return show_comparison(result)
