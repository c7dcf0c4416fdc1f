"""``hepta generate``: continue a prompt."""

from typing import Annotated, Any

import typer

from hepta.cli.command import ConfigFile, DryRun, Json, Overrides, describe_keys, execute

app = typer.Typer(add_completion=False)


@app.command(epilog=describe_keys("generate"))
def generate(
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="model, run or adapter directory, or a name")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="text to continue; may be given several times")] = None,
    fill: Annotated[list[str] | None, typer.Option(help="text with [MASK], for a masked model; repeatable")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="most tokens generated for one prompt")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Continue prompts with a model, or fill the masks of a text.

    Examples:  hepta generate --model out/demo/base --prompt "The city of" temperature=0.7 seed=1

    hepta generate --model out/bert --fill "The [MASK] sat on the mat"
    """
    options = {"model": model, "prompt": prompt or None, "fill": fill or None, "max_new_tokens": max_new_tokens}
    execute("generate", options, overrides, config, dry_run, as_json, show)


def show(result: Any) -> str:
    """Each prompt with its continuation, or each filled text with the guesses for its masks; a blank line between."""
    if hasattr(result, "filled"):
        return "\n\n".join("\n".join([one.text, *map(guesses, one.places)]) for one in result.filled)
    return "\n\n".join(completion.prompt + completion.text for completion in result.completions)


def guesses(place: Any) -> str:
    """A masked place's best guesses, the likeliest first."""
    return "  [MASK]  " + "  ".join(f"{guess.text} {guess.probability:.3f}" for guess in place)
