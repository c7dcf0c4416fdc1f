"""Recipes: checked whole before the first stage runs; finished stages are skipped."""

import json
import shlex
from pathlib import Path

import pytest

from hepta.catalog.entries import ModelEntry, find_entry
from hepta.cli.run import show
from hepta.config import HeptaError, build
from hepta.runner.config import RunConfig
from hepta.runner.recipe import RunResult, StageOutcome, plan_stages, run_recipe

RECIPE = """
name: small
seed: 3
output: {root}/out
stages:
  - {{id: corpus, verb: corpus, input: ["t={root}/text"]}}
  - {{id: tok, verb: tokenizer, input: "${{corpus}}", vocab_size: 400}}
  - {{id: tokens, verb: tokens, input: "${{corpus}}", tokenizer: "${{tok}}"}}
"""


@pytest.fixture
def recipe(tmp_path, sanguo_zh) -> Path:
    (tmp_path / "text").mkdir()
    rows = sanguo_zh.read_text(encoding="utf-8").splitlines()[:12]
    for number, row in enumerate(rows):
        (tmp_path / "text" / f"{number}.txt").write_text(json.loads(row)["text"][:4000], encoding="utf-8")
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(root=tmp_path))
    return path


def run(recipe: Path, *overrides: str, **keys):
    return run_recipe(build(RunConfig, {"recipe": recipe, "overrides": list(overrides)} | keys))


def test_stages_run_once_and_a_changed_key_is_refused(recipe):
    first = run(recipe)
    assert [s.skipped for s in first.stages] == [False, False, False]
    assert (recipe.parent / "out" / "recipe.yaml").is_file()
    assert Path(first.report).is_file()
    second = run(recipe)
    assert [s.skipped for s in second.stages] == [True, True, True]
    with pytest.raises(HeptaError, match=r"'tok': .*another vocab_size \(400 before, 420 now\); --fresh-from tok"):
        run(recipe, "tok.vocab_size=420")
    third = run(recipe, "tok.vocab_size=420", fresh_from="tok")
    assert [s.skipped for s in third.stages] == [True, False, False]


def test_a_slip_in_the_last_stage_stops_before_the_first(recipe):
    text = recipe.read_text().replace("vocab_size: 400", "vocab_sice: 400")
    recipe.write_text(text)
    with pytest.raises(HeptaError, match=r"stage 'tok': unknown key 'vocab_sice'; did you mean 'vocab_size'"):
        run(recipe)
    assert not (recipe.parent / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("${corpus}", "${corpse}", "names no earlier stage; did you mean 'corpus'"),
        ("verb: tokens", "verb: token", "unknown verb 'token'; did you mean 'token"),
        ("id: tokens", "id: tok", "'tok' stands twice"),
        ("seed: 3", "sead: 3", "unknown key 'sead'; did you mean 'seed'"),
    ],
)
def test_slips_are_named(recipe, old, new, message):
    recipe.write_text(recipe.read_text().replace(old, new))
    with pytest.raises(HeptaError, match=message):
        plan_stages(build(RunConfig, {"recipe": recipe}))


def test_override_of_an_unknown_stage_is_named(recipe):
    with pytest.raises(HeptaError, match="override 'toks': .*did you mean 'tok"):
        plan_stages(build(RunConfig, {"recipe": recipe, "overrides": ["toks.vocab_size=3"]}))


def test_a_run_that_tuned_a_chat_model_ends_with_the_next_command_to_try():
    tuned = StageOutcome("chat", "sft", "out/demo/chat", 1.0, False)
    last = show(RunResult("demo", "out/demo", [tuned], "out/demo/report.html")).splitlines()[-1]
    words = shlex.split(last)
    assert words == ["hepta", "chat", "--model", "smollm2-135m", "--message", "What is the capital of France?"]
    assert isinstance(find_entry(words[3]), ModelEntry)
    assert "smollm2" not in show(RunResult("small", "out/small", [StageOutcome("t", "tokens", "t", 1.0, False)]))
