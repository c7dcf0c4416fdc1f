"""The stages of a run as a drawing: what feeds what, how long each took."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH, ROW, LEFT, BOX = 460, 66, 12, 330
VERB_ZH = {
    "fetch": "下载数据", "corpus": "清洗语料", "tokenizer": "训练分词器", "tokens": "编码成词元", "pretrain": "预训练",
    "sft": "指令微调", "tune": "任务微调", "eval": "评测", "compress distill": "蒸馏", "compress prune": "剪枝",
}  # fmt: skip
VERB_EN = {
    "fetch": "fetch data", "corpus": "clean the corpus", "tokenizer": "train the tokenizer",
    "tokens": "encode to tokens", "pretrain": "pretrain", "sft": "instruction tuning", "eval": "evaluate",
    "tune": "tune for a task", "compress distill": "distil", "compress prune": "prune",
}  # fmt: skip


@dataclass
class Node:
    """One stage: what it says, how long it took, and the numbers of the stages that feed it."""

    id: str
    verb: str
    status: str
    note: str  # figures, the same in both languages
    time: str
    share: float  # of the longest stage's time
    inputs: list[int] = field(default_factory=list)


def draw_stages(nodes: Sequence[Node]) -> Markup:
    """An ``<svg>`` with one box per stage from top to bottom, edges for what feeds what."""
    height = ROW * len(nodes) + 8
    parts = [Markup('<svg class="stages" viewBox="0 0 {} {}" role="img" aria-label="stages">').format(WIDTH, height)]
    parts.append(Markup(
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>'
    ))  # fmt: skip
    for number, node in enumerate(nodes):
        parts += [_edge(source, number) for source in node.inputs]
    parts += [_box(number, node) for number, node in enumerate(nodes)]
    return Markup("").join([*parts, Markup("</svg>")])


def _edge(source: int, target: int) -> Markup:
    top, bottom = source * ROW + 52, target * ROW + 8
    if target == source + 1:
        path = f"M{LEFT + 40} {top}V{bottom - 1}"
    else:  # around the boxes between, further out the further it goes
        start, end, out = source * ROW + 30, target * ROW + 24, LEFT + BOX + 14 + 13 * min(target - source, 7)
        path = f"M{LEFT + BOX} {start}C{out} {start} {out} {end} {LEFT + BOX + 1} {end}"
    return Markup('<path class="edge" d="{}" marker-end="url(#tip)"/>').format(path)


def _box(number: int, node: Node) -> Markup:
    y = number * ROW + 8
    en, zh = VERB_EN.get(node.verb, node.verb), VERB_ZH.get(node.verb, node.verb)
    return Markup(
        '<g class="stage {status}"><rect x="{x}" y="{y}" width="{w}" height="44" rx="7"/>'
        '<rect class="time" x="{x}" y="{y3}" width="{bar}" height="4" rx="2"/>'
        '<text x="{tx}" y="{y1}"><tspan class="id">{id}</tspan>'
        '<tspan class="t-en" dx="8">{en}</tspan><tspan class="t-zh" dx="8">{zh}</tspan></text>'
        '<text class="note" x="{tx}" y="{y2}">{note}</text>'
        '<text class="clock" x="{tr}" y="{y1}" text-anchor="end">{time}</text></g>'
    ).format(
        status=node.status, x=LEFT, y=y, w=BOX, y3=y + 40, bar=round(BOX * min(max(node.share, 0.0), 1.0), 1),
        tx=LEFT + 12, tr=LEFT + BOX - 12, y1=y + 18, y2=y + 34,
        id=escape(node.id), en=en, zh=zh, note=node.note, time=node.time,
    )  # fmt: skip
