"""The 7B tutorial's table is what ``hepta plan`` says, in both languages."""

import re
from pathlib import Path

import pytest

from hepta.planning.config import PlanConfig
from hepta.planning.plan import DevicePlan, Verdict, plan, time_text

DOCS = Path(__file__).parents[2] / "docs"
MACHINES = {
    "GTX 1080 Ti": "1080ti", "RTX 3070": "3070", "RTX 3090": "3090", "RTX 4090": "4090", "RTX 5090": "5090",
    "A100": "a100", "H100": "h100", "H200": "h200", "8 × H100": "8xH100",
}  # fmt: skip
TUNING = 1e7  # tokens of the columns LoRA and QLoRA


def needs(verdict: Verdict) -> str:
    """``15.6 GB†``: with layers recomputed; ``✗``: does not fit."""
    return f"{verdict.needs_gb:,.1f} GB{'†' if verdict.recompute else ''}{'' if verdict.fits else ' ✗'}"


def row(pretraining: DevicePlan, tuning: DevicePlan) -> list[str]:
    """The cells after the machine's name."""
    full, lora, qlora, *inference = tuning.verdicts
    tuned = [needs(v) + (f", {time_text(v.seconds or 0)}" if v.fits else "") for v in (lora, qlora)]
    whole = f"{time_text(pretraining.seconds)}, {pretraining.usd:,.0f} USD"
    return [needs(full), whole, *tuned, *(needs(verdict) for verdict in inference)]


@pytest.fixture(scope="module")
def expected() -> dict[str, list[str]]:
    words = list(MACHINES.values())
    pretraining = plan(PlanConfig(model="7b", devices=words)).devices
    tuning = plan(PlanConfig(model="7b", devices=words, tokens=TUNING)).devices
    return {name: row(*pair) for name, *pair in zip(MACHINES, pretraining, tuning, strict=True)}


def rows(page: str) -> dict[str, list[str]]:
    """The page's first table with a row per machine: name → cells."""
    lines = (DOCS / page).read_text(encoding="utf-8").split("\n## 1. ")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {re.split("[,，]", first)[0]: rest for first, *rest in cells[1:]}


def test_the_tutorials_table_is_what_plan_says(expected):
    assert rows("tutorial-7b.md") == expected


def test_the_chinese_table_has_the_same_figures(expected):
    """Numbers, marks of what does not fit or is recomputed; the units of time are words of the language."""
    figures = re.compile(r"\d[\d,.]*\d|\d|[†✗]")
    found = rows("tutorial-7b.zh.md")
    assert list(found) == list(expected)
    for name, cells in found.items():
        assert [figures.findall(cell) for cell in cells] == [figures.findall(cell) for cell in expected[name]], name
