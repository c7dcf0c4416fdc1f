"""Tables (CSV, JSON Lines, Parquet …) as rows of just the columns a task needs: guessed, shown, overridable.

``load_labelled`` gives texts with a class or a number; ``load_table`` serves any task that names its columns.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hepta.catalog.documents import language_by_script
from hepta.config import HeptaError, nearest
from hepta.console import say, warn
from hepta.data.files import TABLE_SUFFIXES, Policy, Row, RowError, RowFaults, broken_text, find_files, read_rows

HEADER_ROWS = 100  # rows of JSON Lines whose keys are the columns
SHOWN_COLUMNS = 12
NULLS = {"", "null", "nan", "#n/a"}  # how spreadsheets and pandas write a missing value; "none" may be a class
Task = Literal["classify", "regress"]


@dataclass(frozen=True)
class Column:
    """A column a task needs.

    Attributes:
        role: what it is for, and the key that overrides the guess: text, label, source …
        names: header words that say so, the surest first.
        read: cell → value; raises ``RowError`` where a row has none.
        given: the user's own choice.
    """

    role: str
    names: tuple[str, ...]
    read: Callable[[Any], Any]
    given: str | None = None


@dataclass(frozen=True)
class TableRow:
    """Values by role, and where they come from (``reviews row 17``)."""

    values: dict[str, Any]
    name: str


@dataclass(frozen=True)
class Labelled:
    """A text with its class (str) or number (float)."""

    text: str
    label: str | float
    name: str
    lang: str


def load_table(
    path: Path | str | Sequence[Path | str], columns: Sequence[Column], policy: Policy = "drop", what: str = "rows"
) -> tuple[list[TableRow], dict[str, Any]]:
    """Read the columns a task needs from files, folders of files, or ``NAME=PATH`` of either.

    Args:
        path: one or several; .csv, .tsv, .jsonl, .json (an array) and .parquet, also .gz or .zst.
        columns: what is needed; columns nobody named are guessed and shown.
        policy: ``error`` stops at the first bad row, ``drop`` leaves bad rows out and counts them.
        what: of what the files should be, for messages.

    Returns:
        rows, and a report: rows read and kept, dropped by reason with example rows, columns used.

    Raises:
        HeptaError: no files, a file that cannot be read, no obvious column, a bad row under ``error``, nothing left.
    """
    entries = [path] if isinstance(path, str | Path) else list(path)
    faults, kept, read = RowFaults(policy), [], 0
    used: dict[str, dict[str, str]] = {}
    for entry in entries:
        for file, source in find_files(entry, TABLE_SUFFIXES, what):
            numbered = list(read_rows(file, faults))
            read += len(numbered)
            names = _header(numbered)
            if not names:
                continue
            chosen = choose_columns(names, columns, str(file))
            used[source] = {column.role: name for column, name in zip(columns, chosen, strict=True)}
            for number, row in numbered:
                if row is None:
                    continue
                try:
                    values = {c.role: _value(row, name, c) for c, name in zip(columns, chosen, strict=True)}
                except RowError as error:
                    faults.add(file, number, str(error))
                    continue
                kept.append(TableRow(values, f"{source} row {number}"))
    if faults.counts:
        warn(faults.told(read))
    if not kept:
        raise HeptaError(f"{', '.join(map(str, entries))}: no row left of {read}; {faults.first}")
    report = {
        "rows": read, "kept": len(kept), "dropped": dict(faults.counts), "examples": dict(faults.examples),
        "columns": used,
    }  # fmt: skip
    return kept, report


def choose_columns(names: Sequence[str], columns: Sequence[Column], where: str) -> list[str]:
    """The name of each column a task needs: the user's, else by its header, else what is left over of two.

    Raises:
        HeptaError: a named column that does not exist, or none that is obvious; says which were seen.
    """
    chosen: list[str | None] = []
    for column in columns:
        if column.given is not None and column.given not in names:
            raise HeptaError(f"{where}: no column {column.given!r} ({column.role}); {nearest(column.given, names)}")
        chosen.append(column.given)
    taken = {name for name in chosen if name is not None}
    for place, column in enumerate(columns):
        if chosen[place] is None:
            chosen[place] = _obvious(column.names, [name for name in names if name not in taken])
            taken |= {name for name in chosen if name is not None}
    missing = [place for place, name in enumerate(chosen) if name is None]
    if len(missing) == 1 and len(names) == len(columns):  # all other columns are known
        chosen[missing[0]] = next(name for name in names if name not in taken)
        missing = []
    if missing:
        seen = ", ".join(map(repr, names[:SHOWN_COLUMNS])) + (" …" if len(names) > SHOWN_COLUMNS else "")
        keys = " ".join(f"{columns[place].role}=COLUMN" for place in missing)
        hint = "" if len(names) > 1 else " (row 1 must name the columns, separated by , ; or a tab)"
        raise HeptaError(f"{where}: which column to use is not obvious; columns seen: {seen}{hint}; give {keys}")
    found = [name for name in chosen if name is not None]
    if any(column.given is None for column in columns):
        told = ", ".join(f"{c.role} from {name!r}" for c, name in zip(columns, found, strict=True))
        others = [name for name in names if name not in found]
        rest = f"; not used: {', '.join(map(repr, others[:SHOWN_COLUMNS]))}" if others else ""
        keys = " ".join(f"{column.role}=COLUMN" for column in columns)
        say(f"{where}: {told}{rest} (other columns: {keys})")
    return found


def bare(folded: str) -> str:
    """A text without punctuation, control characters and blanks, to compare by; punctuation alone stays."""
    return "".join(c for c in folded if unicodedata.category(c)[0] not in "PZC") or "".join(folded.split())


def _header(numbered: Sequence[tuple[int, Row | None]]) -> list[str]:
    """The columns of a file, in the order they are first seen."""
    rows = [row for _, row in numbered if row is not None][:HEADER_ROWS]
    return list(dict.fromkeys(str(name) for row in rows for name in row))


def _obvious(words: Sequence[str], names: Sequence[str]) -> str | None:
    """The column whose header is one of the words, the surest word first; else one that has it as a part."""
    folded = {name: re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip() for name in names}
    for word in words:
        for name in names:
            if folded[name] == word:
                return name
    for word in words:
        for name in names:
            parts = folded[name] if not word.isascii() else folded[name].split()
            if word in parts and not folded[name].endswith((" id", " url", " date", " time")):
                return name
    return None


def _value(row: Row, name: str, column: Column) -> Any:
    if row.get(name) is None:
        raise RowError(f"no {column.role}: {name!r} is {'null' if name in row else 'missing'}")
    try:
        return column.read(row[name])
    except RowError as error:
        raise RowError(str(error).format(role=column.role, name=repr(name))) from None


def read_text_cell(value: Any) -> str:
    """A cell that must hold text, blanks around it taken off.

    Raises:
        RowError: no text, or none but blanks; ``{role}`` and ``{name}`` stand for the column.
    """
    if not isinstance(value, str):
        raise RowError("no {role}: {name} is no text but a " + type(value).__name__)
    if broken_text(value):
        raise RowError("not UTF-8: {name} holds bytes that are no text")
    if not value.strip():
        raise RowError("empty {role}: {name} holds nothing but blanks")
    return value.strip()


def read_class_cell(value: Any) -> str:
    """A cell that names a class: text, a whole number or a truth value, as text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isnan(value):
        raise RowError("no {role}: {name} is NaN")
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str) and value.strip().casefold() in NULLS:
        raise RowError("no {role}: {name} is empty or null")
    return read_text_cell(value)


def read_number_cell(value: Any) -> float:
    """A cell that holds a finite number."""
    text = value.strip() if isinstance(value, str) else value
    if isinstance(text, str) and text.casefold() in NULLS:
        raise RowError("no {role}: {name} is empty or null")
    is_number = isinstance(text, int | float) and not isinstance(text, bool)
    is_number = is_number or (isinstance(text, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text))
    if not is_number or not math.isfinite(float(text)):
        shown = repr(text)[:40].replace("{", "(").replace("}", ")")
        raise RowError("not a number: {name} is " + shown)
    return float(text)


TEXT = Column("text", (
    "text", "sentence", "review", "content", "comment", "body", "document", "message", "query", "question", "utterance",
    "tweet", "abstract", "description", "title", "文本", "评论", "内容", "句子", "正文", "评价", "留言",
    "问题", "描述", "标题",
), read_text_cell)  # fmt: skip
LABEL = Column("label", (
    "label", "truth", "category", "class", "target", "topic", "sentiment", "intent", "emotion", "tag", "type", "score",
    "rating", "stars", "标签", "类别", "分类", "情感", "情绪", "意图", "主题", "类型", "评分", "得分", "分数", "星级",
), read_class_cell)  # fmt: skip
NUMBER = Column("label", (
    "score", "rating", "target", "value", "label", "stars", "y", "points", "grade", "price", "similarity",
    "评分", "得分", "分数", "打分", "星级", "数值", "价格", "标签",
), read_number_cell)  # fmt: skip


def load_labelled(
    path: Path | str | Sequence[Path | str],
    task: Task,
    text: str | None = None,
    label: str | None = None,
    policy: Policy = "drop",
) -> tuple[list[Labelled], dict[str, Any]]:
    """Texts with their classes (``classify``) or numbers (``regress``); see ``load_table``.

    Returns:
        examples, and the report with counts by class and language added.
    """
    target = LABEL if task == "classify" else NUMBER
    rows, report = load_table(
        path, [replace(TEXT, given=text), replace(target, given=label)], policy, "texts and labels"
    )
    examples = [
        Labelled(r.values["text"], r.values["label"], r.name, language_by_script(r.values["text"])) for r in rows
    ]
    report["languages"] = dict(Counter(example.lang for example in examples))
    if task == "classify":
        report["classes"] = dict(Counter(str(example.label) for example in examples).most_common())
    return examples, report
