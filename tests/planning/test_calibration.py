"""What is kept of real runs: the median counts, ages are told, another torch or processor never is used."""

import json
import time

import pytest

from hepta.model.families import preset
from hepta.planning import calibration
from hepta.planning.calibration import case_of, outdated, recall, remember

HERE = "AMD EPYC, 2 cores, 2 threads, torch 2.13.0"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HEPTA_CACHE", str(tmp_path))
    return tmp_path / "calibration.json"


def nano(machine: str = HERE, precision: str = "bf16", compiled: bool = False) -> calibration.Case:
    return case_of(preset("nano"), machine, "full", precision, compiled, tokens=2048)


def test_the_median_of_the_last_five_runs_counts():
    assert recall(nano()) is None
    for factor in (9.0, 1.0, 2.0, 3.0, 4.0, 5.0):
        remember(nano(), factor)
    found = recall(nano())
    assert found is not None
    assert found.factor == 3.0  # the 9 has left
    assert found.told == "calibrated by 5 runs here, last today"


def test_another_precision_compiler_thread_count_or_family_is_another_case():
    remember(nano(), 2.0)
    others = [
        nano(precision="fp32"), nano(compiled=True), nano("AMD EPYC, 2 cores, 1 threads, torch 2.13.0"),
        case_of(preset("gpt2-nano"), HERE, "full", "bf16", False, tokens=2048),
        case_of(preset("nano"), HERE, "lora", "bf16", False, tokens=2048),
        case_of(preset("nano"), HERE, "full", "bf16", False, "block", tokens=2048),
    ]  # fmt: skip
    assert [recall(case) for case in others] == [None] * len(others)


def test_the_next_width_helps_and_is_named():
    remember(nano(), 2.0)  # width 192
    found = recall(case_of(preset("micro"), HERE, "full", "bf16", False, tokens=2048))  # width 256
    assert found is not None
    assert found.factor == 2.0
    assert found.told == "calibrated by 1 run here at widths 128 to 255, last today"
    assert recall(case_of(preset("7b"), HERE, "full", "bf16", False, tokens=2048)) is None


def test_runs_whose_threads_slept_say_nothing_of_those_that_spin(monkeypatch):
    """A step of sleeping threads takes up to twice the time (docs/log.md)."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    remember(nano(), 2.0)
    monkeypatch.setenv("GOMP_SPINCOUNT", "20000")
    assert recall(nano()) is None
    monkeypatch.delenv("GOMP_SPINCOUNT")
    known = recall(nano())
    assert known is not None
    assert known.factor == 2.0


def test_the_nearest_micro_batch_helps_and_is_named():
    shape = preset("nano")
    for tokens, factor in ((512, 4.0), (4096, 2.0)):
        remember(case_of(shape, HERE, "full", "bf16", False, tokens=tokens), factor)
    found = recall(case_of(shape, HERE, "full", "bf16", False, tokens=3000))
    assert found is not None
    assert (found.factor, found.same) == (2.0, False)
    assert found.told == "calibrated by 1 run here at 4096 to 8191 tokens at once, last today"
    same = recall(case_of(shape, HERE, "full", "bf16", False, tokens=1000))
    assert same is not None
    assert (same.factor, same.same) == (4.0, True)


def test_old_calibrations_tell_their_age(own_cache):
    remember(nano(), 2.0)
    kept = json.loads(own_cache.read_text())
    kept[nano().key]["when"] = int(time.time()) - 40 * 86_400 - 60
    own_cache.write_text(json.dumps(kept))
    found = recall(nano())
    assert found is not None
    assert found.told.endswith("last 40 days ago")


def test_another_torch_drops_what_was_known_of_this_processor_and_leaves_others(own_cache):
    other = HERE.replace("EPYC", "Ryzen")
    remember(nano(other), 4.0)
    remember(nano(), 2.0)
    now = HERE.replace("2.13", "2.14")
    assert recall(nano(now)) is None
    assert outdated(nano(now)) == ["2.13.0"]
    remember(nano(now), 1.0)
    assert sorted(json.loads(own_cache.read_text())) == sorted([nano(other).key, nano(now).key])
    assert outdated(nano(now)) == []


def test_a_broken_cache_is_only_a_worse_prediction(own_cache):
    own_cache.write_text("{half")
    assert recall(nano()) is None
    remember(nano(), 2.0)
    assert recall(nano()) is not None
