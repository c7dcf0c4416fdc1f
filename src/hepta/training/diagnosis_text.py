"""A diagnosis as one readable page of text."""

from typing import Any

from hepta.console import duration
from hepta.training.diagnosis import MOST, PAST, Diagnosis

STATUS = {
    "running": "running now",
    "finished": "finished",
    "stopped": "stopped, its last step is saved",
    "killed": "ended without saving",
    "nothing done": "begun, no step taken",
}


def show_diagnosis(d: Diagnosis) -> str:
    """Where the run stands, what deserves a look, then the figures."""
    share = d.step / d.total_steps if d.total_steps else 0.0
    lines = [f"{d.run}  ({d.verb})", f"{'status':15}{STATUS[d.status]}"]
    if d.silent_seconds is not None:
        lines[-1] += f", last row {duration(d.silent_seconds)} ago"
    lines.append(f"{'step':15}{d.step:,} of {d.total_steps:,} ({share:.0%})" + _pace(d))
    if d.train_loss:
        lines.append(f"{'train loss':15}{d.train_loss[0]:.4f} → {d.train_loss[1]:.4f}, {d.trend}")
    if d.by_source:
        lines.append(f"{'by source':15}{_sources(d.by_source)} of the tokens, last {min(PAST, d.step)} steps")
    if d.val_loss:
        told = "  ".join(f"step {step:,}: {loss:.4f}" for step, loss in d.val_loss)
        lines.append(f"{'held-out loss':15}{told}")
    lines.append(f"{'checkpoints':15}" + (", ".join(map(_checkpoint, d.checkpoints)) or "none yet"))
    if d.phases:
        told = ", ".join(f"{name} {value:.1%}" for name, value in d.phases.items() if value >= 0.0005)
        lines.append(f"{'time':15}{told}")
    if d.data_wait is not None:
        lines.append(f"{'waits for data':15}{d.data_wait:.2%} of a step")
    if d.memory:
        lines.append(f"{'memory':15}{_memory(d.memory)}")
    lines += ["", *([f"! {finding}" for finding in d.findings] or ["nothing unusual"])]
    lines += _events("skipped", d.skips, lambda e: f"step {e['step']}: {e['reason']} ({_names(e)})")
    lines += _events("went back", d.rollbacks, lambda e: f"from step {e['from']} to {e['step']} ({_names(e)})")
    norm = "step {step}: {grad_norm:.3g}, {times:.1f} times the usual"
    lines += _events("gradient norms", d.spikes, lambda spike: norm.format(**spike))
    slow = "step {step}: {seconds:.2f} s, {times:.0f} times the usual, most of it in {phase}"
    lines += _events("slow steps", d.stalls, lambda stall: slow.format(**stall))
    return "\n".join([*lines, *_layers(d.layers), *_asked(d.asked)])


def _pace(d: Diagnosis) -> str:
    if d.seconds_per_step is None:
        return ""
    told = f", {d.seconds_per_step:.3g} s each with evaluations and saves"
    return told if d.eta_seconds is None else told + f", {duration(d.eta_seconds)} to go"


def _checkpoint(found: dict[str, Any]) -> str:
    return f"step {found['step']:,} " + (f"DAMAGED ({found['fault']})" if found["fault"] else "valid")


def _memory(found: dict[str, Any]) -> str:
    told = f"peak {found['peak'] / 1e6:,.0f} MB"
    classes = sorted((found["classes"] or {}).items(), key=lambda part: -part[1])
    if classes:
        told += "; a step holds " + ", ".join(f"{name} {value / 1e6:,.0f}" for name, value in classes) + " MB"
    return told


def _sources(found: dict[str, dict[str, float]]) -> str:
    told = [f"{name} {one['loss']:.4f} ({one['share']:.0%})" for name, one in found.items()]
    more = [f"… {len(told) - MOST} more"] if len(told) > MOST else []
    return ", ".join([*told[:MOST], *more])


def _names(event: dict[str, Any]) -> str:
    names = event.get("documents") or []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "documents not known"


def _events(title: str, events: list[dict[str, Any]], told: Any) -> list[str]:
    if not events:
        return []
    more = [f"  … {len(events) - MOST} more"] if len(events) > MOST else []
    return ["", title, *(f"  {told(event)}" for event in events[:MOST]), *more]


def _layers(layers: dict[str, Any]) -> list[str]:
    if not layers:
        return []
    columns = ("grad_norm", "weight_norm", "update_ratio", "activation_rms", "activation_max")
    width = max(len(name) for name in layers)
    lines = ["", f"{'layer':{width}}  " + "  ".join(f"{column:>14}" for column in columns)]
    for name, figures in layers.items():
        cells = (f"{figures[column]:14.3g}" if figures.get(column) is not None else f"{'':14}" for column in columns)
        lines.append(f"{name:{width}}  {'  '.join(cells)}".rstrip())
    return lines


def _asked(asked: dict[str, Any]) -> list[str]:
    if not asked:
        return []
    row, names = asked["row"], asked["documents"]
    loss = "none" if row.get("loss") is None else f"{row['loss']:.4f}"
    lines = ["", f"step {row['step']}: loss {loss}, sequences {asked['sequences'][0]} to {asked['sequences'][1] - 1}"]
    lines += [f"  skipped: {event['reason']}" for event in asked["events"]]
    return lines + [f"  {name}" for name in names]
