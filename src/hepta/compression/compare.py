"""``hepta compare``: the measured table, kept as a stage with its page where an output is given."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hepta.console import say, terminal_width
from hepta.evaluation.compare import Compared, CompareResult, TaskScore, compare
from hepta.evaluation.config import CompareConfig
from hepta.evaluation.footprint import Footprint, Rate
from hepta.reports.config import ReportConfig
from hepta.reports.page import write_report
from hepta.stage import claim, digest_json, write_json

VERSION = 1
MEASURED = ("footprint",)  # differs from run to run, so no part of the digest


def compare_models(config: CompareConfig) -> CompareResult:
    """Compare models with the first of them: the library function behind ``hepta compare``.

    Writes ``compare.json``, ``report.html`` and a stage manifest when ``output`` is given, and nothing otherwise.

    Raises:
        HeptaError: models that cannot be compared, nothing to read.
        MachineError: a process that measured speed ended.
    """
    if config.output is None:
        return compare(config)
    stage = claim(config, "compare", VERSION)
    if stage.state == "done" and stage.manifest is not None:
        say(f"{config.output}: already done")
        return read_result(stage.manifest["facts"])
    result = compare(config)
    result.output = str(config.output)
    facts = asdict(result)
    write_json(config.output / "compare.json", facts)
    rows = [{key: value for key, value in row.items() if key not in MEASURED} for row in facts["models"]]
    stage.finish(digest_json({**facts, "models": rows, "output": ""}), facts)
    page = write_report(ReportConfig(run=config.output))
    say(f"picture: {page.path}")
    return result


def read_result(facts: dict[str, Any]) -> CompareResult:
    """A ``CompareResult`` from a manifest's facts."""
    return CompareResult(**{**facts, "models": [_model(row) for row in facts["models"]]})


def _model(row: dict[str, Any]) -> Compared:
    took, task = row.get("footprint"), row.get("task")
    if took is not None:
        rates = {key: Rate(**took[key]) if took[key] else None for key in ("prefill", "decode")}
        took = Footprint(**{**took, **rates})
    return Compared(**{**row, "footprint": took, "task": TaskScore(**task) if task else None})


Column = tuple[str, Any]  # heading, and what a model shows there: text, or None


def show_comparison(result: CompareResult) -> str:
    """The result as a table for people; columns that no model fills are left out."""
    original = result.models[0]
    columns = [_cells(heading, cell, result.models) for heading, cell in _columns(original)]
    shown = [column for column in columns if any(column[1:])]
    widths = [max(terminal_width(cell) for cell in column) for column in shown]
    lines = [_heading(result), ""]
    for row in zip(*shown, strict=True):
        first, *others = (
            cell + " " * (width - terminal_width(cell)) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    lines += ["", "* no other model here is both smaller and better", *result.notes]
    return "\n".join(lines)


def _heading(result: CompareResult) -> str:
    parts = []
    if result.text:
        parts.append(f"{result.documents:,} documents of {result.text}, {result.tokens:,} tokens")
    if result.data:
        rows = next((m.task.rows for m in result.models if m.task), 0)
        parts.append(f"{rows:,} rows of {result.data}")
    text = "; ".join(parts)
    return text + f"; judged in {result.precision}, speed in {result.speed_precision}, {result.threads} threads"


def _cells(heading: str, cell: Any, models: Sequence[Compared]) -> list[str]:
    return [heading, *(cell(model) or "" for model in models)]


def _columns(original: Compared) -> list[Column]:
    def rate(found: Rate | None) -> str:
        return f"{found.median:,.0f} ({found.low:,.0f}–{found.high:,.0f})" if found else ""

    def delta(model: Compared) -> str:
        if model.delta_bits is None or not original.bits_per_byte:
            return ""
        told = f"{100 * model.delta_bits / original.bits_per_byte:+.2f} %"
        if model.delta_interval is None:
            return told
        low, high = (100 * value / original.bits_per_byte for value in model.delta_interval)
        return f"{told} ({low:+.2f} to {high:+.2f})"

    def task(model: Compared) -> str:
        found = model.task
        return f"{found.accuracy:.1%} ({found.interval[0]:.1%}–{found.interval[1]:.1%})" if found else ""

    def chance(model: Compared) -> str:
        return f"{model.task.p_value:.2g}" if model.task and model.task.p_value is not None else ""

    def given(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        ("", lambda m: m.name + (" *" if m.best_trade else "")),
        ("MB", lambda m: f"{m.bytes / 1e6:,.1f}"),
        ("RSS MB", lambda m: f"{m.footprint.model_bytes / 1e6:,.0f}" if m.footprint else ""),
        ("prefill tok/s", lambda m: rate(m.footprint.prefill) if m.footprint else ""),
        ("decode tok/s", lambda m: rate(m.footprint.decode) if m.footprint else ""),
        ("bits/byte", lambda m: given(m.bits_per_byte, ".4f")),
        ("Δ bits/byte", delta),
        ("KL", lambda m: given(m.divergence, ".5f")),
        ("same choice", lambda m: given(m.same_choice, ".1%")),
        ("next token", lambda m: given(m.accuracy, ".1%")),
        ("right answers", task),
        ("p", chance),
    ]
