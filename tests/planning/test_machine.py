"""The machine probe: cached, refreshed upward only, harmless where things are missing."""

import json

import pytest

from hepta.config import HeptaError
from hepta.planning import machine, probe, products
from hepta.planning.config import MachineConfig


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setenv("HEPTA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "PEAK_SECONDS", 0.01)
    monkeypatch.setattr(products, "PRODUCT_SECONDS", 0.0)
    monkeypatch.setattr(products, "ROWS", (64, 128))


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
    report = probe.probe_machine(MachineConfig(threads=1))
    assert set(report.gflops) == {"fp32", "bf16", "int8"}
    assert min(report.gflops.values()) > 0
    assert report.memory_gb_per_second is not None
    assert report.memory_gb_per_second > 0
    assert 0 < report.memory_free_gb <= report.memory_gb
    assert report.precision in ("bf16", "fp32")
    text = probe.show_machine(report)
    assert report.processor in text
    assert "GFLOP/s" in text
    assert "bf16 weights  gᵀ x" in text


@pytest.mark.parametrize(("bf16", "fp32", "expected"), [(800, 170, "bf16"), (170, 170, "fp32"), (100, 170, "fp32")])
def test_bf16_is_recommended_only_where_it_is_faster(bf16, fp32, expected):
    assert machine.recommend_precision({"bf16": bf16, "fp32": fp32}) == expected


def test_without_measuring_the_probe_still_lists_what_is_there():
    report = probe.probe_machine(MachineConfig(measure=False))
    assert report.gflops == {}
    assert report.precision == "fp32"
    assert "not measured" in probe.show_machine(report)


def test_products_of_training_are_kept_for_this_machine_and_only_ever_raised():
    found = products.measure_products("fp32", threads=1)
    key = machine.machine_key(1)
    assert products.cached_products("fp32", key) == found
    assert products.cached_products("bf16", key) is None
    assert products.cached_products("fp32", machine.machine_key(7)) is None
    slower = {f"{key}, fp32 forward 64 rows": 0.0}
    assert machine.keep_rate(slower) == {f"{key}, fp32 forward 64 rows": found["forward"][64]}


def test_rates_between_measured_rows_lie_between_and_beyond_them_are_flat():
    rates = {100: 200.0, 1600: 800.0}
    assert [products.rate_at(rates, rows) for rows in (10, 100, 400, 1600, 9999)] == pytest.approx(
        [200, 200, 400, 800, 800]
    )


@pytest.mark.parametrize("kind", list(products.KINDS))
def test_each_product_is_counted_as_two_flops_a_multiply_add(kind, monkeypatch):
    from torch.utils.flop_counter import FlopCounterMode

    told = []
    monkeypatch.setattr(products, "best_rate", lambda work, amount, seconds: told.append((work, amount)) or 1.0)
    products._measure("fp32", kind, 64)
    work, amount = told[0]
    with FlopCounterMode(display=False) as counter:
        work()
    assert counter.get_total_flops() == pytest.approx(amount * 1e9)
