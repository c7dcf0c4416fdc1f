"""The report: one self-contained page, hostile text harmless, both languages, honest about what is missing."""

import html
import json
import re
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
from demo_output import HOSTILE, PROMPTS

from hepta.reports.config import ReportConfig
from hepta.reports.figures import Figure, Line, draw, thin
from hepta.reports.gather import gather
from hepta.reports.page import show_report, write_report

VOID = {"meta", "input", "br", "img", "link", "hr"}


class Page(HTMLParser):
    """A page's elements, ids, attributes and text; complains about tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text, self.open, self.wrong = "", [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def made(run: Path) -> Page:
    return Page(write_report(ReportConfig(run=run)).path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(whole_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of the whole demo, pictures and all."""
    output = tmp_path_factory.mktemp("page") / "report.html"
    return Page(write_report(ReportConfig(run=whole_demo, output=output)).path.read_text(encoding="utf-8"))


def test_the_page_is_one_well_formed_file_that_loads_nothing(page):
    assert page.wrong == []
    assert page.open == []
    assert page.values("src") == []
    assert all(value.startswith("#") for value in [*page.values("href"), *page.values("xlink:href")])
    assert not re.search(r"url\((?!#)", page.source)
    assert "@import" not in page.source
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert "link" not in page.tags


def test_ids_are_unique_over_all_pictures(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    named = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page.source)
    assert len(named) > 20
    assert {a or b for a, b in named} <= set(ids)  # and what refers to an id finds it


def test_hostile_text_from_models_and_data_stays_text(page):
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    assert page.text.count("<script>document.title='owned'</script>") >= 5  # answers, a reason, a token
    assert "{{ 7*7 }}" in page.text
    assert "\x00" not in page.source
    assert "default-src 'none'" in html.unescape(page.source)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("field", ["name", "note"])
def test_a_hostile_recipe_stays_text(demo, field):
    import yaml

    recipe = yaml.safe_load((demo / "recipe.yaml").read_text(encoding="utf-8"))
    recipe[field] = "<script>alert(1)</script>"
    recipe["stages"][0]["verb"] = '"><script>alert(2)</script>'
    (demo / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    page = made(demo)
    assert page.tags.count("script") == 1
    assert "<script>alert(1)</script>" in page.text


def test_everything_said_is_said_in_both_languages(page):
    source = page.source
    english = re.findall(r'class="t-en"[^>]*>([^<]*)<', source)
    chinese = re.findall(r'class="t-zh"[^>]*>([^<]*)<', source)
    assert len(english) == len(chinese) > 60
    assert sum(bool(re.search("[\u4e00-\u9fff]", text)) for text in chinese) > 0.95 * len(chinese)
    assert not any(re.search("[\u4e00-\u9fff]", text) for text in english)


def test_the_page_shows_what_was_read_learnt_said_and_lost(page):
    text = page.text
    shown = [
        "10,153", "near-duplicate", "quarantined", "CC BY-SA 3.0", "3,170,496", "cannot reason", "hepta run recipes",
        "ln V = 9.011", "xz -9 en = 2.300", "10 / 10", "9 / 10", "5.0000 → 3.1000", "loss is not finite",
        "2 files without text", "empty answer", "2 documents without text", "mind", "0.960", "0.970", "31.0%",
        "hepta chat --model", "held out", "base.minutes=60 --fresh-from score", "random weights", "after pretraining",
        "after chat tuning", "beats xz", "does not beat xz",
    ]  # fmt: skip
    assert [word for word in shown if word not in text] == []
    for prompt in PROMPTS:
        assert prompt in text


def test_each_prompt_stands_once_with_its_answers_in_the_order_of_the_models_life(page):
    source = page.source
    card = source[source.index("I love programming.") :]
    card = card[: card.index("</article>")]
    assert card.index("xq zz") < card.index("of the city of the") < card.index("&lt;script&gt;")
    assert "mid" not in re.findall(r"<pre><bdi>([^<]*)", card)
    held = source[source.index("什么是光合作用？") :]
    held = held[: held.index("</article>")]
    assert 'class="badge"' in held
    assert held.index("not asked here") < held.index("的的的") < held.index("光合作用是植物")
    assert "asked as chat" in held


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("gone", ["raw", "corpus", "tok", "tokens", "base", "score", "chat", "all but raw"])
def test_a_missing_stage_is_said_and_the_rest_is_shown(demo, gone):
    for name in ("corpus", "tok", "tokens", "base", "score", "chat") if gone == "all but raw" else (gone,):
        shutil.rmtree(demo / name)
    result = write_report(ReportConfig(run=demo))
    page = Page(result.path.read_text(encoding="utf-8"))
    assert page.wrong == []
    assert "These stages are not finished" in page.text
    name = "base" if gone == "all but raw" else gone
    assert result.stages[name] == "missing"
    assert f"{name} (missing)" in page.text.replace("\n", "")
    assert "hepta run recipes/demo.yaml" in page.text
    assert name in show_report(result)


@pytest.mark.usefixtures("no_pictures")
def test_an_unfinished_stage_shows_what_it_has_so_far(demo):
    (demo / "chat" / "manifest.json").rename(demo / "chat" / ".stage.json")
    page = made(demo)
    assert "unfinished" in page.text
    assert "光合作用是植物" in page.text


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("junk", [None, [], "text", 7, {"x": "y"}, [None], {"en": None}])
@pytest.mark.parametrize("stage", ["raw", "corpus", "tok", "tokens", "base", "score", "chat"])
def test_facts_of_an_unknown_form_never_stop_the_page(demo, stage, junk):
    path = demo / stage / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["facts"] = dict.fromkeys(manifest["facts"], junk)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    page = made(demo)
    assert page.wrong == []
    assert "I love programming." in page.text


@pytest.mark.usefixtures("no_pictures")
def test_broken_files_are_counted_on_the_page(demo):
    with (demo / "base" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 201, "lo\n[1]\n')
    (demo / "score" / "manifest.json").write_text("{half")
    (demo / "environment.json").write_text("[]")
    result = write_report(ReportConfig(run=demo))
    text = Page(result.path.read_text(encoding="utf-8")).text
    assert "metrics.jsonl of base: 2 lines could not be read" in text
    assert "manifest.json of score is not readable" in text
    assert len(result.problems) >= 3
    assert result.stages["score"] == "unreadable"


def test_one_runs_directory_has_a_page_of_its_own(demo):
    page = made(demo / "base")
    assert (demo / "base" / "report.html").is_file()
    assert "random weights" in page.text
    assert "after pretraining" in page.text
    assert "No corpus was built here." in page.text


@pytest.mark.usefixtures("no_pictures")
def test_a_moved_output_folder_and_one_without_its_recipe_still_work(demo):
    moved = demo.parent / "elsewhere"
    demo.rename(moved)
    assert set(write_report(ReportConfig(run=moved)).stages.values()) == {"done"}
    (moved / "recipe.yaml").unlink()
    found = gather(moved)
    assert [stage.id for stage in found.stages] == ["raw", "corpus", "tok", "tokens", "base", "score", "chat"]


def test_slips_are_one_line(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, said in [(tmp_path / "nowhere", "no such directory"), (tmp_path / "empty", "nothing here")]:
        told = cli("report", path)
        assert told.code == 2
        assert told.err.count("\n") == 1
        assert said in told.err


def test_the_command_says_where_the_page_is(cli, demo, tmp_path):
    shown = cli("report", demo, "--output", tmp_path / "page.html")
    assert shown.code == 0
    assert str(tmp_path / "page.html") in shown.out
    assert (tmp_path / "page.html").stat().st_size > 50_000
    as_json = cli("report", demo, "--json")
    assert json.loads(as_json.out)["stages"]["base"] == "done"


def test_curves_leave_out_what_is_not_finite_and_thin_what_is_long():
    x, y = thin(range(10_000), [float("nan") if i % 2 else i for i in range(10_000)])
    assert len(x) <= 600
    assert y == sorted(y)
    assert draw(Figure("f", "y", [Line("a", [1.0], [float("inf")])])) is None
    assert "?" in (draw(Figure("f", "y", [Line("中文$", [1.0, 2.0], [1.0, 2.0])])) or "")


def test_pictures_take_the_pages_colours_and_hold_no_chinese(page):
    source = page.source
    pictures = re.findall(r'<svg viewBox="[^"]*" role="img" aria-label="(?:loss|bpb).*?</svg>', source, re.S)
    assert len(pictures) == 4
    for picture in pictures:
        assert "currentColor" in picture
        assert "#010203" not in picture
        assert picture.isascii()
        assert "<metadata" not in picture


def test_the_page_is_the_same_when_written_twice(demo):
    assert made(demo).source == made(demo).source


def test_hostile_specimen_is_what_it_says():
    assert "<script>" in HOSTILE
    assert "onerror" in HOSTILE


def test_the_wheel_holds_the_templates(tmp_path):
    root = Path(__file__).parents[2]
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path / name)
    shutil.copytree(root / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    names = zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))).namelist()
    for template in (root / "src" / "hepta" / "reports" / "templates").iterdir():
        assert f"hepta/reports/templates/{template.name}" in names
