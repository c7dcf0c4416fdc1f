"""An explanation as one self-contained HTML page, with its facts in a JSON file beside it.

The page is drawn in the reader's browser by its own script from the facts it carries; it loads nothing from anywhere,
and a content policy knows the script by its digest. Text from models is hostile until escaped: it stands in the page
as JSON without ``<``, and scripts put it there as text, never as HTML.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, PackageLoader
from markupsafe import Markup

from hepta.config import HeptaError
from hepta.reports.page import asset, digest_script, environment
from hepta.stage import write_atomic

ROOM = "hepta.explanation"


def page_path(name: str, output: Path | None) -> Path:
    """Where a page goes: ``output``, else ``<name>.html`` in the working directory. Asked before any work is done.

    Raises:
        HeptaError: ``output`` is a directory, lies below a file, or does not end in .html.
    """
    path = Path(f"{name}.html") if output is None else output
    if path.is_dir():
        raise HeptaError(f"{path}: is a directory; --output wants a file name such as {path / name}.html")
    if path.suffix.lower() not in (".html", ".htm"):
        raise HeptaError(f"{path}: --output wants a file name that ends in .html, such as {path.name}.html")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise HeptaError(f"{path}: {above} is a file; choose another --output")
    return path


@dataclass(frozen=True)
class Explained:
    """What was written: the page, its facts' file, and the facts."""

    page: str
    file: str
    facts: dict[str, Any]


def explained(name: str, title: tuple[str, str], facts: dict[str, Any], path: Path) -> Explained:
    """Write a page and its facts, over what was there.

    Args:
        name: of the page's kind, ``attention``: ``templates/<name>.html`` extends ``view.html`` and may use ``facts``;
            ``<name>.js`` runs after ``view.js``; ``<name>.css``, where there is one, is added to the common style.
        title: the heading in English and Chinese.
        facts: what JSON can hold; the script reads it as ``view.facts``.
        path: the HTML file, from ``page_path``; the facts go to the same name with ``.json``.

    Raises:
        MachineError: the disk is full or read-only.
    """
    jinja = environment()
    jinja.loader = ChoiceLoader([PackageLoader(ROOM), PackageLoader("hepta.reports")])
    script = "\n".join((asset("page.js"), asset("view.js", ROOM), asset(f"{name}.js", ROOM)))
    styles = [asset("page.css"), asset("view.css", ROOM)]
    if files(ROOM).joinpath("templates", f"{name}.css").is_file():
        styles.append(asset(f"{name}.css", ROOM))
    page = jinja.get_template(f"{name}.html").render(
        name=name, title=title, facts=facts, data=Markup(embedded(facts)), style=Markup("\n".join(styles)),
        script=Markup(script), script_digest=digest_script(script),
    )  # fmt: skip
    write_atomic(path.with_suffix(".json"), json.dumps(facts, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomic(path, page)
    return Explained(str(path), str(path.with_suffix(".json")), facts)


def embedded(facts: dict[str, Any]) -> str:
    """Facts as JSON that can stand inside a ``<script>`` element: ASCII, and nothing that could end the element."""
    text = json.dumps(facts, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\x7f", "\\u007f")
