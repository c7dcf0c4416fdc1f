"""Runs beside each other: the table in words, and a page with their curves."""

from dataclasses import asdict
from itertools import cycle
from string import ascii_uppercase
from typing import Any

from markupsafe import Markup

from hepta.console import say
from hepta.reports.figures import COLOURS, Figure, Line, draw
from hepta.reports.page import asset, digest_script, environment
from hepta.stage import claim, digest_json, write_atomic, write_json
from hepta.training.comparison import Curve, Difference, RunsResult, Side, compare_sides
from hepta.training.config import RunsConfig

VERSION = 1
LETTERS = ascii_uppercase  # of the sides
LABELS = {"step": ("steps", "步数"), "tokens": ("tokens", "词元"), "seconds": ("seconds in steps", "训练秒数")}


def compare_runs(config: RunsConfig) -> RunsResult:
    """Compare training runs: the library function behind ``hepta compare RUN_A RUN_B``.

    Writes ``compare.json``, ``report.html`` and a stage manifest when ``output`` is given, and nothing otherwise.

    Raises:
        HeptaError: runs that cannot be compared.
    """
    if config.output is None:
        return compare_sides(config)
    stage = claim(config, "compare runs", VERSION)
    if stage.state == "done" and stage.manifest is not None:
        say(f"{config.output}: already done")
        return read_result(stage.manifest["facts"])
    result = compare_sides(config)
    result.output = str(config.output)
    facts = asdict(result)
    write_json(config.output / "compare.json", facts)
    page = config.output / "report.html"
    write_atomic(page, render(result))
    stage.finish(digest_json({**facts, "output": ""}), facts)
    say(f"picture: {page}")
    return result


def read_result(facts: dict[str, Any]) -> RunsResult:
    """A ``RunsResult`` from a manifest's facts."""
    others = [
        Difference(**{
            **one, "side": Side(**one["side"]), "equal": {k: tuple(v) for k, v in one["equal"].items()},
            **{k: one[k] and tuple(one[k]) for k in ("text_interval", "seed_interval")},
        })
        for one in facts["others"]
    ]  # fmt: skip
    curves = [[Curve(**curve) for curve in side] for side in facts["curves"]]
    return RunsResult(**{**facts, "first": Side(**facts["first"]), "others": others, "curves": curves})


def show_runs(result: RunsResult) -> str:
    """The result for people: each side's scores, then what separates it from the first."""
    first = result.first
    lines = [f"{result.unit} of held-out text, lower is better", f"A  {_scores(first)}"]
    for letter, other in zip(LETTERS[1:], result.others, strict=False):
        lines += [f"{letter}  {_scores(other.side)}", "", f"{letter} − A {other.difference:+.4f}"]
        if other.text_interval:
            lines.append(f"  text   95 % {_interval(other.text_interval)}  ({other.documents:,} documents, paired)")
        if other.seed_interval:
            runs = f"{len(first.scores)} and {len(other.side.scores)} runs"
            lines.append(f"  seeds  95 % {_interval(other.seed_interval)}  (Welch, {runs}, p = {other.p_value:.2g})")
        for axis, (where, a, b) in other.equal.items():
            lines.append(f"  at {where:,.0f} {LABELS[axis][0]}: A {a:.4f}, {letter} {b:.4f} ({b - a:+.4f})")
        lines.append(f"{letter} is {other.verdict}" if other.verdict[0] in "bw" else f"{letter}: {other.verdict}")
    return "\n".join([*lines, *result.notes])


def _scores(side: Side) -> str:
    told = f"{side.mean:.4f}"
    if len(side.scores) > 1:
        told += f" (of {len(side.scores)} runs, {min(side.scores):.4f} to {max(side.scores):.4f})"
    return f"{told}  {', '.join(side.runs)}"


def _interval(pair: tuple[float, float]) -> str:
    return f"{pair[0]:+.4f} to {pair[1]:+.4f}"


def figures(result: RunsResult) -> list[tuple[str, str, Markup]]:
    """Held-out scores over steps, tokens and time; a colour for each side, a line for each run."""
    found = []
    for axis, (en, zh) in LABELS.items():
        lines = [
            Line(f"{letter} {curve.name}", getattr(curve, axis), curve.score, True, colour)
            for letter, colour, side in zip(LETTERS, cycle(COLOURS), result.curves, strict=False)
            for curve in side
        ]
        svg = draw(Figure(f"runs-{axis}", result.unit, lines, xlabel=en))
        if svg is not None:
            found.append((f"{result.unit} over {en}", f"{result.unit}（横轴：{zh}）", Markup(svg)))
    return found


def render(result: RunsResult) -> str:
    """The page as HTML text."""
    script = asset("page.js")
    return environment().get_template("runs.html").render(
        name="compare", text=show_runs(result), figures=figures(result), style=Markup(asset("page.css")),
        script=Markup(script), script_digest=digest_script(script),
    )  # fmt: skip
