"""Every shell block of the handbook is run, in order, on the recipe of the demo with tiny budgets.

The rule for a chapter (``shell_blocks.py`` has it in full): ```` ```bash ```` is run as printed, in a directory where
``make demo`` and the README's commands have been run; ```` ```text ```` right behind it is what that prints, numbers
masked (```` ```text exact ````: numbers too; ```` ```text sample ````: what a model wrote, not compared);
```` ```console ```` is for what cannot be run here, counted below. No fence is bare; both languages have the same.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shell_blocks import ROOT, Block, Place, Printed, commands, fences, statements, unkept

PAGES = sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md") if page.name != "log.md")
TRANSLATED = [page for page in PAGES if page.endswith(".zh.md")]
CONSOLE = {"catalog": 1, "corpus": 1, "index": 1, "masked": 1, "textbook-programs": 1}  # network, hours, your files


def test_every_block_says_what_it_is():
    for page in PAGES:
        for line, info, body, _ in fences(page):
            assert info, f"{page}:{line}: a bare fence; say bash, text, console, python …"
            runnable = [text for text in body if text.startswith(("hepta ", "$ "))]
            assert info in ("bash", "console") or not runnable, f"{page}:{line}: commands in a {info} block are not run"


def test_blocks_that_are_not_run_are_counted():
    for page in PAGES:
        chapter = Path(page).name.split(".")[0]
        assert sum(info == "console" for _, info, _, _ in fences(page)) == CONSOLE.get(chapter, 0), page


@pytest.mark.parametrize("page", TRANSLATED)
def test_both_languages_show_the_same_commands(page):
    assert commands(page) == commands(page.replace(".zh.md", ".md"))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_chapter_works_and_prints_what_it_promises(page, place):
    place.walk("README.md")
    assert place.walk(page) == []


@pytest.mark.model
@pytest.mark.parametrize("page", PAGES)
def test_commands_with_large_models_work_and_print_what_they_promise(page, place, monkeypatch):
    monkeypatch.setattr(place, "large", True)
    place.walk("README.md")
    assert place.walk(page) == []


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with the real demo in it, where all but training runs as printed."""
    subprocess.run([sys.executable, "-m", "hepta", "run", "recipes/demo.yaml"], cwd=ROOT, check=True, timeout=1800)
    folder = tmp_path_factory.mktemp("proven")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    shutil.copytree(ROOT / "out" / "demo", folder / "out" / "demo")
    return Place(folder, proven=True, large=True)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_on_the_real_demo_the_printed_numbers_have_their_places(page, proven):
    proven.walk("README.md")
    assert proven.walk(page) == []


def test_a_promise_is_compared_line_by_line():
    shown = [Printed("loss  3.25 in 1m02s\nfile a1b2c3d4e5f6\nA long line, cut here", as_shown=True)]

    def broken(*promise: str, kind: str = "text") -> list[str]:
        return unkept(Block("page:1", ("hepta eval",), promise, kind), shown)

    assert broken("loss 4.5 in 58s", "file ffee00112233", "A long …", "…", "") == []
    assert broken("loss 3.25 in 1m02s", kind="text exact") == []
    assert broken("loss 4.5 in 1m02s", kind="text exact") == ["loss 4.5 in 1m02s"]
    assert broken("perplexity 4.5", "loss 3.25") == ["perplexity 4.5", "loss 3.25"]
    assert broken("anything at all", kind="text sample") == []


def test_of_what_a_small_budget_made_the_labels_are_held():
    shown = [Printed("          f1  rows\nPeople  0.9  12", as_shown=False)]
    promise = ("          f1  rows", "People  0.1  194", "Animals  0.7  60", "Prose is free", "f1  recall")
    block = Block("page:1", ("hepta tune",), promise, "text")
    assert unkept(block, shown) == ["Animals  0.7  60", "f1  recall"]


def test_statements_go_on_over_backslashes_quotes_and_here_documents():
    found = ["ls \\\n  out  # all", "cat > my.csv <<'END'\ntext,label\nit's,1\nEND", "printf 'a\nb'"]
    assert statements("\n\n# a remark\n".join(found).split("\n")) == found


def test_a_command_that_nobody_knows_is_not_run(tmp_path):
    with pytest.raises(AssertionError, match="not a tool of the handbook"):
        Place(tmp_path).run("curl http://127.0.0.1", "page:1")


def test_what_is_made_from_a_small_thing_is_another_thing(tmp_path):
    place = Place(tmp_path, other={"out/demo"})
    assert not place.run("echo out/demo/base", "page:1").as_shown
    assert place.run("echo out/demonstration", "page:2").as_shown
    assert place.run("printf 'a\\nb\\n' | tail -n 1 > kept.txt", "page:3").text == ""
    assert (tmp_path / "kept.txt").read_text() == "b\n"


def test_a_large_model_is_passed_over_with_all_that_comes_of_it(tmp_path):
    place = Place(tmp_path)
    assert place.run("hepta tune --model minilm-l6 --data rows --output out/small", "page:1") is None
    assert place.run("hepta predict --model out/small --text a", "page:1") is None
