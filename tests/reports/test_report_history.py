"""The table of language models: who is in it, which figures, and when there is none."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import yaml
from demo_output import scores
from test_page import Page, made

from hepta.reports.gather import gather
from hepta.reports.history import view_history

LSTM = {"en": scores(1.9, 2.3), "zh": scores(2.5, 2.5)}


def add_model(root: Path, name: str, model: dict, facts: dict, bits: dict, total: float) -> None:
    """Put a pretrained model and its evaluation on the demo's text before its ``base``."""
    recipe = yaml.safe_load((root / "recipe.yaml").read_text(encoding="utf-8"))
    place, score = root / name, root / f"{name}-score"
    shutil.copytree(root / "base", place)
    shutil.copytree(root / "score", score)
    (place / "model").mkdir()
    (place / "model" / "config.json").write_text(json.dumps(model))
    for path, changes in (
        (place, facts),
        (score, {"by_language": bits, "total": scores(total, 2.4), "parameters": facts["parameters"]}),
    ):
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        manifest["facts"] |= changes
        (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    text = next(stage["text"] for stage in recipe["stages"] if stage["id"] == "score")
    recipe["stages"][4:4] = [
        {"id": name, "verb": "pretrain", "model": name, "output": str(place)},
        {"id": f"{name}-score", "verb": "eval", "model": str(place), "text": text, "output": str(score)},
    ]
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")


@pytest.fixture
def history(demo: Path) -> Path:
    """The demo's output with two more models before its Transformer."""
    (demo / "base" / "model").mkdir()
    (demo / "base" / "model" / "config.json").write_text('{"model_type": "llama"}')
    facts = {"parameters": 3_147_776, "seconds": 42.0}
    base = demo / "base" / "model"
    base.rename(demo / "kept")
    add_model(demo, "lstm", {"model_type": "hepta-lstm"}, facts, LSTM, 2.0)
    ngram = {"model_type": "hepta-ngram", "order": 5}
    bits = {"en": scores(1.6, 2.3), "zh": scores(2.2, 2.5)}
    add_model(demo, "ngram", ngram, {"parameters": 5_849_318, "steps": 0, "seconds": 3.0}, bits, 1.7)
    (demo / "kept").rename(base)
    return demo


def test_every_model_stands_in_the_table_with_the_runs_own_figures(history):
    found = view_history(gather(history))
    assert [(e.id, e.name_en, e.size, e.counted) for e in found["entries"]] == [
        ("ngram", "5-gram", 5_849_318, True), ("lstm", "LSTM", 3_147_776, False), ("base", "Llama", 3_170_496, False),
    ]  # fmt: skip
    assert [e.bpb for e in found["entries"]] == [
        {"en": 1.6, "zh": 2.2, "all": 1.7}, {"en": 1.9, "zh": 2.5, "all": 2.0}, {"en": 1.7, "zh": 2.6, "all": 1.8},
    ]  # fmt: skip
    assert found["best"] == {"en": 1.6, "zh": 2.2, "all": 1.7}
    xz, even = found["rulers"]
    assert xz.bpb == {"en": 2.3, "zh": 2.5, "all": 2.4}
    assert even.bpb["en"] == pytest.approx(math.log2(8192) * 9000 / 30000)  # 13 bits a token


@pytest.mark.usefixtures("no_pictures")
def test_the_page_shows_table_picture_and_continuations_in_both_languages(history):
    page = made(history)
    assert page.wrong == []
    part = page.source[page.source.index('id="history"') : page.source.index('id="results"')]
    shown = ["5-gram", "5 元文法", "最近 4 个词元", "last 4 tokens", "5,849,318", "1.600", "even guessing", "均匀瞎猜"]
    assert [words for words in shown if words not in part] == []
    bars = [float(width) for width in re.findall(r'<rect x="118" y="[\d.]+" width="([\d.]+)"', part)]
    bars = [width for width in bars if width > 9]  # 9 are the squares of the key
    assert len(bars) == 9
    assert bars[0] / bars[3] == pytest.approx(1.6 / 1.9, rel=0.01)  # English, n-gram before LSTM
    assert part.count("<article") == 3  # a card for each prompt
    assert part.count('<div class="answer">') == 9


@pytest.mark.usefixtures("no_pictures")
def test_the_cards_of_before_and_after_keep_to_the_line_of_the_chat_model(history):
    recipe = yaml.safe_load((history / "recipe.yaml").read_text(encoding="utf-8"))
    page = made(history).source
    samples = page[page.index('id="samples"') : page.index('id="history"')]
    assert recipe["stages"][-1]["model"].endswith("base")
    assert "after pretraining" in samples
    assert "(lstm)" not in samples


@pytest.mark.usefixtures("no_pictures")
def test_one_model_makes_no_history(demo):
    assert view_history(gather(demo)) is None
    assert 'id="history"' not in made(demo).source


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("junk", [None, [], "text", 7, {"x": "y"}])
@pytest.mark.parametrize("stage", ["lstm", "lstm-score"])
def test_facts_of_an_unknown_form_never_stop_the_page(history, stage, junk):
    path = history / stage / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["facts"] = dict.fromkeys(manifest["facts"], junk)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert isinstance(made(history), Page)


def test_stages_that_lie_in_another_runs_folder_are_found(history):
    recipe = yaml.safe_load((history / "recipe.yaml").read_text(encoding="utf-8"))
    elsewhere = history.parent / "other"
    elsewhere.mkdir()
    recipe["output"] = str(elsewhere)
    for stage in recipe["stages"]:  # the fixture is a copy
        stage["output"] = str(history / stage["id"])
    (elsewhere / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert {stage.status for stage in gather(elsewhere).stages} == {"done"}
