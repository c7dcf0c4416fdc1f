"""Predicted peaks of whole processes against those that real runs had, and step times against their own arithmetic."""

import pytest

from hepta.model.families import preset
from hepta.planning.memory import Setting
from hepta.planning.peak import chunk_bytes, run_bytes, step_bytes
from hepta.planning.speed import Speed, step_seconds

# VmHWM of `hepta pretrain` in MB: preset, sequences, tokens of each, precision, compiled. 2 micro-batches a step, the
# demo's 8,192 tokens, torch 2.13 on a 2-core AMD EPYC, 2026-11-22.
MEASURED = [
    ("nano", 1, 512, "bf16", False, 656), ("nano", 4, 512, "bf16", False, 840), ("nano", 16, 512, "bf16", False, 1327),
    ("nano", 8, 1024, "bf16", False, 1379), ("nano", 32, 256, "bf16", False, 1267),
    ("nano", 4, 512, "fp32", False, 993), ("nano", 16, 512, "fp32", False, 1902),
    ("micro", 1, 512, "bf16", False, 870), ("micro", 4, 512, "bf16", False, 1298),
    ("micro", 8, 512, "bf16", False, 1807), ("micro", 4, 1024, "bf16", False, 1914),
    ("mini", 1, 512, "bf16", False, 1343), ("mini", 4, 512, "bf16", False, 1956),
    ("mini", 2, 1024, "bf16", False, 2062), ("small", 1, 256, "bf16", False, 2945),
    ("nano", 4, 512, "bf16", True, 834), ("nano", 16, 512, "bf16", True, 1121),
    ("micro", 4, 512, "bf16", True, 1164), ("mini", 1, 512, "bf16", True, 1369), ("mini", 4, 512, "bf16", True, 1701),
]  # fmt: skip


@pytest.mark.parametrize(("name", "micro", "length", "precision", "compiled", "megabytes"), MEASURED)
def test_peaks_of_real_runs_are_met_within_ten_per_cent(name, micro, length, precision, compiled, megabytes):
    setting = Setting(length, micro, precision=precision, cpu=True)
    found = run_bytes(preset(name, 8192), "full", setting, several=True, compiled=compiled)
    assert found / 1e6 == pytest.approx(megabytes, rel=0.1)


# what a run held after its first evaluation and at its peak, in MB: `hepta sft` on the demo's base and conversations
TUNED = [(8, 1280, 431, 692), (32, 4352, 432, 1120)]  # sequences of 256, rows that met the head


@pytest.mark.parametrize(("micro", "rows", "held", "megabytes"), TUNED)
def test_peaks_of_tuning_count_the_rows_that_meet_the_head(micro, rows, held, megabytes):
    setting = Setting(256, micro, precision="bf16", cpu=True)
    more = step_bytes(preset("nano", 8192), "full", setting, several=False, compiled=False, rows=rows)
    assert held + more / 1e6 == pytest.approx(megabytes, rel=0.1)


def test_a_chunk_of_logits_holds_two_wide_copies_and_the_gradient_before_it():
    shape, setting = preset("nano", 8192), Setting(256, 8, precision="bf16", cpu=True)
    assert chunk_bytes(shape, setting, 256) == 256 * 8192 * (2 + 4 + 4)
    assert chunk_bytes(shape, setting, 1024) == 1024 * 8192 * (2 + 4 + 4)
    assert chunk_bytes(shape, setting, 1280) == 1024 * 8192 * (2 + 4 + 4 + 2)
    wide = Setting(256, 8, precision="fp32", cpu=True)
    assert chunk_bytes(shape, wide, 2048) == 1024 * 8192 * (4 + 4 + 4 + 4)
    assert chunk_bytes(preset("nano", 32_768), setting, 1024) == 1024 * (32_768 * (2 + 2) + 8192 * 8)


def test_a_step_takes_its_products_its_activations_and_its_update():
    shape, setting = preset("nano", 8192), Setting(512, 4, cpu=True)
    parts = shape.token_flops(512)
    bare = step_seconds(shape, "full", setting, 3, Speed(peak=100.0, products=None, memory=None))
    assert bare == pytest.approx(3 * 2048 * 3 * parts.total / 60e9)
    kinds = {"forward": {512: 100.0}, "inputs": {512: 50.0}, "weights": {512: 25.0}}
    maps = parts.total - parts.attention
    split = step_seconds(shape, "full", setting, 3, Speed(100.0, kinds, None))
    assert split == pytest.approx(3 * 2048 * (maps * (1 + 2 + 4) + 3 * parts.attention) / 100e9)
    assert step_seconds(shape, "lora", setting, 3, Speed(100.0, kinds, None)) < split
    slow = step_seconds(shape, "full", setting, 3, Speed(100.0, kinds, 1.0))
    more = step_seconds(shape, "full", setting, 6, Speed(100.0, kinds, 1.0))
    assert slow > split
    assert more < 2 * slow  # the update is done once
