"""The page in a real browser: no console errors, the language toggle works, nothing runs that should not."""

import json
import re

import pytest

from browser import console, visit
from hepta.reports.config import ReportConfig
from hepta.reports.page import write_report

pytestmark = pytest.mark.browser
PROBE = """<!DOCTYPE html><body><iframe id="page" src="PAGE" style="width:WIDTHpx;height:4000px;border:0"></iframe>
<pre id="found"></pre><script>
window.onload = function () {
  var doc = document.getElementById("page").contentDocument, view = doc.defaultView;
  function shown(kind) {
    return Array.from(doc.querySelectorAll("." + kind)).filter(function (e) {
      return view.getComputedStyle(e).display !== "none"; }).length;
  }
  function state() { return {lang: doc.documentElement.lang, en: shown("t-en"), zh: shown("t-zh"),
    title: doc.title, wide: doc.documentElement.scrollWidth, clipped: doc.documentElement.clientWidth}; }
  var found = [state()];
  doc.querySelector("label[for=lang-zh]").click(); found.push(state());
  doc.querySelector("label[for=lang-en]").click(); found.push(state());
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script></body>"""


def test_the_page_opens_without_a_word_on_the_console(whole_demo, tmp_path):
    path = write_report(ReportConfig(run=whole_demo, output=tmp_path / "report.html")).path
    done = visit(tmp_path / "profile", path.as_uri(), 4000)
    assert console(done) == []
    title = re.search(r"<title>([^<]*)</title>", done.stdout)
    assert title is not None
    assert title[1] == "demo · hepta"  # hostile text tries to change it
    spoilt = path.read_text(encoding="utf-8").replace("</main>", "<script>document.title='owned'</script></main>")
    path.write_text(spoilt, encoding="utf-8")
    done = visit(tmp_path / "profile", path.as_uri(), 4000)
    assert "Content Security Policy" in " ".join(console(done))  # so the silence above means something
    assert "<title>demo · hepta</title>" in done.stdout


@pytest.mark.parametrize("width", [390, 1200])
def test_the_toggle_shows_one_language_at_a_time_and_nothing_runs_off_the_side(whole_demo, tmp_path, width):
    path = write_report(ReportConfig(run=whole_demo, output=tmp_path / "report.html")).path
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.replace("PAGE", path.as_uri() + "#en").replace("WIDTH", str(width)), encoding="utf-8")
    done = visit(tmp_path / "profile", probe.as_uri(), 4000)
    assert console(done) == []
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout)
    assert match is not None
    first, second, third = json.loads(match[1])
    assert (first["lang"], second["lang"], third["lang"]) == ("en", "zh", "en")
    assert first["en"] > 60
    assert first["zh"] == second["en"] == third["zh"] == 0
    assert second["zh"] == first["en"] == third["en"]
    assert first["wide"] <= first["clipped"]
    assert second["wide"] <= second["clipped"]
    assert third["title"] == "demo · hepta"
