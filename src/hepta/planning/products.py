"""Products as training makes them: one forward and two backward, at several numbers of rows.

The three differ by up to a factor of two on a CPU, and a few rows do not fill it; so a peak of large square products
says little about a step. Kept in the same cache as the peaks, per processor, thread count and torch version.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from hepta.planning.machine import best_rate, keep_rate, machine_key, read_rates

WIDTH, WIDE = 768, 2048  # of the matrix W (WIDE, WIDTH) that stands for a layer's
ROWS = (256, 2048, 8192)  # tokens of a micro-batch
KINDS = {"forward": "x Wᵀ", "inputs": "g W", "weights": "gᵀ x"}  # with x (rows, WIDTH), g (rows, WIDE)
PRODUCT_SECONDS = 0.12  # per product; doctor machine makes eighteen

Rates = dict[str, dict[int, float]]  # kind → rows → GFLOP/s


def _name(dtype: str, kind: str, rows: int) -> str:
    return f"{dtype} {kind} {rows} rows"


def measure_products(dtype: str, threads: int | None = None) -> Rates:
    """GFLOP/s of each kind at each number of rows on the CPU, outputs kept in memory as ``keep_memory`` lets them be.

    As with peaks, the cache keeps the best rate ever seen, since a busy machine can only lower one.

    Args:
        dtype: ``fp32`` or ``bf16``.
        threads: CPU threads; what torch uses now when None.
    """
    import torch

    before = torch.get_num_threads()
    threads = threads or before
    machine = machine_key(threads)
    torch.set_num_threads(threads)
    try:
        found = {kind: {rows: _measure(dtype, kind, rows) for rows in ROWS} for kind in KINDS}
    finally:
        torch.set_num_threads(before)
    kept = keep_rate({
        f"{machine}, {_name(dtype, kind, rows)}": rate for kind, rates in found.items() for rows, rate in rates.items()
    })  # fmt: skip
    return {kind: {rows: kept[f"{machine}, {_name(dtype, kind, rows)}"] for rows in ROWS} for kind in KINDS}


def cached_products(dtype: str, machine: str) -> Rates | None:
    """What ``measure_products`` found on the machine of this key, None where it never ran; no torch needed."""
    rates = read_rates()
    found = {kind: {rows: rates.get(f"{machine}, {_name(dtype, kind, rows)}", 0.0) for rows in ROWS} for kind in KINDS}
    return found if all(rate for kind in found.values() for rate in kind.values()) else None


def rate_at(rates: dict[int, float], rows: float) -> float:
    """GFLOP/s at any number of rows: between two measured ones straight in logarithms, beyond them flat."""
    known = sorted(rates)
    if rows <= known[0]:
        return rates[known[0]]
    for low, high in pairwise(known):
        if rows <= high:
            share = math.log(rows / low) / math.log(high / low)
            return rates[low] ** (1 - share) * rates[high] ** share
    return rates[known[-1]]


def _measure(dtype: str, kind: str, rows: int) -> float:
    import torch

    number = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    x, g = torch.randn(rows, WIDTH).to(number), torch.randn(rows, WIDE).to(number)
    weight = torch.randn(WIDE, WIDTH).to(number)
    a, b = {"forward": (x, weight.t()), "inputs": (g, weight), "weights": (g.t(), x)}[kind]
    out = torch.empty(a.shape[0], b.shape[1], dtype=number)
    work: Callable[[], Any] = lambda: torch.mm(a, b, out=out)  # noqa: E731
    with torch.no_grad():
        return best_rate(work, 2.0 * rows * WIDTH * WIDE / 1e9, PRODUCT_SECONDS)


def show_products(products: dict[str, Rates]) -> list[str]:
    """A table for people: a row per dtype and kind, a column per number of rows."""
    if not products:
        return []
    lines = [f"{'products':13} {'rows':22}" + "".join(f"{rows:>8,}" for rows in ROWS)]
    for dtype, kinds in products.items():
        for kind, rates in kinds.items():
            label = f"{dtype} {kind:8} {KINDS[kind]}"
            lines.append(f"{'':13} {label:22}" + "".join(f"{rates[rows]:>8,.0f}" for rows in ROWS))
    return lines
