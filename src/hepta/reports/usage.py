"""Where a run's time, memory and positions went, and its held-out loss by source: rows and curves of the page."""

from collections.abc import Mapping
from typing import Any

from hepta.reports.figures import Figure, Line
from hepta.reports.views import number, size

PHASES = {
    "data": "取数据", "forward": "前向", "backward": "反向", "optimizer": "优化器", "other": "其他",
    "evaluation": "评测", "save": "保存",
}  # fmt: skip
CLASSES = {
    "parameters": "参数", "gradients": "梯度", "optimizer": "优化器状态", "activations": "激活", "other": "其他",
}  # fmt: skip
Row = tuple[str, str, Any]  # in English, in Chinese, its value


def usage_rows(facts: Mapping[str, Any]) -> list[Row]:
    """Time by phase, memory by class, padding and loss by source, where the run measured them."""
    phases, memory = facts.get("phases") or {}, facts.get("memory") or {}
    sources = (facts.get("final") or {}).get("val_loss_by_source") or {}
    whole = sum(phases.values()) or 1.0
    rows: list[Row] = [
        (f"time: {name}", f"时间：{PHASES.get(name, name)}", number(value / whole, ".1%"))
        for name, value in phases.items()
        if value / whole >= 0.0005
    ]
    rows += [
        (f"memory: {name}", f"内存：{CLASSES.get(name, name)}", size(value)) for name, value in memory.items() if value
    ]
    rows.append(("padding among positions read", "读入位置中的填充", number(facts.get("padded"), ".2%")))
    rows += [(f"held-out loss: {name}", f"留出损失：{name}", number(value, ".4f")) for name, value in sources.items()]
    return rows


def usage_figures(rows: list[dict[str, Any]], tag: str) -> list[tuple[str, str, Figure]]:
    """Held-out loss of each source, and milliseconds of each phase of a step."""
    told = [row for row in rows if isinstance(row.get("val_loss_by_source"), dict)]
    sources = sorted({name for row in told for name in row["val_loss_by_source"]})
    losses = [_line(name, told, "val_loss_by_source", 1.0, dots=True) for name in sources]
    timed = [row for row in rows if isinstance(row.get("phases"), dict)]
    phases = [_line(name, timed, "phases", 1000.0) for name in ("forward", "backward", "optimizer", "data", "other")]
    return [
        ("Held-out loss by source", "各来源的留出损失", Figure(f"source-{tag}", "nats per token", losses)),
        ("Milliseconds of a step by phase", "每步各阶段毫秒数", Figure(f"phases-{tag}", "ms", phases)),
    ]


def _line(name: str, rows: list[dict[str, Any]], key: str, scale: float, dots: bool = False) -> Line:
    here = [row for row in rows if isinstance(row[key].get(name), int | float)]
    return Line(name, [float(row["step"]) for row in here], [scale * row[key][name] for row in here], dots)
