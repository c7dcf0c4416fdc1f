"""What each step of history buys: language models of the same tokens side by side, on the same held-out text."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from hepta.console import duration
from hepta.reports.figures import COLOURS
from hepta.reports.gather import RunRecord, StageRecord
from hepta.reports.outcomes import MOST_TEXT

LEFT, WIDE, BAR, GAP, RIGHT = 118, 430, 13, 12, 52  # labels, longest bar, one bar, between models, figures
IDEAS: dict[str, tuple[str, str, str, str, str]] = {  # model_type → year, name and idea in both languages
    "hepta-ngram": (
        "1948 · 1995", "{order}-gram", "{order} 元文法",
        "count what followed {past} (Shannon; smoothing of Kneser & Ney)",
        "数一数{past}出现过什么（香农；Kneser–Ney 平滑）",
    ),
    "hepta-feedforward": (
        "2003", "feed-forward", "前馈网络",
        "words as vectors, the last {context} side by side into one hidden layer (Bengio et al.)",
        "词变成向量，最近 {context} 个并排送入一个隐藏层（Bengio 等）",
    ),
    "hepta-lstm": (
        "1997 · 2014", "LSTM", "LSTM 循环网络",
        "a memory carried from token to token (Hochreiter & Schmidhuber; Zaremba et al.)",
        "逐词传递的记忆（Hochreiter 与 Schmidhuber；Zaremba 等）",
    ),
    "gpt2": (
        "2017 · 2019", "GPT-2", "GPT-2 注意力",
        "attention: look at every earlier token at once (Vaswani et al.; Radford et al.)",
        "注意力：同时看到此前的每一个词元（Vaswani 等；Radford 等）",
    ),
    "llama": (
        "2017 · 2023", "Llama", "Llama 注意力",
        "attention with today's parts: rotary positions, RMSNorm, SwiGLU (Touvron et al.)",
        "注意力加上今天的部件：旋转位置、RMSNorm、SwiGLU（Touvron 等）",
    ),
}  # fmt: skip


@dataclass
class Entry:
    """One row: a model, or a yardstick such as ``xz -9``. Bits per byte by language, ``all`` among them."""

    name_en: str
    name_zh: str
    bpb: dict[str, float]
    id: str = ""
    year: str = ""
    idea_en: str = ""
    idea_zh: str = ""
    size: int | None = None
    counted: bool = False  # the size is n-grams
    time: str = "–"
    accuracy: float | None = None
    tokens: int | None = None  # read in training, repeats counted


def view_history(record: RunRecord) -> dict[str, Any] | None:
    """The table and its picture; None unless two or more pretrained models were scored on the same text."""
    trained = {str(stage.path.resolve()): stage for stage in record.of("pretrain")}
    trained |= {_place(stage): stage for stage in record.of("pretrain")}
    texts: dict[tuple[str, str], list[tuple[StageRecord, StageRecord]]] = defaultdict(list)
    for score in record.of("eval"):
        model = trained.get(str(score.config.get("model"))) or trained.get(str(score.facts.get("model")))
        if model is not None and score.status == "done":
            texts[str(score.facts.get("text")), str(score.facts.get("split"))].append((model, score))
    nothing: list[tuple[StageRecord, StageRecord]] = []
    text, pairs = max(texts.items(), key=lambda item: len(item[1]), default=(("", ""), nothing))
    if len({model.id for model, _ in pairs}) < 2:
        return None
    entries = [_entry(model, score) for model, score in pairs]
    languages = [name for name in pairs[0][1].facts.get("by_language", {}) if name != "und"]
    columns = [*languages, "all"] if len(languages) > 1 else ["all"]
    rulers = _yardsticks(pairs[0][1].facts)
    seen = [model for number, (model, _) in enumerate(pairs) if model.id not in [m.id for m, _ in pairs[:number]]]
    lengths = sorted({int(score.facts.get("sequence_length") or 0) for _, score in pairs})
    return {
        "entries": entries, "rulers": rulers, "columns": columns, "split": text[1],
        "svg": draw(entries, rulers, columns),
        "best": {name: min(e.bpb[name] for e in entries if name in e.bpb) for name in columns},
        "lengths": ", ".join(f"{length:,}" for length in lengths), "said": _said(seen, dict(zip(
            [model.id for model, _ in pairs], entries, strict=True,
        ))),
    }  # fmt: skip


def _said(models: Sequence[StageRecord], entries: dict[str, Entry]) -> list[dict[str, Any]]:
    """Each prompt with the greedy continuation of every finished model."""
    cards: dict[str, dict[str, Any]] = {}
    for model in models:
        last = max((row.get("step", 0) for row in model.samples), default=0)
        for row in model.samples:
            if row.get("step", 0) == last and row.get("prompt") is not None:
                card = cards.setdefault(str(row["prompt"]), {"prompt": str(row["prompt"]), "answers": []})
                card["lang"] = str(row.get("lang", ""))
                card["answers"].append((entries[model.id], str(row.get("text", ""))[:MOST_TEXT]))
    return list(cards.values())


def _place(stage: StageRecord) -> str:
    return str(stage.config.get("output") or stage.path)


def _bpb(facts: dict[str, Any], key: str) -> dict[str, float]:
    groups = {**(facts.get("by_language") or {}), "all": facts.get("total") or {}}
    return {name: float(scores[key]) for name, scores in groups.items() if isinstance(scores.get(key), int | float)}


def _entry(model: StageRecord, score: StageRecord) -> Entry:
    kind = str(model.model.get("model_type") or "")
    year, name_en, name_zh, idea_en, idea_zh = IDEAS.get(kind, ("", kind or model.id, kind or model.id, "", ""))
    order = model.model.get("order")
    past = order - 1 if isinstance(order, int) else 0
    en = {0: "anything", 1: "the last token"}.get(past, f"the last {past} tokens")
    zh = {0: "文中", 1: "上一个词元之后"}.get(past, f"最近 {past} 个词元之后")
    known = {"order": order, "context": model.model.get("context")}
    seconds, accuracy = model.facts.get("seconds"), (score.facts.get("total") or {}).get("accuracy")
    return Entry(
        name_en.format(**known), name_zh.format(**known), _bpb(score.facts, "bits_per_byte"), model.id, year,
        idea_en.format(past=en, **known), idea_zh.format(past=zh, **known), score.facts.get("parameters"),
        kind == "hepta-ngram", duration(float(seconds)) if isinstance(seconds, int | float) else "–", accuracy,
        model.facts.get("tokens"),
    )  # fmt: skip


def _yardsticks(facts: dict[str, Any]) -> list[Entry]:
    """``xz -9`` on the same text, and guessing every token alike."""
    xz = _bpb(facts, "xz_bits_per_byte")
    rulers = [Entry("xz -9", "xz -9 压缩", xz, idea_en="a general compressor", idea_zh="通用压缩器")]
    uniform, groups = facts.get("uniform_loss"), {**(facts.get("by_language") or {}), "all": facts.get("total") or {}}
    if isinstance(uniform, int | float):
        even = {
            name: uniform / math.log(2) * scores["tokens"] / scores["bytes"]
            for name, scores in groups.items()
            if scores.get("bytes") and scores.get("tokens")
        }
        ideas = "every token equally likely", "每个词元等可能"
        rulers.append(Entry("even guessing", "均匀瞎猜", even, idea_en=ideas[0], idea_zh=ideas[1]))
    return [ruler for ruler in rulers if ruler.bpb]


def draw(entries: Sequence[Entry], rulers: Sequence[Entry], columns: Sequence[str]) -> Markup:
    """Bars of bits per byte, a group for each model, a dashed line for ``xz -9``."""
    most = max((value for entry in entries for value in entry.bpb.values()), default=1.0)
    most = max([most, *(value for ruler in rulers[:1] for value in ruler.bpb.values())]) * 1.02
    group, parts = BAR * len(columns) + GAP, []
    height = group * len(entries) + 34
    for number, entry in enumerate(entries):
        top = 8 + number * group
        parts.append(_label(entry, top + (group - GAP) / 2 + 4))
        for place, name in enumerate(columns):
            if name in entry.bpb:
                parts.append(_bar(entry.bpb[name], most, top + place * BAR, COLOURS[place % len(COLOURS)]))
    for ruler in rulers[:1]:
        for place, name in enumerate(columns):
            if name in ruler.bpb:
                x = LEFT + WIDE * ruler.bpb[name] / most
                line = '<line x1="{x}" x2="{x}" y1="4" y2="{y}" stroke="{c}" stroke-dasharray="4 3"/>'
                parts.append(Markup(line).format(x=round(x, 1), y=height - 26, c=COLOURS[place % len(COLOURS)]))
    for place, name in enumerate(columns):
        key = '<rect x="{x}" y="{y}" width="9" height="9" fill="{c}"/><text x="{t}" y="{b}">{n}</text>'
        x, shown = LEFT + place * 92, f"{name} (- - xz)" if rulers and name in rulers[0].bpb else name
        parts.append(Markup(key).format(
            x=x, y=height - 15, c=COLOURS[place % len(COLOURS)], t=x + 13, b=height - 7, n=shown
        ))  # fmt: skip
    opening = '<svg class="history" viewBox="0 0 {} {}" role="img" aria-label="bits per byte by model">'
    return Markup("").join([Markup(opening).format(LEFT + WIDE + RIGHT, height), *parts, Markup("</svg>")])


def _label(entry: Entry, y: float) -> Markup:
    names = '<tspan class="t-en">{en}</tspan><tspan class="t-zh">{zh}</tspan>'
    text = Markup('<text x="{x}" y="{y}" text-anchor="end">' + names + "</text>")
    return text.format(x=LEFT - 8, y=round(y, 1), en=entry.name_en, zh=entry.name_zh)


def _bar(value: float, most: float, top: float, colour: str) -> Markup:
    width = round(WIDE * value / most, 1)
    bar = '<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="{c}"/><text class="note" x="{t}" y="{b}">{v:.3f}</text>'
    return Markup(bar).format(
        x=LEFT, y=top, w=width, h=BAR - 2, c=colour, t=round(LEFT + width + 5, 1), b=top + BAR - 4, v=value
    )
