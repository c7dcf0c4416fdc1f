"""Models beside their original on the page: the table, and quality against size as a picture."""

from typing import Any

from markupsafe import Markup

from hepta.reports.figures import COLOURS, Figure, Line, draw
from hepta.reports.gather import RunRecord, StageRecord
from hepta.reports.views import number, size


def view_compare(record: RunRecord) -> list[dict[str, Any]]:
    """Per comparison: its models as rows, and the picture."""
    return [_comparison(stage) for stage in record.of("compare") if stage.facts.get("models")]


def _comparison(stage: StageRecord) -> dict[str, Any]:
    facts, models = stage.facts, stage.facts["models"]
    rows = [_row(model, models[0]) for model in models]
    return {
        "id": stage.id, "text": facts.get("text"), "documents": facts.get("documents"), "tokens": facts.get("tokens"),
        "data": facts.get("data"), "precision": facts.get("precision"), "speed_precision": facts.get("speed_precision"),
        "threads": facts.get("threads"),
        "notes": facts.get("notes") or [], "rows": rows, "picture": _picture(stage.id, models),
        "language": models[0].get("bits_per_byte") is not None,
        "task": models[0].get("task") is not None,
        "speed": models[0].get("footprint") is not None,
        "writes": bool((models[0].get("footprint") or {}).get("decode")),
    }  # fmt: skip


def _row(model: dict[str, Any], original: dict[str, Any]) -> dict[str, Any]:
    took, task, whole = model.get("footprint") or {}, model.get("task") or {}, original.get("bits_per_byte")
    delta, interval = model.get("delta_bits"), model.get("delta_interval")
    told = "–"
    if delta is not None and whole:
        told = f"{100 * delta / whole:+.2f} %"
        if interval:
            told += f" ({100 * interval[0] / whole:+.2f} – {100 * interval[1] / whole:+.2f})"
    low, high = task.get("interval") or (None, None)
    return {
        "name": model["name"], "best": bool(model.get("best_trade")),
        "bytes": size(model["bytes"]), "rss": size(took.get("model_bytes")),
        "prefill": _rate(took.get("prefill")), "decode": _rate(took.get("decode")),
        "bits": number(whole if model is original else model.get("bits_per_byte"), ".4f"), "delta": told,
        "divergence": number(model.get("divergence"), ".5f"), "same": number(model.get("same_choice"), ".1%"),
        "right": "–" if low is None else f"{task['accuracy']:.1%} ({low:.1%} – {high:.1%})",
        "p": number(task.get("p_value"), ".2g"),
    }  # fmt: skip


def _rate(found: dict[str, float] | None) -> str:
    return f"{found['median']:,.0f} ({found['low']:,.0f} – {found['high']:,.0f})" if found else "–"


def _picture(name: str, models: list[dict[str, Any]]) -> Markup | None:
    """Each model as a point: size across, bits per byte (or share of wrong answers) up; the best trades joined."""
    if all(model.get("bits_per_byte") is not None for model in models):
        label, height = "bits per byte", {id(m): m["bits_per_byte"] for m in models}
    elif all(model.get("task") for model in models):
        label, height = "wrong answers, %", {id(m): 100 * (1 - m["task"]["accuracy"]) for m in models}
    else:
        return None
    points = [
        Line(m["name"], [m["bytes"] / 1e6], [height[id(m)]], True, COLOURS[i % len(COLOURS)])
        for i, m in enumerate(models)
    ]
    best = sorted((m["bytes"] / 1e6, height[id(m)]) for m in models if m.get("best_trade"))
    front = Line("best trades", [x for x, _ in best], [y for _, y in best], False, COLOURS[-1])
    svg = draw(Figure(f"trade-{name}", label, [*points, *([front] if len(best) > 1 else [])], xlabel="MB of weights"))
    return Markup(svg) if svg else None
