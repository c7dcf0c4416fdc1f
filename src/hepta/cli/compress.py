"""``hepta compress``: smaller models, measured."""

from pathlib import Path
from typing import Annotated

import typer

from hepta.cli.command import ConfigFile, DryRun, Fresh, Json, Overrides, describe_keys, execute

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def compress() -> None:
    """Make a model smaller and say what it costs. Example: hepta compress distill --help"""


@app.command(epilog=describe_keys("compress quantize"))
def quantize(
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="model or run directory, or a catalogue name")] = None,
    bits: Annotated[int | None, typer.Option(help="8 or 4")] = None,
    group: Annotated[int | None, typer.Option(help="columns that share a scale, with 4 bits: 32, 64 or 128")] = None,
    calibrate: Annotated[Path | None, typer.Option(help="corpus, token shards or text to round by")] = None,
    output: Annotated[Path | None, typer.Option(help="run directory")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = None,
) -> None:
    """Keep a model's matrices as integers of 8 or 4 bits, on disk and in memory.

    Example: hepta compress quantize --model out/base --bits 4 --calibrate out/corpus --output out/small
    """
    from hepta.compression.quantize import show_quantized

    options = {
        "model": model, "bits": bits, "group": group, "calibrate": calibrate, "output": output, "fresh": fresh,
    }  # fmt: skip
    execute("compress quantize", options, overrides, config, dry_run, as_json, show_quantized)


@app.command(epilog=describe_keys("compress distill"))
def distill(
    overrides: Overrides = None,
    teacher: Annotated[str | None, typer.Option(help="trained model: directory, run or catalogue name")] = None,
    student: Annotated[str | None, typer.Option(help="preset or model directory; or keep_layers=N")] = None,
    data: Annotated[Path | None, typer.Option(help="token shards made with the teacher's tokenizer")] = None,
    output: Annotated[Path | None, typer.Option(help="run directory")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = None,
) -> None:
    """Train a small model from a larger one's distributions beside the data; repeat the command to go on.

    Example: hepta compress distill --teacher out/base --student nano --data out/tokens --output out/small minutes=5
    """
    options = {"teacher": teacher, "student": student, "data": data, "output": output, "fresh": fresh}
    execute("compress distill", options, overrides, config, dry_run, as_json)


@app.command(epilog=describe_keys("compress prune"))
def prune(
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="model directory, run or catalogue name")] = None,
    sparsity: Annotated[float | None, typer.Option(help="share of the layers' weights that becomes zero")] = None,
    pattern: Annotated[str | None, typer.Option(help="free, or 2:4")] = None,
    heads: Annotated[float | None, typer.Option(help="cut away so many heads of each layer, or this share")] = None,
    neurons: Annotated[float | None, typer.Option(help="cut away this share of each layer's neurons")] = None,
    method: Annotated[str | None, typer.Option(help="magnitude or activation")] = None,
    calibrate: Annotated[Path | None, typer.Option(help="text that says which weights matter")] = None,
    data: Annotated[Path | None, typer.Option(help="token shards to train on afterwards")] = None,
    output: Annotated[Path | None, typer.Option(help="run directory")] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    fresh: Fresh = None,
) -> None:
    """Set weights to zero, or cut heads and neurons away; with --data, train what is left and keep the zeros.

    Examples:  hepta compress prune --model out/base --sparsity 0.5 --calibrate out/corpus --output out/sparse

    hepta compress prune --model out/base --neurons 0.5 --data out/tokens --output out/smaller minutes=2
    """
    options = {
        "model": model, "sparsity": sparsity, "pattern": pattern, "heads": heads, "neurons": neurons, "method": method,
        "calibrate": calibrate, "data": data, "output": output, "fresh": fresh,
    }  # fmt: skip
    execute("compress prune", options, overrides, config, dry_run, as_json)
