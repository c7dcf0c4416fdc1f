"""What training came to: curves, answers before and after, results, and all that was lost on the way."""

from typing import Any

from markupsafe import Markup

from hepta.console import duration
from hepta.reports.figures import COLOURS, Figure, Line, draw
from hepta.reports.gather import SMALLER_VERBS, TRAINING_VERBS, RunRecord, StageRecord
from hepta.reports.usage import usage_figures, usage_rows
from hepta.reports.views import number, size

MOST_TEXT = 1200  # characters of one answer on the page


def _column(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    pairs = [(row["step"], row[key]) for row in rows if _is_number(row.get(key)) and _is_number(row.get("step"))]
    return [float(a) for a, _ in pairs], [float(b) for _, b in pairs]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def xz_by_language(record: RunRecord) -> dict[str, float]:
    """``xz -9`` bits per byte of the evaluated text, by language, from the last evaluation."""
    found: dict[str, float] = {}
    for stage in record.of("eval"):
        for lang, scores in (stage.facts.get("by_language") or {}).items():
            if _is_number(scores.get("xz_bits_per_byte")):
                found[lang] = scores["xz_bits_per_byte"]
    return found


def curves(stage: StageRecord, xz: dict[str, float]) -> list[tuple[str, str, Markup]]:
    """Pictures of one training run: loss, bits per byte, speed and learning rate; title in both languages."""
    rows, tag = stage.metrics, f"{stage.verb}-{stage.id}"
    loss = [Line("train", *_column(rows, "loss"), colour=COLOURS[0])]
    loss.append(Line("held out", *_column(rows, "val_loss"), dots=True, colour=COLOURS[1]))
    known = stage.facts.get("uniform_loss")
    uniform: dict[str, float] = {"ln V": float(known)} if isinstance(known, int | float) else {}
    figures = [(
        "Loss (nats per token); the dashed line is guessing every token alike", "损失（每词元奈特）；虚线为均匀瞎猜",
        Figure(f"loss-{tag}", "nats per token", loss, uniform),
    )]  # fmt: skip
    evaluated = [row for row in rows if isinstance(row.get("val_bpb"), dict)]
    names = sorted({lang for row in evaluated for lang in row["val_bpb"] if lang not in ("all", "und")})
    spread = [{"step": row.get("step"), **row["val_bpb"]} for row in evaluated]
    bpb = [Line(lang, *_column(spread, lang), dots=True) for lang in names]
    levels = {f"xz -9 {lang}": value for lang, value in xz.items() if lang in names} if stage.verb == "pretrain" else {}
    figures.append((
        "Bits per byte of held-out text", "留出文本的每字节比特数", Figure(f"bpb-{tag}", "bits per byte", bpb, levels),
    ))  # fmt: skip
    for title_en, title_zh, key, label in (
        ("Learning rate", "学习率", "lr", "learning rate"),
        ("Tokens per second", "每秒词元数", "tokens_per_second", "tokens/s"),
        ("Gradient norm", "梯度范数", "grad_norm", "gradient norm"),
    ):  # fmt: skip
        figures.append((title_en, title_zh, Figure(f"{key}-{tag}", label, [Line(label, *_column(rows, key))])))
    figures += usage_figures(rows, tag)
    drawn = [(en, zh, draw(figure)) for en, zh, figure in figures]
    return [(en, zh, Markup(svg)) for en, zh, svg in drawn if svg is not None]


def view_training(record: RunRecord) -> list[dict[str, Any]]:
    """Per training run: figures and curves."""
    xz = xz_by_language(record)
    return [
        {"id": s.id, "verb": s.verb, "status": s.status, "rows": _training_rows(s), "figures": curves(s, xz)}
        for s in record.of("pretrain", "sft", *SMALLER_VERBS)
        if s.metrics or s.verb not in SMALLER_VERBS
    ]


def _training_rows(stage: StageRecord) -> list[tuple[str, str, str]]:
    f, final, before = stage.facts, stage.facts.get("final") or {}, stage.facts.get("before") or {}
    if not f:
        return []
    rows = [
        ("parameters", "参数量", number(f.get("parameters"))),
        ("trained parameters", "训练的参数", number(f.get("trained_parameters"))),
        ("steps", "步数", number(f.get("steps") or None)),
        ("tokens read", "读过的词元", number(f.get("tokens"))),
        ("time in steps", "训练用时", duration(f["seconds"]) if _is_number(f.get("seconds")) else "–"),
        ("tokens per second", "每秒词元数", number(f.get("tokens_per_second"), ",.0f")),
        ("share of the measured matmul peak (MFU)", "达到实测矩阵乘峰值的比例 (MFU)",
         number(f.get("mfu") or None, ".1%")),
        ("share of what the matmuls alone allow", "达到纯矩阵乘上限的比例", number(f.get("share_of_matmul"), ".1%")),
        ("train loss at the end", "最终训练损失", number(final.get("train_loss"), ".4f")),
        ("held-out loss before → after", "留出损失 前 → 后",
         _arrow(before.get("val_loss"), final.get("val_loss"), ".4f")),
        ("uniform loss ln V", "均匀猜测损失 ln V", number(f.get("uniform_loss"), ".4f")),
        ("next token right (top-1) before → after", "下一词元命中率 前 → 后",
         _arrow(before.get("val_accuracy"), final.get("val_accuracy"), ".1%")),
        ("precision", "精度", str(f.get("precision", "–")) + (" · compiled" if f.get("compiled") else "")),
        ("peak learning rate", "峰值学习率", number(f.get("lr") or None, ".3g")),
        ("peak memory", "内存峰值", size(f.get("peak_memory_bytes"))), *usage_rows(f),
        ("weights sha256", "权重 sha256", str(f.get("weights_sha256", "–"))),
    ]  # fmt: skip
    if f.get("trained_parameters") == f.get("parameters"):
        del rows[1]
    return [row for row in rows if row[2] != "–"]


def _arrow(before: Any, after: Any, form: str) -> str:
    return "–" if not _is_number(after) else f"{number(before, form)} → {number(after, form)}"


def _life(record: RunRecord) -> list[StageRecord]:
    """The runs that lead to the last model: tuning, and the pretraining it began from; all where nothing was tuned."""
    tuned = [str(stage.config.get("model")) for stage in record.of("sft")]
    runs = record.of("pretrain", "sft") or record.of(*SMALLER_VERBS)
    line = [s for s in runs if s.verb == "sft" or str(s.config.get("output") or s.path) in tuned]
    return line if any(s.verb == "pretrain" for s in line) else runs


def view_samples(record: RunRecord) -> dict[str, Any] | None:
    """The same prompts at each point of the model's life: a column per point, a card per prompt."""
    runs = [stage for stage in _life(record) if stage.samples]
    if not runs:
        return None
    points: list[tuple[str, str, StageRecord, int]] = []
    first = next((run for run in runs if len({row.get("step", 0) for row in run.samples}) > 1), runs[0])  # n-grams: one
    start = min(row.get("step", 0) for row in first.samples)
    random = first.verb == "pretrain"
    titles = ("random weights", "随机初始化") if random else (f"before {first.id}", f"{first.id} 之前")
    points.append((titles[0], titles[1], first, start))
    names = {"pretrain": ("after pretraining", "预训练之后"), "sft": ("after chat tuning", "指令微调之后")}
    names |= {"compress distill": ("after distilling", "蒸馏之后")}
    names |= {"compress prune": ("after training on", "接着训练之后")}
    for stage in runs:
        en, zh = names[stage.verb]
        several = len([s for s in runs if s.verb == stage.verb]) > 1
        tag = f" ({stage.id})" if several else ""
        points.append((en + tag, zh + tag, stage, max(row.get("step", 0) for row in stage.samples)))
    cards: dict[str, dict[str, Any]] = {}
    for index, (_, _, stage, step) in enumerate(points):
        for row in stage.samples:
            if row.get("step", 0) == step and row.get("prompt") is not None:
                _put(cards, row, index, len(points), as_chat=False)
    for index, (_, _, stage, _) in enumerate(points[1:], 1):
        following = points[index + 1][2] if index + 1 < len(points) else None
        if following is not None and following is not stage:  # what the next run was asked before its first step
            for row in following.samples:
                if row.get("step", 0) == 0 and row.get("prompt") is not None:
                    _put(cards, row, index, len(points), as_chat=True)
    ordered = sorted(cards.values(), key=lambda card: card["held_out"])
    return {"points": [(en, zh) for en, zh, _, _ in points], "cards": ordered}


def _put(cards: dict[str, dict[str, Any]], row: dict[str, Any], index: int, count: int, as_chat: bool) -> None:
    """File one answer under its prompt; an answer already there stays."""
    card = cards.setdefault(str(row["prompt"]), {
        "prompt": str(row["prompt"]), "lang": str(row.get("lang", "")), "held_out": False, "answers": [None] * count,
    })  # fmt: skip
    card["held_out"] = card["held_out"] or bool(row.get("held_out"))
    if card["answers"][index] is None:
        text = str(row.get("text", ""))
        cut = len(text) > MOST_TEXT
        kind = str(row.get("kind", ""))
        card["answers"][index] = {"text": text[:MOST_TEXT], "cut": cut, "kind": kind, "as_chat": as_chat}


def view_results(record: RunRecord) -> dict[str, Any]:
    """Scores beside xz, held-out loss of tuning, P(stop), the language of answers."""
    languages = [
        {
            "stage": stage.id, "split": stage.facts.get("split"), "lang": lang, "bpb": s.get("bits_per_byte"),
            "sliding": s.get("bits_per_byte_sliding"), "xz": s.get("xz_bits_per_byte"),
            "accuracy": s.get("accuracy"), "perplexity": s.get("perplexity_per_token"),
            "beats": s["bits_per_byte"] < s["xz_bits_per_byte"]
            if _is_number(s.get("bits_per_byte")) and _is_number(s.get("xz_bits_per_byte")) else None,
        }
        for stage in record.of("eval")
        for lang, s in (stage.facts.get("by_language") or {}).items()
    ]  # fmt: skip
    widest = max((row[key] for row in languages for key in ("bpb", "xz") if _is_number(row[key])), default=1.0) or 1.0
    tuning = []
    for stage in record.of("sft"):
        before, final = stage.facts.get("before") or {}, stage.facts.get("final") or {}
        asked = stage.facts.get("prompt_language") or {}
        tuning.append({
            "id": stage.id, "before": before.get("val_loss"), "after": final.get("val_loss"),
            "stops": _stops(stage.facts, before, final),
            "languages": {k: v for k, v in asked.items() if isinstance(v, dict)},
        })  # fmt: skip
    return {"languages": languages, "widest": widest, "tuning": tuning}


def _stops(facts: dict[str, Any], before: dict[str, Any], final: dict[str, Any]) -> list[tuple[str, str, str]]:
    """P(stop) where answers end, on held-out conversations before and after, and on those trained on."""
    known = facts.get("p_stop")
    known = known if isinstance(known, dict) else {"held_out": known}
    held_out = known.get("held_out") if _is_number(known.get("held_out")) else final.get("p_stop")
    rows = [("held out", "留出", _arrow(before.get("p_stop"), held_out, ".3f"))]
    if _is_number(known.get("train")):
        rows.append(("trained on", "训练集", number(known["train"], ".3f")))
    return [row for row in rows if row[2] != "–"]


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested counts as ``key.key: value`` pairs; zeros and empty things left out."""
    if isinstance(value, dict):
        named = [(f"{prefix}.{key}" if prefix else str(key), item) for key, item in value.items()]
        return [pair for name, item in named for pair in flatten(item, name)]
    if isinstance(value, list):
        return [(prefix, "; ".join(map(str, value[:8])) + (" …" if len(value) > 8 else ""))] if value else []
    return [] if value in (0, None, "", False) else [(prefix, number(value) if isinstance(value, int) else str(value))]


def view_losses(record: RunRecord) -> list[dict[str, Any]]:
    """Everything that was dropped, cut, skipped or warned about, by stage."""
    found = []
    for stage in record.stages:
        pairs: list[tuple[str, str]] = []
        facts = stage.facts
        if stage.status != "done":
            pairs.append(("status", stage.status))
        if stage.verb == "corpus":
            keys = ("dropped", "quarantined", "repaired", "reasons", "duplicates", "warnings")
            pairs += flatten({key: facts.get(key) for key in keys})
        if stage.verb == "tokens":
            pairs += flatten({"documents without text": facts.get("empty")})
        if stage.verb == "fetch":
            names = facts.get("names") or {}
            pairs += flatten({name: entry.get("caution") for name, entry in names.items() if isinstance(entry, dict)})
        if stage.verb in TRAINING_VERBS:
            pairs += flatten(facts.get("data_report") or {}, "data")
            skips = [row for row in stage.journal if row.get("event") == "skip"]
            pairs += flatten({"skipped steps": facts.get("skipped_steps") or len(skips)})
            pairs += [(f"step {row.get('step')}", str(row.get("reason"))) for row in skips[:10]]
            pairs += flatten({"warnings": facts.get("warnings")})
        if stage.verb == "eval":
            pairs += flatten({"notes": facts.get("notes")})
        if pairs:
            found.append({"id": stage.id, "verb": stage.verb, "pairs": pairs})
    return found
