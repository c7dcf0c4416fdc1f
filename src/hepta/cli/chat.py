"""``hepta chat``: talk to a chat model."""

from typing import Annotated, Any

import typer

from hepta.cli.command import ConfigFile, DryRun, Json, Overrides, describe_keys, execute

app = typer.Typer(add_completion=False)


@app.command(epilog=describe_keys("chat"))
def chat(
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="model, run or adapter directory, or a name")] = None,
    message: Annotated[str | None, typer.Option(help="say this, print the answer, and end")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="most tokens of one answer")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Talk to a chat model: type a line, read the answer; /reset forgets, /quit ends. Piped lines work too.

    Example: hepta chat --model out/demo/chat --message "今天天气怎么样？"
    """
    options = {"model": model, "message": message, "max_new_tokens": max_new_tokens}
    options["live"] = False if as_json else None
    execute("chat", options, overrides, config, dry_run, as_json, show)


def show(result: Any) -> str:
    """The answer to ``--message``; nothing where answers were printed as they came."""
    return "" if result.printed else result.answer
