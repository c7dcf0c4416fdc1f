"""Devices people ask about: memory, listed peak of matrix products, a round price. And this machine's own row.

A card sold as 11 GB holds 11 GiB, 11.8 × 10⁹ bytes; the driver, the context and the allocator's gaps take about
what that is more than 11 × 10⁹. So plans compare with the number on the box, in GB of 10⁹ bytes.

Peaks are the makers' listed dense rates with fp32 accumulation (tensor cores where the card has them), from
NVIDIA's architecture whitepapers (GeForce: Pascal, Turing, Ampere GA102, Ada, RTX Blackwell) and datasheets (T4, V100,
L4, A100 80 GB SXM, H100 SXM, H200 SXM). Prices are round figures for renting one device for an hour. Both are
assumptions, printed with every plan.
"""

import re
from dataclasses import dataclass, replace

from hepta.config import HeptaError, nearest
from hepta.planning.machine import cached_peak, measured_peak, memory_limit, processor_name, recommend_precision


@dataclass(frozen=True)
class Device:
    """``count`` equal devices: GB (10⁹ bytes) of memory and TFLOP/s of each, and where the rate is from."""

    name: str
    memory_gb: float
    tflops: float
    precision: str  # of the products behind ``tflops``
    usd_per_hour: float | None
    utilisation: float = 0.4
    measured: bool = False
    count: int = 1


SYSTEM_GB = 1.0  # of this machine's memory, left to the system

_LISTED = (
    Device("1080ti", 11, 11.3, "fp32", 0.10),  # no tensor cores, no bf16
    Device("2080ti", 11, 53.8, "fp16", 0.15),
    Device("3070", 8, 40.6, "bf16", 0.12),
    Device("3080", 10, 59.5, "bf16", 0.17),
    Device("3090", 24, 71.0, "bf16", 0.25),
    Device("4080", 16, 97.5, "bf16", 0.30),
    Device("4090", 24, 165.2, "bf16", 0.40),
    Device("5090", 32, 209.5, "bf16", 0.60),
    Device("t4", 16, 65.0, "fp16", 0.20),
    Device("v100", 16, 125.0, "fp16", 0.40),
    Device("l4", 24, 121.0, "bf16", 0.50),
    Device("a100", 80, 312.0, "bf16", 1.50),
    Device("h100", 80, 989.0, "bf16", 2.50),
    Device("h200", 141, 989.0, "bf16", 3.50),
)
KNOWN = {device.name: device for device in _LISTED}


def this_machine() -> Device:
    """This machine's processor as a device; its peak is measured once (under two seconds) and cached."""
    peaks = {}
    for dtype in ("bf16", "fp32"):
        cached = cached_peak(dtype)
        peaks[dtype] = measured_peak(dtype) if cached is None else cached
    precision = recommend_precision(peaks)
    memory = round(memory_limit()[0] / 1e9 - SYSTEM_GB, 1)
    return Device(f"cpu ({processor_name()})", memory, peaks[precision] / 1e3, precision, None, 0.5, True)


def find_device(word: str) -> Device:
    """The device behind a word such as ``4090``, ``RTX-3090``, ``8xH100`` or ``cpu``.

    Raises:
        HeptaError: an unknown name; says which are known.
    """
    match = re.fullmatch(r"(?:(\d+)\s*[x×*]\s*)?(.+)", word.strip().lower())
    count, name = (int(match[1] or 1), match[2]) if match else (1, "")
    name = re.sub(r"[\s_-]|^(?:nvidia|geforce|rtx|gtx|tesla)+", "", re.sub(r"[\s_-]", "", name))
    if name == "cpu" and count == 1:
        return this_machine()
    if name not in KNOWN or count < 1:
        raise HeptaError(f"devices: {word!r} is unknown; {nearest(name, [*KNOWN, 'cpu'])} (several: 8xH100)")
    return replace(KNOWN[name], name=word.strip(), count=count)
