"""``hepta plan --minutes`` ranks by tokens read here in the time, by text and memory; the command it prints is real."""

import json
import shlex
from pathlib import Path

import pytest

from hepta.config import HeptaError, build, parse_overrides
from hepta.model.families import preset
from hepta.planning import advise as module
from hepta.planning.advise import Advice, plan_or_advise, rank, show_answer
from hepta.planning.calibration import case_of, remember
from hepta.planning.config import PlanConfig
from hepta.planning.machine import keep_rate, machine_key
from hepta.planning.memory import Setting
from hepta.planning.rates import rate_factor
from hepta.planning.trial import try_steps
from hepta.training.config import PretrainConfig


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path) -> str:
    """A machine of one thread: 500 GFLOP/s, nothing calibrated, 25 GB."""
    monkeypatch.setenv("HEPTA_CACHE", str(tmp_path / "cache"))
    key = machine_key(1)
    keep_rate({f"{key}, bf16": 500.0, f"{key}, fp32": 100.0})
    monkeypatch.setattr(module, "memory_limit", lambda: (25_000_000_000, 0))
    monkeypatch.setattr(module, "try_steps", lambda *_: pytest.fail("nothing should be tried"))
    monkeypatch.setattr(module, "TRIED", 0)
    return key


def advice(**keys) -> Advice:
    found = plan_or_advise(PlanConfig(**keys))
    assert isinstance(found, Advice)
    return found


def shards(folder: Path, tokens: int, documents: int) -> Path:
    folder.mkdir()
    facts = {"splits": {"train": {"tokens": tokens, "documents": documents, "bytes": 4 * tokens}}, "padded_size": 4096}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "verb": "tokens", "facts": facts}))
    return folder


def test_more_minutes_want_a_larger_model_and_never_one_that_does_not_fit():
    names = [advice(minutes=minutes).advised for minutes in (1, 600, 60_000, 6_000_000)]
    order = [module.CANDIDATES.index(name) for name in names]
    assert order == sorted(order)
    assert names[0] == "nano"
    assert order[-1] > order[0]
    assert "7b" not in names  # 107 GB


def test_a_minute_is_as_many_tokens_as_the_measured_speed_says(machine):
    remember(case_of(preset("nano"), machine, "full", "bf16", False, tokens=2048), 3.0)
    before = next(c for c in advice(minutes=1).candidates if c.model == "micro")
    nano = next(c for c in advice(minutes=10).candidates if c.model == "nano")
    assert nano.source == "calibrated by 1 run here, last today"
    assert nano.tokens == pytest.approx(nano.tokens_per_second * 600 * module.IN_STEPS, rel=0.01)
    assert before.source.startswith("calibrated by 1 run here at widths 128 to 255")


def test_text_is_read_four_times_at_most_and_then_the_command_says_epochs(tmp_path):
    data = shards(tmp_path / "tokens", tokens=1_000_000, documents=5_000)  # 200 a document
    found = advice(minutes=600, data=data, model="nano")
    assert found.candidates[0].tokens == 4_000_000
    assert found.sequence_length == 256
    assert "epochs=4" in found.command
    assert "minutes=" not in found.command
    assert any("the text ends first" in reason for reason in found.reasons)
    assert "minutes=1 " in advice(minutes=1, data=data, model="small").command


def test_little_text_makes_a_larger_model_the_better_use_of_the_time(tmp_path):
    data = shards(tmp_path / "tokens", tokens=500_000, documents=5_000)
    assert advice(minutes=240).advised == "nano"
    assert advice(minutes=240, data=data).advised != "nano"


@pytest.mark.parametrize("minutes", [0.5, 30, 3000])
def test_the_printed_command_is_one_that_hepta_pretrain_takes(tmp_path, minutes):
    data = shards(tmp_path / "tokens", tokens=3_000_000, documents=3_000)
    found = advice(minutes=minutes, data=data)
    words = shlex.split(found.command)
    assert words[:2] == ["hepta", "pretrain"]
    options = {words[i].removeprefix("--"): words[i + 1] for i in range(2, 8, 2)}
    config = build(PretrainConfig, {**options, **parse_overrides(words[8:])})
    assert config.model == found.advised
    assert config.batch_tokens == found.batch_tokens
    assert config.optimizer == found.optimizer
    width = preset(found.advised).hidden_size
    assert found.lr == pytest.approx(0.75 / width * rate_factor(found.optimizer, width))
    assert found.command in show_answer(found)


def test_muon_is_advised_where_its_products_are_a_small_part_of_a_step():
    small, large = advice(minutes=4, model="nano"), advice(minutes=4, model="1b")
    assert (small.optimizer, large.optimizer) == ("muon", "adamw")
    assert small.lr == pytest.approx(2 * 0.75 / 192)
    assert "optimizer=muon" in small.command


def test_ranks_fall_with_parameters_and_with_tokens():
    assert rank(1e7, 1e8) < rank(1e6, 1e8)
    assert rank(1e7, 1e8) < rank(1e7, 1e7)


def test_uncalibrated_candidates_are_tried_and_only_those_that_are_quick(monkeypatch):
    tried = []
    monkeypatch.setattr(module, "TRIED", 2)
    monkeypatch.setattr(module, "try_steps", lambda shape, *_: tried.append(shape.hidden_size) or 1.0)
    found = advice(minutes=10)
    assert 192 in tried
    assert 4096 not in tried
    assert next(c for c in found.candidates if c.model == "nano").source == "tried for a few seconds"


def test_a_trial_takes_real_steps():
    shape = preset("nano", 512).replace(num_layers=1)
    assert 0 < try_steps(shape, Setting(32, 2, precision="fp32", cpu=True), 0.0) < 5


def test_what_cannot_be_answered_is_one_line(tmp_path):
    for keys, words in (
        ({}, "--minutes"), ({"model": "nano", "data": tmp_path}, "give minutes too"),
    ):  # fmt: skip
        with pytest.raises(HeptaError, match=words):
            build(PlanConfig, keys)
    with pytest.raises(HeptaError, match="107|1[0-9][0-9]"):
        advice(minutes=5, model="7b")
    with pytest.raises(HeptaError, match="predict the next token"):
        advice(minutes=5, model="bert-nano")
    with pytest.raises(HeptaError, match="no token shards"):
        advice(minutes=5, data=tmp_path)
