"""``hepta tokens build``: documents to token shards."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hepta.cli.command import ConfigFile, DryRun, Fresh, Json, Overrides, describe_keys, execute

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Documents to token shards: build.")


@app.callback()
def root() -> None:
    """Documents to token shards."""


def _show(result: Any) -> str:
    lines = [f"{result.output}: {result.dtype} shards, tokenizer {result.tokenizer_sha256[:12]}…"]
    for split, counts in result.splits.items():
        lines.append(
            f"  {split:<6}{counts['documents']:>10,} documents "
            f"{counts['tokens']:>14,} tokens {counts['bytes']:>14,} bytes"
        )
    return "\n".join(lines)


@app.command(epilog=describe_keys("tokens"))
def build(
    overrides: Overrides = None,
    input: Annotated[Path | None, typer.Option(help="corpus directory, or .txt/.jsonl files")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer directory")] = None,
    output: Annotated[Path | None, typer.Option(help="directory of shards to write")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = None,
) -> None:
    """Encode documents into token shards that training reads.

    Example: hepta tokens build --input out/corpus --tokenizer out/tok --output out/tokens
    """
    options = {"input": input, "tokenizer": tokenizer, "output": output, "fresh": fresh}
    execute("tokens", options, overrides, config, dry_run, as_json, _show)
