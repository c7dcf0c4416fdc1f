"""The machine probe: cached, refreshed upward only, harmless where things are missing."""

import json

import pytest

from hepta.config import HeptaError
from hepta.planning import machine
from hepta.planning.config import MachineConfig


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("HEPTA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "PEAK_SECONDS", 0.01)


def test_measured_peak_is_taken_once_and_then_read_from_the_cache(monkeypatch):
    first = machine.measured_peak("bf16", threads=1)
    assert first > 0
    monkeypatch.setattr(machine, "_measure_product", lambda *_: pytest.fail("measured again"))
    assert machine.measured_peak("bf16", threads=1) == first


def test_a_busy_machine_never_lowers_the_cached_peak(monkeypatch):
    rates = iter([500.0, 300.0, 700.0])
    monkeypatch.setattr(machine, "_measure_product", lambda *_: next(rates))
    assert machine.measured_peak("fp32", threads=1) == 500.0
    assert machine.measured_peak("fp32", threads=1, refresh=True) == 500.0
    assert machine.measured_peak("fp32", threads=1, refresh=True) == 700.0


def test_another_thread_count_or_dtype_is_another_peak(monkeypatch):
    rates = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(machine, "_measure_product", lambda *_: next(rates))
    found = [machine.measured_peak("fp32", 1), machine.measured_peak("fp32", 2), machine.measured_peak("bf16", 1)]
    assert found == [1.0, 2.0, 3.0]


def test_measuring_leaves_torchs_thread_count_as_it_was():
    import torch

    before = torch.get_num_threads()
    machine.measured_peak("fp32", threads=before + 1)
    assert torch.get_num_threads() == before


def test_a_broken_or_unwritable_cache_costs_a_measurement_not_the_run(monkeypatch, tmp_path):
    path = tmp_path / "cache" / "machine.json"
    path.parent.mkdir()
    path.write_text("{half")
    assert machine.measured_peak("fp32", threads=1) > 0
    assert json.loads(path.read_text())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEPTA_CACHE", str(tmp_path / "file"))
    assert machine.measured_peak("fp32", threads=1) > 0


def test_an_unknown_dtype_is_the_users_mistake():
    with pytest.raises(HeptaError, match="fp8"):
        machine.measured_peak("fp8")


def test_probe_measures_every_rate_and_recommends_a_precision():
    report = machine.probe_machine(MachineConfig(threads=1))
    assert set(report.gflops) == {"fp32", "bf16", "int8"}
    assert min(report.gflops.values()) > 0
    assert report.memory_gb_per_second is not None
    assert report.memory_gb_per_second > 0
    assert 0 < report.memory_free_gb <= report.memory_gb
    assert report.precision in ("bf16", "fp32")
    text = machine.show_machine(report)
    assert report.processor in text
    assert "GFLOP/s" in text


@pytest.mark.parametrize(("bf16", "fp32", "expected"), [(800, 170, "bf16"), (170, 170, "fp32"), (100, 170, "fp32")])
def test_bf16_is_recommended_only_where_it_is_faster(bf16, fp32, expected):
    assert machine.recommend_precision({"bf16": bf16, "fp32": fp32}) == expected


def test_without_measuring_the_probe_still_lists_what_is_there():
    report = machine.probe_machine(MachineConfig(measure=False))
    assert report.gflops == {}
    assert report.precision == "fp32"
    assert "not measured" in machine.show_machine(report)
