"""Explanations in a real browser: silent console, both languages, tooltips with the right number, any width."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from browser import console, visit
from hepta.explanation.attention import explain_attention
from hepta.explanation.attribution import explain_attribution
from hepta.explanation.config import AttentionConfig, AttributionConfig, LensConfig, NeuronsConfig
from hepta.explanation.lens import explain_lens
from hepta.explanation.neurons import explain_neurons

pytestmark = pytest.mark.browser
PROBE = """<!DOCTYPE html><body><iframe id="page" src="PAGE" style="width:WIDTHpx;height:3000px;border:0"></iframe>
<pre id="found"></pre><script>
window.onload = function () {
  var doc = document.getElementById("page").contentDocument, view = doc.defaultView;
  function shown(kind) { return Array.from(doc.querySelectorAll("main ." + kind)).filter(function (e) {
    return view.getComputedStyle(e).display !== "none"; }).length; }
  function state() { return {lang: doc.documentElement.lang, en: shown("t-en"), zh: shown("t-zh"),
    wide: doc.documentElement.scrollWidth, clipped: doc.documentElement.clientWidth}; }
  function tip() { var box = doc.querySelector(".tip"); return box && !box.hidden ? box.textContent : null; }
  function point(element, kind, x, y) { var box = element.getBoundingClientRect();
    element.dispatchEvent(new view.MouseEvent(kind, {clientX: box.left + x, clientY: box.top + y, bubbles: true})); }
  function key(element, name) { element.dispatchEvent(new view.KeyboardEvent("keydown", {key: name, bubbles: true})); }
  var found = {states: [state()]};
  doc.querySelector("label[for=lang-zh]").click(); found.states.push(state());
  doc.querySelector("label[for=lang-en]").click(); found.states.push(state());
  STEPS
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script></body>"""


def visited(folder: Path, page: str, width: int, steps: str = "") -> dict[str, Any]:
    """What the probe found; the console must have been silent."""
    probe, url = folder / "probe.html", Path(page).absolute().as_uri() + "#en"
    probe.write_text(PROBE.replace("PAGE", url).replace("WIDTH", str(width)).replace("STEPS", steps), encoding="utf-8")
    done = visit(folder / "profile", probe.as_uri(), 8000)
    assert console(done) == []
    match = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.S)
    assert match is not None, "the page did not open"
    return json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def check_states(states: list[dict[str, Any]]) -> None:
    first, second, third = states
    assert (first["lang"], second["lang"], third["lang"]) == ("en", "zh", "en")
    assert first["zh"] == second["en"] == third["zh"] == 0
    assert min(first["en"], second["zh"], third["en"]) > 5
    assert all(state["wide"] <= state["clipped"] for state in states)


@pytest.mark.parametrize("width", [390, 1200])
def test_attention_opens_toggles_and_tells_the_right_weight(
    tiny: Callable[..., Path], tmp_path: Path, width: int
) -> None:
    config = AttentionConfig(
        model=str(tiny("nano")), beside=str(tiny("bert-nano")), text="The cat sat on the mat", word="cat",
        output=tmp_path / "a.html",
    )  # fmt: skip
    made = explain_attention(config)
    steps = """
  var fan = doc.querySelector(".fan g[data-key='1']"); fan.dispatchEvent(new view.Event("focus")); found.fan = tip();
  found.weight = fan.getAttribute("data-weight");
  var grid = doc.querySelector("canvas.grid"), large = doc.querySelector("canvas.large");
  grid.focus(); key(grid, "ArrowDown"); key(grid, "ArrowRight");
  key(large, "ArrowLeft"); found.cell = tip();
  found.caption = doc.querySelector(".maps .caption:not(.soft) .t-en").textContent;
  doc.querySelectorAll(".words button")[4].click();
  found.chosen = Array.from(doc.querySelectorAll(".words .chosen")).map(function (e) { return e.textContent; });
"""
    found = visited(tmp_path, made.page, width, steps)
    check_states(found["states"])
    part = made.facts["models"][0]["parts"][0]
    focus, first = part["focus"], part["layers"][0]["weights"]
    expected = sum(head[query][1] for head in first for query in focus) / len(first) / len(focus)
    assert found["weight"] == f"{expected:.4f}"
    assert f"{expected:.4f}" in found["fan"]
    assert f"{part['layers'][1]['weights'][0][focus[0]][0]:.4f}" in found["cell"]
    assert "layer 2, head 1" in found["caption"]
    assert len(set(found["chosen"])) == 1  # the same word in both models
    assert len(found["chosen"]) == 2


def test_a_translator_and_a_page_of_1500_tokens_open(tiny: Callable[..., Path], tmp_path: Path) -> None:
    short = AttentionConfig(model=str(tiny("transformer-nano")), text="The cat sat", output=tmp_path / "t.html")
    check_states(visited(tmp_path, explain_attention(short).page, 390)["states"])
    text = "The cat sat on the mat. " * 150
    made = AttentionConfig(model=str(tiny("nano")), text=text, word="mat", output=tmp_path / "l.html")
    result = explain_attention(made)
    count = len(result.facts["models"][0]["parts"][0]["queries"])
    assert 1500 <= count <= 2048
    found = visited(tmp_path, result.page, 390, "found.chips = doc.querySelectorAll('.words button').length;")
    check_states(found["states"])
    assert found["chips"] == count


@pytest.mark.parametrize("width", [390, 1200])
def test_the_lens_opens_toggles_and_tells_the_right_probability(
    tiny: Callable[..., Path], tmp_path: Path, width: int
) -> None:
    text = "The cat sat on the mat. " * (120 if width == 390 else 1)
    made = explain_lens(LensConfig(model=str(tiny("nano")), text=text, output=tmp_path / "l.html"))
    steps = """
  var canvas = doc.querySelector("canvas"); key(canvas, "ArrowUp"); found.tip = tip();
  var dot = doc.querySelectorAll(".charts circle")[1]; dot.dispatchEvent(new view.Event("focus")); found.dot = tip();
"""
    found = visited(tmp_path, made.page, width, steps)
    check_states(found["states"])
    last = made.facts["positions"][-1]
    assert f"{last['top'][-2][0][1]:.4f}" in found["tip"]
    assert f"{last['kl'][2]:.4f}" in found["dot"]


@pytest.mark.parametrize("width", [390, 1200])
def test_attribution_opens_toggles_and_tells_the_right_number(
    tiny: Callable[..., Path], tmp_path: Path, width: int
) -> None:
    config = AttributionConfig(
        model=str(tiny("nano", ("good </script><b>", "bad"))), text="<b>The cat</b> sat on 我们 </script> mats " * 3,
        method="gradient", output=tmp_path / "a.html",
    )  # fmt: skip
    made = explain_attribution(config)
    steps = """
  var words = doc.querySelectorAll(".told .word"); found.words = words.length;
  words[1].dispatchEvent(new view.Event("focus")); found.tip = tip();
  var rows = doc.querySelectorAll(".pull .name").length;
  doc.querySelector("button.more").click(); found.more = doc.querySelectorAll(".pull .name").length - rows;
  found.titles = Array.from(doc.querySelectorAll("h3 .t-en")).map(function (e) { return e.textContent; });
"""
    found = visited(tmp_path, made.page, width, steps)
    check_states(found["states"])
    first = made.facts["views"][0]
    count = len(made.facts["words"])
    assert found["words"] == 2 * count
    assert f"{abs(first['words'][1]):.3f}" in found["tip"]
    assert found["more"] == count - 10
    assert "good </script><b>" in " ".join(found["titles"])


@pytest.mark.parametrize("width", [390, 1200])
def test_neurons_open_toggle_and_tell_the_right_cost(tiny: Callable[..., Path], tmp_path: Path, width: int) -> None:
    text = "The cat sat on the mat.\n<script>document.title = 'owned'</script>\n" * 4
    made = explain_neurons(NeuronsConfig(model=str(tiny("nano")), text=text, tokens=120, output=tmp_path / "n.html"))
    steps = """
  var cell = doc.querySelectorAll("table.grid td")[5]; cell.dispatchEvent(new view.Event("focus")); found.tip = tip();
  found.bars = doc.querySelectorAll(".cost").length; found.title = doc.title;
  found.cards = doc.querySelectorAll(".cells .card").length;
"""
    found = visited(tmp_path, made.page, width, steps)
    check_states(found["states"])
    assert "layer 2, head 2" in found["tip"]
    cost = abs(made.facts["heads"][1][1]["cost"])
    assert (f"{cost:.3f}" if cost < 0.0995 else f"{cost:.2f}") in found["tip"]
    assert (found["bars"], found["cards"]) == (6, 18)
    assert found["title"] == "neurons · hepta"
