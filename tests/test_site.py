"""The handbook as a site: every page in both languages, nothing loaded from elsewhere, Chinese found by the search."""

import functools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from browser import chromium, console, visit
from shell_blocks import ROOT

LOADS = {  # attributes that make a browser fetch something when a page opens
    ("script", "src"), ("link", "href"), ("img", "src"), ("img", "srcset"), ("iframe", "src"), ("source", "src"),
    ("video", "src"), ("audio", "src"), ("object", "data"), ("embed", "src"), ("form", "action"), ("base", "href"),
}  # fmt: skip


SEARCH = """<!DOCTYPE html><meta charset="utf-8"><iframe src="/zh/index.html"></iframe><script>
onload = function () {
  var page = document.querySelector("iframe").contentDocument, box = page.querySelector("input[name=query]");
  box.focus();
  box.value = "WORD";
  box.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}));
  setInterval(function () {
    var links = Array.from(page.querySelectorAll(".md-search-result__link"), function (one) { return one.pathname; });
    if (links.length) fetch("/found", {method: "POST", body: JSON.stringify(links)});
  }, 200);
};
</script>"""


class Fetched(HTMLParser):
    """Collects what a page loads, and the rest of what would be worth knowing about it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if (tag, name) in LOADS]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_stands_in_both_languages(site):
    for page in (ROOT / "docs").glob("*.md"):
        name = page.name.removesuffix(".md").removesuffix(".zh") + ".html"
        english, chinese = ((site / at / name).read_text(encoding="utf-8") for at in (".", "zh"))
        assert '<html lang="en"' in english
        assert '<html lang="zh"' in chinese
        if page.name.endswith(".zh.md"):
            title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            assert title.split("`")[0].strip() in chinese
            assert re.search(r"[\u4e00-\u9fff]", re.sub(r"(?s)^.*<article|</article>.*$", "", chinese))


def test_pages_load_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        parser = Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        assert [url for url in parser.found if re.match(r"(https?:)?//", url)] == [], page
        assert 'class="mermaid' not in page.read_text(encoding="utf-8"), "the theme would load mermaid from a CDN"
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_markdown_of_github_is_markdown_of_the_site(site):
    """Tables and fences that Python-Markdown would take for running text are told by what is left of them."""
    for page in site.rglob("*.html"):
        text = re.sub(r"(?s)<pre.*?</pre>|<code.*?</code>", "", page.read_text(encoding="utf-8"))
        assert not re.search(r"```|\|---|<p>\s*(\||- |\d\. )", text), page


def test_the_search_knows_chinese_words_and_one_page_of_each(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    separator = re.compile(index["config"]["separator"])
    chinese = [entry for entry in index["docs"] if entry["location"].startswith("zh/")]
    found = {word for entry in chinese for word in separator.split(entry["title"] + " " + entry["text"])}
    assert {"语料", "训练", "模型"} <= found
    locations = [entry["location"] for entry in index["docs"]]
    assert len(locations) == len(set(locations))


class Served(ThreadingHTTPServer):
    """The site on 127.0.0.1; keeps what pages report."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Answer, directory=str(folder)))
        self.reports: list[list[str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(SimpleHTTPRequestHandler):
    """Files, and a place to report to."""

    def do_POST(self) -> None:
        self.server.reports.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: tests say what they find."""


@pytest.fixture
def served(site) -> Iterator[Served]:
    with Served(site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.browser
@pytest.mark.parametrize("page", ["index.html", "zh/index.html", "corpus.html", "zh/corpus.html"])
def test_a_page_opens_without_a_word_on_the_console(served, tmp_path, page):
    done = visit(tmp_path, f"{served.url}/{page}", 5000)
    assert console(done) == []
    assert "</article>" in done.stdout


@pytest.mark.browser
def test_the_search_finds_a_chinese_word(served, site, tmp_path):
    (site / "search.html").write_text(SEARCH.replace("WORD", "分词器"), encoding="utf-8")
    command = [*chromium(tmp_path), "--remote-debugging-port=0"]
    browser = subprocess.Popen([*command, f"{served.url}/search.html"], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not served.reports and time.monotonic() < until:
        time.sleep(0.2)
    browser.terminate()
    browser.wait(30)
    (site / "search.html").unlink()
    assert served.reports[0][0] == "/zh/tokenizer.html"
