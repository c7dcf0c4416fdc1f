"""``hepta explain``: look inside a model."""

from pathlib import Path
from typing import Annotated

import typer

from hepta.cli.command import DryRun, Json, Overrides, describe_keys, execute

app = typer.Typer(add_completion=False, no_args_is_help=True)

Model = Annotated[str | None, typer.Option(help="model, run or adapter directory, or a name")]
Text = Annotated[str | None, typer.Option(help="the text that the model reads")]
Output = Annotated[Path | None, typer.Option(help="the page, FILE.html; its facts go to FILE.json")]


@app.callback()
def explain() -> None:
    """Look inside a model. Example: hepta explain attention --model out/demo/base --text "The cat sat on the mat"

    Each writes one HTML page, in English and Chinese, with its facts in a JSON file beside it.
    """


@app.command(epilog=describe_keys("explain attention"))
def attention(
    overrides: Overrides = None,
    model: Model = None,
    text: Text = None,
    word: Annotated[str | None, typer.Option(help="whose links are told; the text's last word if not given")] = None,
    occurrence: Annotated[int | None, typer.Option(help="which of the places where the word stands")] = None,
    beside: Annotated[str | None, typer.Option(help="a second model that reads the same text")] = None,
    output: Output = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Where each token looks, in every layer and head; --beside BERT shows one-sided and two-sided sight together.

    Example: hepta explain attention --model out/demo/base --text "The cat sat on the mat" --word cat
    """
    from hepta.explanation.show import show_attention

    options = {"model": model, "text": text, "word": word, "occurrence": occurrence, "beside": beside, "output": output}
    execute("explain attention", options, overrides, None, dry_run, as_json, show_attention)


@app.command(epilog=describe_keys("explain attribution"))
def attribution(
    overrides: Overrides = None,
    model: Model = None,
    text: Text = None,
    target: Annotated[
        str | None, typer.Option("--target", "--answer", "--class", help="word, answer, class; the model's if empty")
    ] = None,
    method: Annotated[str | None, typer.Option(help="integrated, gradient or occlusion")] = None,
    steps: Annotated[int | None, typer.Option(help="of the integration; enough for a gap below 1 % if empty")] = None,
    chat: Annotated[bool | None, typer.Option("--chat", help="the text is a user's message")] = None,
    output: Output = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Which words decided: of the next token, of an answer, of a masked word, of a class, of a number.

    Example: hepta explain attribution --model out/topics --text "The company was founded in 1901 and makes tyres."
    """
    from hepta.explanation.show import show_attribution

    options = {
        "model": model, "text": text, "target": target, "method": method, "steps": steps, "chat": chat,
        "output": output,
    }  # fmt: skip
    execute("explain attribution", options, overrides, None, dry_run, as_json, show_attribution)


@app.command(epilog=describe_keys("explain lens"))
def lens(
    overrides: Overrides = None,
    model: Model = None,
    text: Text = None,
    top: Annotated[int | None, typer.Option(help="tokens kept for each position and layer")] = None,
    output: Output = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """What each layer would answer if it were the last (the logit lens), token by token.

    Example: hepta explain lens --model out/demo/base --text "The cat sat on the"
    """
    from hepta.explanation.show import show_lens

    options = {"model": model, "text": text, "top": top, "output": output}
    execute("explain lens", options, overrides, None, dry_run, as_json, show_lens)


@app.command(epilog=describe_keys("explain neurons"))
def neurons(
    overrides: Overrides = None,
    model: Model = None,
    text: Annotated[str | None, typer.Option(help="corpus, file or text; of a classifier its kind of table")] = None,
    split: Annotated[str | None, typer.Option(help="of a corpus; val if empty")] = None,
    tokens: Annotated[int | None, typer.Option(help="most tokens of the text that are read")] = None,
    output: Output = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """What the loss is without each head, each layer's attention or MLP; which tokens excite the top neurons.

    Example: hepta explain neurons --model out/demo/base --text out/demo/corpus
    """
    from hepta.explanation.show import show_neurons

    options = {"model": model, "text": text, "split": split, "tokens": tokens, "output": output}
    execute("explain neurons", options, overrides, None, dry_run, as_json, show_neurons)
