"""``hepta corpus``: build, stats, explain."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hepta.cli.command import ConfigFile, DryRun, Fresh, Json, Overrides, describe_keys, execute

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Raw text to clean documents.")

INPUT_HELP = "[NAME=]PATH of a file, folder or fetch output; repeatable"
Inputs = Annotated[list[str] | None, typer.Option("--input", help=INPUT_HELP)]
Corpus = Annotated[Path, typer.Argument(metavar="DIR", help="a corpus directory")]


@app.command(epilog=describe_keys("corpus"))
def build(
    overrides: Overrides = None,
    inputs: Inputs = None,
    output: Annotated[Path | None, typer.Option(help="directory for the corpus")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = None,
) -> None:
    """Turn raw text into clean documents; each one is kept, dropped or quarantined with a reason.

    Example: hepta corpus build --input data --output out/corpus rules.min_words.en=5
    """
    options = {"input": inputs, "output": output, "fresh": fresh}
    execute("corpus", options, overrides, config, dry_run, as_json)


@app.command()
def stats(directory: Corpus, as_json: Json = False) -> None:
    """What was read, kept and dropped, per stage, source and language."""
    from hepta.corpus import ledger

    facts = ledger.stats(directory)
    print(json.dumps(facts, ensure_ascii=False) if as_json else ledger.render_facts(str(directory), facts))


@app.command()
def explain(
    directory: Corpus,
    doc_id: Annotated[str, typer.Argument(metavar="DOC_ID", help="32 hex digits, or the first few")],
    as_json: Json = False,
) -> None:
    """Why one document was kept or dropped: every rule's value and threshold, and its twin."""
    from hepta.corpus import ledger

    found = ledger.explain(directory, doc_id)
    if as_json:
        print(json.dumps(ledger.explanations_as_json(found), ensure_ascii=False))
    else:
        print("\n".join(map(str, found)))
