"""From a run's records to what the page shows: plain values, every figure read with care.

Facts come from files that other versions may have written; whatever is missing or odd becomes a remark, never a crash.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hepta.console import duration
from hepta.reports.diagram import Node, draw_stages
from hepta.reports.gather import TRAINING_VERBS, RunRecord, StageRecord

LANGUAGES = {"en": "English", "zh": "中文", "ja": "日本語", "und": "?"}


def number(value: Any, form: str = ",") -> str:
    """A number in ``form``; an en dash where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    return format(value, form)


def size(value: Any) -> str:
    """Bytes in the unit people read."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} B"


def guarded(section: Callable[[RunRecord], Any], record: RunRecord) -> Any:
    """A section's values; None and a noted problem where the facts are not of the form they should have."""
    try:
        return section(record)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        name = section.__name__.removeprefix("view_")
        told = f"{type(error).__name__}: {error}"
        record.problems.append(f"section {name!r} left out, its facts have an unknown form ({told})")
        return None


def sources_of(stage: StageRecord, stages: list[StageRecord]) -> list[int]:
    """Indices of the earlier stages whose output this stage's keys name."""
    text = json.dumps([v for k, v in stage.config.items() if k not in ("id", "output", "verb")], default=str)
    words = {word.strip('",[]') for word in text.replace("=", " ").split()}
    found = []
    for index, other in enumerate(stages):
        if other is stage:
            break
        place = str(other.config.get("output") or other.path)
        if any(word == place or word.startswith(place + "/") for word in words):
            found.append(index)
    return found


def note_of(stage: StageRecord) -> str:
    """A stage's result in a few figures, the same in every language."""
    facts, final = stage.facts, stage.facts.get("final") or {}
    if stage.status != "done":
        return {"missing": "not run · 未运行", "unfinished": "unfinished · 未完成"}.get(stage.status, "? · 无法读取")
    bpb = final.get("val_bpb") or {lang: s.get("bits_per_byte") for lang, s in (facts.get("by_language") or {}).items()}
    shown = [f"{lang} {number(value, '.3f')} bit/B" for lang, value in bpb.items() if lang != "all"]
    splits = facts.get("splits") or {}
    notes = {
        "fetch": [f"{len(facts.get('names') or {})} sets", f"{number(_total(facts.get('names'), 'rows'))} rows"],
        "corpus": [f"{number(facts.get('kept'))} / {number(facts.get('read'))} documents"],
        "tokenizer": [f"{number(facts.get('vocab_size'))} tokens"],
        "tokens": [f"{number((splits.get('train') or {}).get('tokens'))} tokens"],
        "pretrain": [_work(facts), *shown],
        "sft": [f"{number(facts.get('steps'))} steps", f"loss {number(final.get('val_loss'), '.3f')}"],
        "tune": [_tuned(facts)],
        "compress distill": [_work(facts), *shown],
        "compress prune": [str(facts.get("done", "")), f"{number(facts.get('loss'), '.3f')} nats"],
        "eval": shown,
    }
    return " · ".join(notes.get(stage.verb, []))


def _work(facts: dict[str, Any]) -> str:
    """Steps taken, or for a model that is counted the tokens read."""
    steps = facts.get("steps")
    return f"{number(steps)} steps" if steps != 0 else f"{number(facts.get('tokens'))} tokens counted"


def _tuned(facts: dict[str, Any]) -> str:
    test = facts.get("test") or {}
    if "accuracy" in test:
        return f"{number(test['accuracy'], '.1%')} of {number(test.get('rows'))} test texts right"
    return f"RMSE {number(test['rmse'], '.4g')}" if "rmse" in test else f"{number(facts.get('steps'))} steps"


def _total(entries: Any, key: str) -> int | None:
    values = [entry.get(key) for entry in (entries or {}).values()]
    return sum(v for v in values if isinstance(v, int)) if values else None


def view_stages(record: RunRecord) -> dict[str, Any]:
    """The drawing, and the same as rows."""
    longest = max((stage.seconds or 0.0 for stage in record.stages), default=0.0) or 1.0
    nodes = [
        Node(
            stage.id, stage.verb, stage.status, note_of(stage), duration(stage.seconds) if stage.seconds else "",
            (stage.seconds or 0.0) / longest, sources_of(stage, record.stages),
        )
        for stage in record.stages
    ]  # fmt: skip
    total = sum(stage.seconds or 0.0 for stage in record.stages)
    return {"svg": draw_stages(nodes), "total": duration(total), "finished": max(s.finished for s in record.stages)}


def view_machine(record: RunRecord) -> dict[str, Any]:
    """Machine, versions and the command."""
    found = dict(record.environment)
    for stage in record.of(*TRAINING_VERBS):
        path = stage.path / "environment.json"
        if path.is_file():
            trained_on = json.loads(path.read_text(encoding="utf-8"))
            found = {key: trained_on[key] for key in trained_on if key == "processor" or not found} | found
            break
    versions = found.pop("versions", {}) or {}
    versions |= {key: found.pop(key) for key in ("hepta", "torch") if isinstance(found.get(key), str)}
    command = found.pop("command", None)
    command = " ".join(map(str, command)) if isinstance(command, list) else command
    runs = [
        {
            "total": duration(float(run.get("seconds") or 0)),
            "stages": [
                f"{s.get('id')} {'=' if s.get('skipped') else duration(float(s.get('seconds') or 0))}"
                for s in run.get("stages", [])
            ],
        }
        for run in record.runs[-5:]
    ]
    return {"rows": {k: str(v) for k, v in found.items()}, "versions": versions, "command": command, "runs": runs}


def view_fetch(record: RunRecord) -> list[dict[str, Any]]:
    """Data sets brought, their licences and sizes."""
    return [
        {"name": name, **{key: entry.get(key) for key in ("rows", "characters", "licence", "package", "caution")}}
        for stage in record.of("fetch")
        for name, entry in (stage.facts.get("names") or {}).items()
    ]


def view_corpus(record: RunRecord) -> list[dict[str, Any]]:
    """Per corpus: the ledger of documents, by source and language, and the reasons for dropping."""
    return [_corpus(stage) for stage in record.of("corpus") if stage.facts]


def _corpus(stage: StageRecord) -> dict[str, Any]:
    facts = stage.facts
    columns: list[str] = []
    cells: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in facts.get("by_stage_source_lang") or []:
        key, step = (str(row.get("source", "?")), str(row.get("lang", "?"))), str(row.get("stage", "?"))
        columns += [step] if step not in columns else []
        cells.setdefault(key, {})[step] = row
    reasons = facts.get("reasons") or {}
    most = max([*reasons.values(), 1])
    return {
        "id": stage.id, "read": facts.get("read"), "kept": facts.get("kept"), "dropped": facts.get("dropped"),
        "quarantined": facts.get("quarantined"), "columns": columns,
        "rows": [
            {"source": source, "lang": lang, "cells": [found.get(c, {}) for c in columns], "share": _share(found)}
            for (source, lang), found in sorted(cells.items())
        ],
        "reasons": [
            {"name": name, "count": count, "width": 100 * count / most}
            for name, count in sorted(reasons.items(), key=lambda item: -item[1])
        ],
        "splits": facts.get("splits") or {}, "languages": facts.get("languages") or {},
    }  # fmt: skip


def _share(found: dict[str, dict[str, Any]]) -> float | None:
    """Percent of the documents of one source and language that were kept."""
    kept = (found.get("kept") or {}).get("documents", 0)
    read = (found.get("read") or {}).get("documents")
    if read is None:  # a ledger that lists outcomes only
        read = sum(cell.get("documents", 0) for cell in found.values())
    return 100 * kept / read if read else None


def view_tokenizer(record: RunRecord) -> list[dict[str, Any]]:
    """Per tokenizer its figures and two sentences cut up; per token set its counts."""
    result = []
    for stage in record.of("tokenizer"):
        if stage.facts:
            result.append({"id": stage.id, "facts": stage.facts, "segments": _segments(stage.path, record)})
    return result


def _segments(path: Path, record: RunRecord) -> dict[str, list[str]]:
    try:
        from hepta.tokenizer.load import load_tokenizer
        from hepta.tokenizer.report import SENTENCES, segment

        tokenizer = load_tokenizer(path)
        return {lang: segment(tokenizer, sentence) for lang, sentence in SENTENCES.items()}
    except Exception as error:  # whatever a foreign or broken tokenizer does, the page is still written
        record.problems.append(f"the tokenizer at {path} could not be loaded: {error}")
        return {}


def view_tokens(record: RunRecord) -> list[dict[str, Any]]:
    """Per token set and split: documents, tokens, bytes."""
    return [
        {"id": stage.id, "split": split, **{key: counts.get(key) for key in ("documents", "tokens", "bytes")}}
        for stage in record.of("tokens")
        for split, counts in (stage.facts.get("splits") or {}).items()
        if isinstance(counts, dict)
    ]


def parameters_of(record: RunRecord) -> int | None:
    """Parameters of the run's last model, None where none was trained."""
    counts = [s.facts.get("parameters") for s in record.of(*TRAINING_VERBS, "eval")]
    return next((c for c in reversed(counts) if isinstance(c, int)), None)


def longer(stage: StageRecord) -> str:
    """The override that gives a training stage ten times its budget."""
    for key in ("minutes", "max_steps", "tokens", "epochs"):
        value = stage.config.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return f"{stage.id}.{key}={value * 10:g}"
    return f"{stage.id}.minutes=60"


def view_next(record: RunRecord) -> list[dict[str, str]]:
    """Commands to go on with, built from what is there."""
    done = {s.verb: s for s in record.stages if s.status == "done"}
    last = done.get("sft") or done.get("pretrain")
    waiting = [s.id for s in record.stages if s.status != "done"]
    again = record.environment.get("command")
    again = " ".join(map(str, again)) if isinstance(again, list) and again[1:2] == ["run"] else "hepta run RECIPE.yaml"
    commands = []
    if waiting and record.recipe:
        commands.append((again, "finish: " + ", ".join(waiting), "继续完成：" + "、".join(waiting)))
    if "sft" in done:
        commands.append((f"hepta chat --model {done['sft'].path}", "talk to the model", "与模型对话"))
    if "tune" in done:
        asking = f"hepta predict --model {done['tune'].path} --text …"
        commands.append((asking, "ask the tuned model about a text", "让微调后的模型判断文本"))
    if last is not None:
        commands.append((f"hepta generate --model {last.path} --prompt …", "let it continue a text", "让模型续写"))
    if last is not None and "corpus" in done:
        text = f"hepta eval --model {last.path} --text {done['corpus'].path}"
        commands.append((text, "score it on text it has not seen", "在未见过的文本上评测"))
    if "pretrain" in done and record.recipe:
        text = f"{again} {longer(done['pretrain'])}"
        after = record.stages[record.stages.index(done["pretrain"]) + 1 :]
        text += f" --fresh-from {after[0].id}" if after else ""
        en = "train longer: pretraining goes on where it ended, what follows is made anew"
        commands.append((text, en, "训练更久：预训练从上次结束处继续，其后阶段重做"))
    return [{"command": command, "en": en, "zh": zh} for command, en, zh in commands]
