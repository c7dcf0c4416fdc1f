"""``hepta compare``: what a smaller model costs and saves beside its original; or whether training runs differ."""

from pathlib import Path
from typing import Annotated

import typer

from hepta.cli.command import ConfigFile, DryRun, Fresh, Json, describe_keys, execute
from hepta.config import read_yaml

app = typer.Typer(add_completion=False)

WORDS = "ORIGINAL SMALL... | RUN_A[,A2...] RUN_B[,B2...] [key=value]..."
Words = Annotated[
    list[str] | None, typer.Argument(metavar=WORDS, help="model directories, or training runs", show_default=False)
]


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
    original's run. Without --text and --data, runs of pretrain, sft, distill or prune are compared as training: does
    the difference of their held-out scores exceed the noise of text and seed?

    Examples:  hepta compare smollm2-135m out/int8 --text out/demo/corpus --output out/compared

    hepta compare out/topics out/topics-int8

    hepta compare out/a7,out/a8,out/a9 out/b7,out/b8,out/b9 --output out/a-or-b
    """
    models = [word for word in words or [] if "=" not in word]
    overrides = [word for word in words or [] if "=" in word]
    if len(models) > 1 and text is None and data is None and config is None and _runs(models):
        sides = {"runs": models, "output": output, "fresh": fresh}
        execute("compare runs", sides, overrides, None, dry_run, as_json, _told)
        return
    options = {"models": models or None, "text": text, "data": data, "output": output, "fresh": fresh}
    execute("compare", options, overrides, config, dry_run, as_json, _show)


def _show(result: object) -> str:
    from hepta.compression.compare import show_comparison
    from hepta.evaluation.compare import CompareResult

    assert isinstance(result, CompareResult)
    return show_comparison(result)


def _runs(words: list[str]) -> bool:
    """Whether all words are training runs of language models, or several with commas between them."""
    for place in (Path(part) for word in words for part in word.split(",")):
        known = (place / "metrics.jsonl").is_file() and (place / "recipe.yaml").is_file()
        if not known or read_yaml(place / "recipe.yaml").get("verb") == "tune":
            return False
    return True


def _told(result: object) -> str:
    from hepta.reports.runs import show_runs
    from hepta.training.comparison import RunsResult

    assert isinstance(result, RunsResult)
    return show_runs(result)
