"""What the demo promises, held on its real output (slow: it runs the demo unless ``out/demo`` is finished)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
OUT = ROOT / "out" / "demo"
PROMPTS = ["今天天气怎么样？", "What is the meaning of life?", "你好"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo() -> Path:
    subprocess.run([sys.executable, "-m", "hepta", "run", "recipes/demo.yaml"], cwd=ROOT, check=True, timeout=1800)
    return OUT


def facts(stage: str) -> dict[str, Any]:
    return json.loads((OUT / stage / "manifest.json").read_text(encoding="utf-8"))["facts"]


def test_validation_text_costs_fewer_bits_than_xz(demo):
    for language in ("en", "zh"):
        scores = facts("score")["by_language"][language]
        assert scores["bits_per_byte"] < scores["xz_bits_per_byte"]


def test_tuning_lowers_held_out_loss_and_learns_to_stop(demo):
    chat = facts("chat")
    assert chat["final"]["val_loss"] < chat["before"]["val_loss"]
    assert chat["p_stop"]["train"] > 0.9


def test_answers_are_in_the_language_of_the_prompt(demo):
    for language, count in facts("chat")["prompt_language"].items():
        assert count["right"] >= 0.9 * count["asked"], language


def test_training_fits_in_three_gibibytes(demo):
    assert max(facts(stage)["peak_memory_bytes"] for stage in ("base", "chat")) < 3 * 2**30


def test_repeating_the_demo_does_no_finished_work_again(demo):
    before = {path: path.stat().st_mtime_ns for path in OUT.glob("*/manifest.json")}
    subprocess.run([sys.executable, "-m", "hepta", "run", "recipes/demo.yaml"], cwd=ROOT, check=True, timeout=300)
    assert {path: path.stat().st_mtime_ns for path in OUT.glob("*/manifest.json")} == before


def test_transformers_opens_the_chat_model_and_says_the_same(demo):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import hepta

    directory = OUT / "chat" / "model"
    theirs, their_tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    tokenizer = hepta.load_tokenizer(directory)
    engine = hepta.Engine(hepta.load_model(directory), tokenizer)
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.render(messages, add_generation_prompt=True)
        assert their_tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == ids
        ours = engine.generate([ids], max_new_tokens=24)[0].ids
        made = theirs.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
        assert made[: len(ours)] == ours
