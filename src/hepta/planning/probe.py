"""``hepta doctor machine``: what this machine is, how fast, and what to choose on it."""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepta.cores import cores_allowed, waiting
from hepta.planning.config import MachineConfig
from hepta.planning.machine import (
    compiler,
    measure_memory,
    measured_peak,
    memory_limit,
    processor_name,
    recommend_precision,
)
from hepta.planning.products import Rates, measure_products, show_products

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
    waiting: str
    compiler: str | None
    gpus: list[Gpu]
    gflops: dict[str, float]
    products: dict[str, Rates]  # per dtype
    memory_gb_per_second: float | None
    precision: str
    advice: list[str]


def processor_features() -> list[str]:
    """Those instruction sets of the processor that matter for matrix products."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    present = set(flags.partition(":")[2].split())
    return [feature for feature in FEATURES if feature in present]


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
    products: dict[str, Rates] = {}
    bandwidth = None
    if config.measure:
        gflops = {dtype: measured_peak(dtype, threads, refresh=True) for dtype in ("fp32", "bf16", "int8")}
        products = {dtype: measure_products(dtype, threads) for dtype in ("fp32", "bf16")}
        bandwidth = measure_memory(threads)
    total, free = memory_limit()
    gpus = list_gpus()
    usable = any(gpu.usable for gpu in gpus)
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}", "python": platform.python_version(),
        "processor": processor_name(), "cores": os.cpu_count() or 1, "cores_allowed": cores_allowed(),
        "features": processor_features(), "memory_gb": round(total / 1e9, 1), "memory_free_gb": round(free / 1e9, 1),
        "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1), "torch": torch.__version__, "threads": threads,
        "waiting": waiting(), "compiler": compiler(), "gpus": gpus, "gflops": gflops, "products": products,
        "memory_gb_per_second": bandwidth,
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
        "torch": f"{report.torch}, {report.threads} threads, {report.waiting} while they wait",
        "compiler": report.compiler or "none",
        "GPUs": gpus or "none",
        "GFLOP/s": rates or "not measured",
        "precision": report.precision,
    }
    lines = [f"{name:13} {value}" for name, value in rows.items()] + show_products(report.products)
    return "\n".join(lines + [f"- {line}" for line in report.advice])
