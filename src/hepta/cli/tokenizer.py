"""``hepta tokenizer train`` and ``hepta tokenizer report``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hepta.cli.command import ConfigFile, DryRun, Fresh, Json, Overrides, describe_keys, execute

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Byte-level BPE: train, report.")


def _show_training(result: Any) -> str:
    per_language = ", ".join(f"{lang} {value:.2f}" for lang, value in result.bytes_per_token.items())
    return (
        f"{result.output}: {result.vocab_size} tokens (model vocabulary {result.padded_size}) "
        f"from {result.documents:,} documents, {result.text_bytes:,} bytes; bytes per token: {per_language}"
    )


def _show_report(report: Any) -> str:
    from hepta.tokenizer.report import show_report

    return show_report(report)


@app.command(epilog=describe_keys("tokenizer"))
def train(
    overrides: Overrides = None,
    input: Annotated[Path | None, typer.Option(help="corpus directory, or .txt/.jsonl files")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="tokens in all")] = None,
    output: Annotated[Path | None, typer.Option(help="tokenizer directory to write")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = None,
) -> None:
    """Train a byte-level BPE tokenizer on a corpus; writes a Hugging Face tokenizer directory.

    Example: hepta tokenizer train --input out/corpus --vocab-size 8192 --output out/tok
    """
    options = {"input": input, "vocab_size": vocab_size, "output": output, "fresh": fresh}
    execute("tokenizer", options, overrides, config, dry_run, as_json, _show_training)


@app.command(epilog=describe_keys("tokenizer report"))
def report(
    tokenizer: Annotated[Path, typer.Argument(help="directory holding tokenizer.json")],
    overrides: Overrides = None,
    text: Annotated[Path | None, typer.Option(help="corpus directory, or .txt/.jsonl files, to measure on")] = None,
    reference: Annotated[Path | None, typer.Option(help="another tokenizer to stand beside it")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Say what a tokenizer does to text: bytes per token by language, longest tokens, a sentence cut up.

    Example: hepta tokenizer report out/tok --text out/corpus
    """
    options = {"tokenizer": tokenizer, "text": text, "reference": reference}
    execute("tokenizer report", options, overrides, config, dry_run, as_json, _show_report)
