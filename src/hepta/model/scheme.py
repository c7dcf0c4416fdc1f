"""What a ``config.json`` says about weights kept as integers, in the words of compressed-tensors (no torch here)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hepta.config import HeptaError

METHOD = "compressed-tensors"
KEY = "quantization_config"
SCALE, PACKED = ".weight_scale", ".weight_packed"  # ends of names of stored tensors
BYTES, HALF_BYTES = (8, "channel", "int-quantized"), (4, "group", "pack-quantized")


@dataclass(frozen=True)
class Scheme:
    """How a model's linear maps are kept.

    Attributes:
        bits: 8 or 4; the embedding and the head have 8 in both.
        group: columns that share a scale, of the 4-bit ones.
    """

    bits: int
    group: int = 0


def read_scheme(config: Mapping[str, Any], where: str) -> Scheme | None:
    """The scheme of a model, None where its weights are floats.

    Args:
        config: the parsed ``config.json``.
        where: file name for messages.

    Raises:
        HeptaError: quantised by another method, or as other integers than these.
    """
    known = config.get(KEY)
    if not known:
        return None
    method, found = known.get("quant_method"), Scheme(8)
    if method != METHOD:
        raise HeptaError(f"{where}: quantised by {method!r}, which is not read; use {METHOD} or the original model")
    for group in known.get("config_groups", {}).values():
        weights = group.get("weights") or {}
        layout = (weights.get("num_bits"), weights.get("strategy"), group.get("format") or known.get("format"))
        plain = (weights.get("type", "int"), weights.get("symmetric", True)) == ("int", True)
        if layout not in (BYTES, HALF_BYTES) or not plain or group.get("input_activations"):
            what = f"{layout[0]} bits per {layout[1]}, {layout[2]}{'' if plain else ', not symmetric integers'}"
            raise HeptaError(f"{where}: quantised as {what}; weights of 8 bits per channel or 4 per group are read")
        if layout == HALF_BYTES:
            found = Scheme(4, int(weights["group_size"]))
    return found


def to_hf(scheme: Scheme, linear: Sequence[str], tables: Sequence[str]) -> dict[str, Any]:
    """The ``quantization_config`` of a model.

    Args:
        scheme: of the linear maps.
        linear: names on disk of the linear maps that hold integers of the scheme's bits.
        tables: names on disk of what takes 8 bits in any scheme: the embedding, what is tied to it, delicate maps.
    """
    weights = {"type": "int", "symmetric": True, "dynamic": False}
    bits, strategy, layout = BYTES
    bytes_ = {"weights": {"num_bits": bits, "strategy": strategy, **weights}, "format": layout}
    if scheme.bits == 8:
        groups = {"group_0": {"targets": [*linear, *tables], **bytes_}}
    else:
        bits, strategy, layout = HALF_BYTES
        grouped = {"num_bits": bits, "strategy": strategy, "group_size": scheme.group}
        half = {"weights": {**weights, **grouped}, "format": layout}
        groups = {"group_0": {"targets": list(linear), **half}, "group_1": {"targets": list(tables), **bytes_}}
    return {
        "quant_method": METHOD, "format": layout if scheme.bits == 8 else "mixed-precision",
        "quantization_status": "compressed", "config_groups": groups, "ignore": [],
    }  # fmt: skip
