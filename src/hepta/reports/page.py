"""``hepta report``: one self-contained HTML page for a recipe's output, in English and Chinese.

The page loads nothing from anywhere. Text from models and data is hostile until escaped: Jinja escapes
everything, and a content policy forbids any script but the page's own.
"""

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from hepta import __version__
from hepta.config import HeptaError
from hepta.reports import compare, history, outcomes, tasks, views
from hepta.reports.config import ReportConfig
from hepta.reports.gather import RunRecord, gather
from hepta.stage import write_atomic

OUTCOMES_ZH = {
    "read": "读入", "kept": "保留", "dropped": "丢弃", "quarantined": "隔离", "dropped: language": "丢弃：语言",
    "dropped: rules": "丢弃：规则", "dropped: dedup": "丢弃：重复",
}  # fmt: skip
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass
class ReportResult:
    """The page written: where, how large, which stages it shows, and what could not be read."""

    path: Path
    bytes: int
    stages: dict[str, str]
    problems: list[str] = field(default_factory=list)


def visible(value: Any) -> str:
    """Text for the page: control characters, which HTML forbids, become a visible mark."""
    return CONTROL.sub("\ufffd", str(value))


def two(en: str, zh: str) -> Markup:
    """The same in both languages; the page shows one of them."""
    return Markup('<span class="t-en" lang="en">{}</span><span class="t-zh" lang="zh">{}</span>').format(en, zh)


def environment() -> Environment:
    """Jinja with everything escaped and nothing undefined let through."""
    made = Environment(
        loader=PackageLoader("hepta.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda value: value if isinstance(value, Markup) else visible(value),
    )  # fmt: skip
    made.globals.update(t=two, version=__version__, language=lambda code: views.LANGUAGES.get(code, code))
    made.globals.update(outcome_zh=OUTCOMES_ZH)
    made.filters.update(number=views.number, size=views.size)
    return made


def asset(name: str, room: str = "hepta.reports") -> str:
    """The text of a style or script among a room's templates."""
    return files(room).joinpath("templates", name).read_text(encoding="utf-8")


def digest_script(script: str) -> str:
    """What the content policy knows the page's own script by: base64 of its sha256."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


SECTIONS: dict[str, Callable[[RunRecord], Any]] = {
    "parameters": views.parameters_of, "stages": views.view_stages, "machine": views.view_machine,
    "fetch": views.view_fetch, "corpus": views.view_corpus, "tokenizers": views.view_tokenizer,
    "tokens": views.view_tokens, "training": outcomes.view_training, "samples": outcomes.view_samples,
    "tasks": tasks.view_tasks, "compared": compare.view_compare, "history": history.view_history,
    "results": outcomes.view_results, "losses": outcomes.view_losses, "commands": views.view_next,
}  # fmt: skip
PARTS = ("limits", "overview", "data", "learning", "tasks", "history", "compare", "results")
ALONE = {"compare": ("compare",)}  # verbs whose own page shows these parts only


def parts_of(record: RunRecord) -> tuple[str, ...]:
    """The parts of a page: all, unless it is of a single stage that needs few."""
    return ALONE.get(record.stages[0].verb, PARTS) if len(record.stages) == 1 else PARTS


def render(record: RunRecord) -> str:
    """The page of a run as HTML text; a part whose facts have an unknown form is left out, and said to be."""
    jinja = environment()
    values = {name: views.guarded(section, record) for name, section in SECTIONS.items()}
    values |= {"note": str(record.recipe.get("note") or "")}
    parts = []
    for name in parts_of(record):
        try:
            parts.append(Markup(jinja.get_template(f"{name}.html").render(values)))
        except (TypeError, ValueError, AttributeError, KeyError, UndefinedError) as error:
            record.problems.append(f"part {name!r} left out, its facts have an unknown form: {error}")
    script = asset("page.js")
    return jinja.get_template("page.html").render(
        name=record.name, parts=parts, problems=record.problems, stages=values["stages"],
        missing=[stage for stage in record.stages if stage.status != "done"],
        style=Markup(asset("page.css")), script=Markup(script), script_digest=digest_script(script),
    )  # fmt: skip


def write_report(config: ReportConfig) -> ReportResult:
    """Write the page: the library function behind ``hepta report``.

    Raises:
        HeptaError: no such run, or nothing in it that hepta made.
    """
    record = gather(config.run)
    path = config.output or config.run / "report.html"
    if path.is_dir():
        raise HeptaError(f"{path}: is a directory; --output wants a file name such as {path / 'report.html'}")
    page = render(record).encode("utf-8")
    write_atomic(path, page)
    return ReportResult(path, len(page), {stage.id: stage.status for stage in record.stages}, record.problems)


def show_report(result: ReportResult) -> str:
    """Where the page is, and what is missing from it."""
    lines = [f"{result.path}  ({views.size(result.bytes)}, one file, opens in any browser)"]
    unfinished = [f"{name} ({status})" for name, status in result.stages.items() if status != "done"]
    if unfinished:
        lines.append("not finished, and said so on the page: " + ", ".join(unfinished))
    return "\n".join(lines + [f"- {problem}" for problem in result.problems])
