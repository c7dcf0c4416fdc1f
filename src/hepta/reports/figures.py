"""Curves as SVG to stand inside the page: readable in light and dark, no ids that clash, no outside references.

Text in the pictures is ASCII: matplotlib brings no Chinese font, and missing glyphs would be boxes.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

INK = "#010203"  # stands for the page's text colour while matplotlib draws
COLOURS = ("#2f7ed8", "#d9534f", "#3a9d5d", "#b07cc6", "#d08c2e", "#4bb3b3", "#888888")
MOST_POINTS = 600


@dataclass
class Line:
    """One curve; ``x`` and ``y`` of equal length, ``dots`` marks each point."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False
    colour: str = ""


@dataclass
class Figure:
    """A picture: curves, and horizontal reference lines such as ln V or xz."""

    name: str
    ylabel: str
    lines: list[Line]
    levels: dict[str, float] = field(default_factory=dict)
    xlabel: str = "step"


def ascii_label(text: str) -> str:
    """A label matplotlib can draw and will not read as mathematics."""
    return "".join(c if " " <= c <= "~" and c not in "$\\" else "?" for c in text)


def thin(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most ``MOST_POINTS`` points: means of neighbours, points that are not finite left out."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    size = -(-len(pairs) // MOST_POINTS) or 1
    groups = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    return [sum(a for a, _ in g) / len(g) for g in groups], [sum(b for _, b in g) / len(g) for g in groups]


def draw(figure: Figure) -> str | None:
    """The figure as an ``<svg>`` element, or None where there is nothing to draw."""
    lines = [(line, *thin(line.x, line.y)) for line in figure.lines]
    lines = [(line, x, y) for line, x, y in lines if x]
    if not lines:
        return None
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": figure.name, "font.size": 10, "font.family": "sans-serif",
        "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "text.usetex": False, "text.parse_math": False,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(5.2, 3.2), layout="constrained")
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        for index, (line, x, y) in enumerate(lines):
            colour = line.colour or COLOURS[index % len(COLOURS)]
            marker = "o" if line.dots or len(x) == 1 else None
            axes.plot(x, y, color=colour, label=ascii_label(line.label), marker=marker, markersize=3.5, linewidth=1.6)
        for index, (label, value) in enumerate(figure.levels.items()):
            colour = COLOURS[(len(lines) + index) % len(COLOURS)]
            told = ascii_label(f"{label} = {value:.3f}")
            axes.axhline(value, color=colour, linestyle="--", linewidth=1.1, label=told)
        axes.set_xlabel(ascii_label(figure.xlabel))
        axes.set_ylabel(ascii_label(figure.ylabel))
        axes.grid(color="#888888", alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False, fontsize=9)
        text = io.StringIO()
        canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return inline(text.getvalue(), figure.name)


def inline(svg: str, name: str) -> str:
    """Make a stand-alone SVG document an element of a page.

    Args:
        svg: matplotlib's output.
        name: prefix of the ids that are referred to; all other ids are dropped.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\s+xmlns(?::\w+)?="[^"]*"', "", svg)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r'\sid="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)([^)"]+)', rf"\g<1>{name}-\g<2>", svg)
    opening = rf'<svg viewBox="\1" role="img" aria-label="{name}">'
    svg = re.sub(r'<svg[^>]*?viewBox="([^"]+)"[^>]*>', opening, svg, count=1)
    return svg.replace(INK, "currentColor").strip()
