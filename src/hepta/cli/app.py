"""The ``hepta`` command: a table of verbs, each loaded only when it is called."""

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from hepta.cli.command import guarded
from hepta.config import Interrupted

VERB_HELP = {
    "fetch": "bring pinned public data and models",
    "corpus": "raw text to clean documents: build, stats, explain",
    "tokenizer": "byte-level BPE: train, report",
    "tokens": "documents to token shards: build",
    "pretrain": "train a language model from tokens",
    "sft": "instruction tuning, full or LoRA",
    "tune": "classes or numbers from a table of texts",
    "predict": "ask a tuned model about texts",
    "compress": "smaller models, measured: quantize, prune, distill",
    "eval": "bits per byte and perplexity on text",
    "compare": "a smaller model beside its original, or training runs beside each other",
    "generate": "continue a prompt",
    "chat": "talk to a chat model",
    "plan": "parameters, memory, tokens and time, before you spend",
    "doctor": "check the machine, or a training run",
    "explain": "look inside a model: attention, attribution, lens, neurons",
    "run": "all stages of a recipe, skipping what is done",
    "report": "a run as one HTML file",
}


class LazyGroup(TyperGroup):
    """Lists verbs from a table and imports a verb's file only when it is named."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERB_HELP)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        ctx.meta["hepta.overview"] = True
        super().format_help(ctx, formatter)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERB_HELP:
            return None
        if ctx.meta.get("hepta.overview"):  # the overview needs the short help only
            return TyperCommand(cmd_name, help=VERB_HELP[cmd_name])
        module = importlib.import_module(f"hepta.cli.{cmd_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click would turn it into exit code 1
            raise Interrupted("stopped; the same command goes on from the last saved state") from None


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make a language model by hand and for real: raw text to a chat model.",
)


@app.callback()
def root() -> None:
    """Make a language model by hand and for real: raw text to a chat model.

    Begin with: hepta run recipes/demo.yaml
    """


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``hepta`` and ``python -m hepta``."""
    command = typer.main.get_command(app)
    sys.exit(guarded(lambda: command(args=arguments, prog_name="hepta")))
