"""How fast this machine is: the measured peak that MFU divides by, and the cache that keeps what was measured.

Peaks are measured, never looked up: the best rate of one large product kept in memory. A busy machine can only
lower a measurement, so the cache keeps the best rate ever seen for the same processor, torch and thread count.
"""

import contextlib
import ctypes
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from hepta.config import HeptaError
from hepta.stage import write_json

PEAK_SECONDS = 0.8  # per measurement; doctor machine makes four
COPY = "memory GB/s"  # the name of that rate in the cache
DTYPES = ("fp32", "bf16", "fp16", "int8")


def cache_directory() -> Path:
    """Where hepta keeps what is worth keeping between runs: ``$HEPTA_CACHE``, else ``~/.cache/hepta``."""
    return Path(os.environ.get("HEPTA_CACHE") or Path.home() / ".cache" / "hepta")


def processor_name() -> str:
    """The processor's model name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def keep_memory() -> None:
    """Tell glibc to keep freed memory instead of giving it back.

    Large outputs are made anew in every step; returning them to the system and touching them again costs
    page faults: up to half the speed of a bfloat16 product. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(-4, 0)  # M_MMAP_MAX: no allocation gets a mapping of its own
    library.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never give memory back


def give_back() -> bool:
    """Give freed memory back to the system, so that resident memory is what is held; False: this C library cannot."""
    if platform.libc_ver()[0] != "glibc":
        return False
    ctypes.CDLL(None).malloc_trim(0)
    return True


def memory_limit() -> tuple[int, int]:
    """Bytes of memory this process may use in all, and those free now; a container's limit counts."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        total, free = min(total, limit), min(free, limit - used)
    except (OSError, ValueError):
        pass  # no container limit ("max") or another system
    return total, max(free, 0)


def best_rate(
    work: Callable[[], Any], amount: float, seconds: float, synchronise: Callable[[], Any] = lambda: None
) -> float:
    """Best of ``amount`` per second over repeated calls for about ``seconds``."""
    work()  # first touch of memory and kernel choice
    synchronise()
    best, ends = 0.0, time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        work()
        synchronise()
        now = time.perf_counter()
        best = max(best, amount / (now - started))
        if now >= ends:
            return best


def _measure_product(dtype: str, device: str, seconds: float) -> float:
    """GFLOP/s of C = A·Bᵀ (the layout of a Linear), all three kept in memory."""
    import torch

    N = 8192 if device != "cpu" else 1536
    synchronise = torch.cuda.synchronize if device != "cpu" else lambda: None
    flops = 2.0 * N**3 / 1e9
    if dtype == "int8":
        a = torch.ones(N, N, dtype=torch.int8, device=device)
        b = torch.ones(N, N, dtype=torch.int8, device=device).t()
        product: Any = getattr(torch, "_int_mm")  # noqa: B009 - private to torch, with no public twin
        return best_rate(lambda: product(a, b), flops, seconds, synchronise)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    a = torch.randn(N, N, device=device).to(kind)
    b = torch.randn(N, N, device=device).to(kind).t()
    out = torch.empty(N, N, dtype=kind, device=device)
    with torch.no_grad():
        return best_rate(lambda: torch.mm(a, b, out=out), flops, seconds, synchronise)


def read_rates() -> dict[str, float]:
    """All rates kept on this machine's disk: ``machine_key``, what was measured → GFLOP/s or GB/s."""
    try:
        value = json.loads((cache_directory() / "machine.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a cache that cannot be read is only a measurement to repeat
    return value if isinstance(value, dict) else {}


def keep_rate(rates: dict[str, float]) -> dict[str, float]:
    """Keep each rate unless a better one is kept already; gives the better ones, rounded."""
    old = read_rates()
    new = {key: round(max(rate, old.get(key, 0.0)), 1) for key, rate in rates.items()}
    with contextlib.suppress(OSError, HeptaError):  # an unwritable cache costs a measurement next time
        write_json(cache_directory() / "machine.json", {**old, **new})
    return new


def machine_key(threads: int, device: str = "cpu") -> str:
    """What a measurement holds for: the processor with its cores and threads, or the GPU; and torch's version."""
    name = f"{processor_name()}, {os.cpu_count()} cores, {threads} threads"
    if device != "cpu":
        import torch

        name = torch.cuda.get_device_name()
    return f"{name}, torch {metadata.version('torch')}"


def measured_peak(dtype: str, threads: int | None = None, device: str = "cpu", refresh: bool = False) -> float:
    """Measured peak of matrix products on this machine in GFLOP/s: the divisor of MFU.

    Taken once per processor, torch version and thread count (under a second), then read from
    ``cache_directory()/machine.json``.

    Args:
        dtype: ``fp32``, ``bf16``, ``fp16`` or ``int8`` (int8 × int8 → int32).
        threads: CPU threads; what torch uses now when None.
        device: ``cpu`` or ``cuda``.
        refresh: measure again; a better rate replaces the cached one.

    Raises:
        HeptaError: an unknown dtype.
    """
    import torch

    if dtype not in DTYPES:
        raise HeptaError(f"dtype {dtype!r} is unknown; known: {', '.join(DTYPES)}")
    before = torch.get_num_threads()
    threads = threads or before
    key = f"{machine_key(threads, device)}, {dtype}"
    cached = read_rates().get(key, 0.0)
    if cached and not refresh:
        return cached
    torch.set_num_threads(threads)
    try:
        peak = _measure_product(dtype, device, PEAK_SECONDS)
    finally:
        torch.set_num_threads(before)
    return keep_rate({key: peak})[key]


def cached_peak(dtype: str) -> float | None:
    """The best peak already measured on this processor at any thread count, without importing torch; None if never."""
    prefix, suffix = f"{processor_name()}, {os.cpu_count()} cores, ", f", {dtype}"
    rates = [rate for key, rate in read_rates().items() if key.startswith(prefix) and key.endswith(suffix)]
    return max(rates, default=None)


def measure_memory(threads: int | None = None) -> float:
    """GB/s of copying memory far larger than the caches, bytes read and written both counted; the best is kept."""
    import torch

    before = torch.get_num_threads()
    threads = threads or before
    torch.set_num_threads(threads)
    try:
        a = torch.ones(32 * 1024 * 1024)  # 134 MB
        b = torch.empty_like(a)
        rate = best_rate(lambda: b.copy_(a), 2 * a.nbytes / 1e9, PEAK_SECONDS)
    finally:
        torch.set_num_threads(before)
    key = f"{machine_key(threads)}, {COPY}"
    return keep_rate({key: rate})[key]


def compiler() -> str | None:
    """The C++ compiler that ``torch.compile`` would call on a CPU, or None."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return shutil.which(name)
    return None


def recommend_precision(gflops: dict[str, float]) -> str:
    """``bf16`` where its products are at least 1.3 times as fast as fp32's, else ``fp32``."""
    return "bf16" if gflops.get("bf16", 0.0) > 1.3 * gflops.get("fp32", float("inf")) else "fp32"
