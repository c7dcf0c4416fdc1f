"""What this machine is and how fast: ``hepta doctor machine``, and the measured peak that MFU divides by.

Peaks are measured, never looked up: the best rate of one large product kept in memory. A busy machine can only
lower a measurement, so the cache keeps the best rate ever seen for the same processor, torch and thread count.
"""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepta.config import HeptaError
from hepta.planning.config import MachineConfig
from hepta.stage import write_json

PEAK_SECONDS = 0.8  # per measurement; doctor machine makes four
DTYPES = ("fp32", "bf16", "fp16", "int8")
FEATURES = (  # x86, then ARM
    "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "bf16", "i8mm", "sve",
)


@dataclass(frozen=True)
class Gpu:
    """One accelerator: its name, memory, and whether this torch can use it."""

    name: str
    memory_gb: float
    usable: bool


@dataclass(frozen=True)
class MachineReport:
    """What ``doctor machine`` found. GB are 10⁹ bytes; rates are the best of repeated measurements."""

    system: str
    python: str
    processor: str
    cores: int
    cores_allowed: int
    features: list[str]
    memory_gb: float
    memory_free_gb: float
    disk_free_gb: float
    torch: str
    threads: int
    compiler: str | None
    gpus: list[Gpu]
    gflops: dict[str, float]
    memory_gb_per_second: float | None
    precision: str
    advice: list[str]


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


def processor_features() -> list[str]:
    """Those instruction sets of the processor that matter for matrix products."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    present = set(flags.partition(":")[2].split())
    return [feature for feature in FEATURES if feature in present]


def cores_allowed() -> int:
    """Cores this process may run on (containers and taskset give fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def _best_rate(work: Callable[[], Any], amount: float, seconds: float, synchronise: Callable[[], Any]) -> float:
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
        return _best_rate(lambda: product(a, b), flops, seconds, synchronise)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    a = torch.randn(N, N, device=device).to(kind)
    b = torch.randn(N, N, device=device).to(kind).t()
    out = torch.empty(N, N, dtype=kind, device=device)
    with torch.no_grad():
        return _best_rate(lambda: torch.mm(a, b, out=out), flops, seconds, synchronise)


def _read_cache(path: Path) -> dict[str, float]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a cache that cannot be read is only a measurement to repeat
    return value if isinstance(value, dict) else {}


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
    name = f"{processor_name()}, {os.cpu_count()} cores, {threads} threads"
    if device != "cpu":
        name = torch.cuda.get_device_name()
    key = f"{name}, torch {torch.__version__}, {dtype}"
    path = cache_directory() / "machine.json"
    cached = _read_cache(path).get(key, 0.0)
    if cached and not refresh:
        return cached
    torch.set_num_threads(threads)
    try:
        peak = max(cached, _measure_product(dtype, device, PEAK_SECONDS))
    finally:
        torch.set_num_threads(before)
    with contextlib.suppress(OSError, HeptaError):  # an unwritable cache costs a measurement next time
        write_json(path, {**_read_cache(path), key: round(peak, 1)})
    return round(peak, 1)


def cached_peak(dtype: str) -> float | None:
    """The best peak already measured on this processor at any thread count, without importing torch; None if never."""
    prefix, suffix = f"{processor_name()}, {os.cpu_count()} cores, ", f", {dtype}"
    cache = _read_cache(cache_directory() / "machine.json")
    rates = [rate for key, rate in cache.items() if key.startswith(prefix) and key.endswith(suffix)]
    return max(rates, default=None)


def measure_memory(threads: int | None = None) -> float:
    """GB/s of copying memory far larger than the caches, bytes read and written both counted."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        a = torch.ones(32 * 1024 * 1024)  # 134 MB
        b = torch.empty_like(a)
        return _best_rate(lambda: b.copy_(a), 2 * a.nbytes / 1e9, PEAK_SECONDS, lambda: None)
    finally:
        torch.set_num_threads(before)


def compiler() -> str | None:
    """The C++ compiler that ``torch.compile`` would call on a CPU, or None."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return shutil.which(name)
    return None


def list_gpus() -> list[Gpu]:
    """GPUs that torch can use, and those that only the driver knows (a CPU build of torch)."""
    import torch

    if torch.cuda.is_available():
        properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return [Gpu(p.name, round(p.total_memory / 1e9, 1), True) for p in properties]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(",", 1) for line in listing.splitlines() if "," in line]
    return [Gpu(name.strip(), round(float(mib) * 1.048576e-3, 1), False) for name, mib in rows if mib.strip().isdigit()]


def recommend_precision(gflops: dict[str, float]) -> str:
    """``bf16`` where its products are at least 1.3 times as fast as fp32's, else ``fp32``."""
    return "bf16" if gflops.get("bf16", 0.0) > 1.3 * gflops.get("fp32", float("inf")) else "fp32"


def _advice(report: dict[str, Any]) -> list[str]:
    lines = []
    if report["gflops"]:
        ratio = report["gflops"]["bf16"] / report["gflops"]["fp32"]
        lines.append(f"precision {report['precision']}: bf16 products run at {ratio:.1f} times fp32's rate here")
    if report["compiler"] is None:
        lines.append("no C++ compiler: torch.compile falls back to eager; install g++ or clang for speed")
    if any(not gpu.usable for gpu in report["gpus"]):
        lines.append("a GPU is here but this torch is a CPU build; install torch from a CUDA index to use it")
    if report["threads"] < report["cores_allowed"]:
        lines.append(f"torch uses {report['threads']} of {report['cores_allowed']} cores; OMP_NUM_THREADS sets it")
    if report["memory_free_gb"] < 3:
        lines.append("less than 3 GB of memory is free: the demo may not fit")
    if report["disk_free_gb"] < 5:
        lines.append("less than 5 GB of disk is free here: the demo may not fit")
    return lines


def probe_machine(config: MachineConfig) -> MachineReport:
    """Look at this machine and time it: the library function behind ``hepta doctor machine`` (ten seconds at most)."""
    import torch

    threads = config.threads or torch.get_num_threads()
    gflops: dict[str, float] = {}
    bandwidth = None
    if config.measure:
        gflops = {dtype: measured_peak(dtype, threads, refresh=True) for dtype in ("fp32", "bf16", "int8")}
        bandwidth = round(measure_memory(threads), 1)
    total, free = memory_limit()
    gpus = list_gpus()
    usable = any(gpu.usable for gpu in gpus)
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}", "python": platform.python_version(),
        "processor": processor_name(), "cores": os.cpu_count() or 1, "cores_allowed": cores_allowed(),
        "features": processor_features(), "memory_gb": round(total / 1e9, 1), "memory_free_gb": round(free / 1e9, 1),
        "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1), "torch": torch.__version__, "threads": threads,
        "compiler": compiler(), "gpus": gpus, "gflops": gflops, "memory_gb_per_second": bandwidth,
        "precision": "bf16" if usable and torch.cuda.is_bf16_supported() else recommend_precision(gflops),
    }
    return MachineReport(**found, advice=_advice(found))


def show_machine(report: MachineReport) -> str:
    """The report as lines for people."""
    rates = ", ".join(f"{dtype} {rate:,.0f}" for dtype, rate in report.gflops.items())
    gpus = "; ".join(f"{g.name} {g.memory_gb:g} GB{'' if g.usable else ' (not by this torch)'}" for g in report.gpus)
    bandwidth = f"{report.memory_gb_per_second:g} GB/s copied" if report.memory_gb_per_second else "speed not measured"
    rows = {
        "system": f"{report.system}, Python {report.python}",
        "processor": f"{report.processor}, {report.cores} cores ({report.cores_allowed} allowed)",
        "instructions": ", ".join(report.features) or "unknown",
        "memory": f"{report.memory_gb:g} GB, {report.memory_free_gb:g} GB free, {bandwidth}",
        "disk": f"{report.disk_free_gb:g} GB free here",
        "torch": f"{report.torch}, {report.threads} threads",
        "compiler": report.compiler or "none",
        "GPUs": gpus or "none",
        "GFLOP/s": rates or "not measured",
        "precision": report.precision,
    }
    lines = [f"{name:13} {value}" for name, value in rows.items()]
    return "\n".join(lines + [f"- {line}" for line in report.advice])
