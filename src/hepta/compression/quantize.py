"""``hepta compress quantize``: a model directory whose matrices are integers, and what that cost.

Without calibration each stored tensor is read, rounded and written in turn: no model is built, and memory holds one
gigabyte of the result at most.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hepta.compression.blocks import round_by_blocks
from hepta.compression.calibrate import calibration_batches, refuse_pairs
from hepta.compression.config import QuantizeConfig
from hepta.compression.drift import Drift, drift
from hepta.compression.rounding import Rounded, nearest_bytes, nearest_half_bytes
from hepta.compression.stream import write_stream
from hepta.config import HeptaError
from hepta.console import say
from hepta.evaluation.text import trained_length
from hepta.model.adapters import find_base, merge_adapters
from hepta.model.classifier import is_classifier, load_classifier, meta_classifier, save_classifier
from hepta.model.families import network_class
from hepta.model.layers import Linear
from hepta.model.load import (
    ADAPTER,
    BUFFERS,
    TIED,
    load_model,
    read_config,
    read_hepta_json,
    read_tensors,
    refuse_quantized,
    resolve_model,
    save_model,
)  # fmt: skip
from hepta.model.network import Network
from hepta.model.scheme import KEY, SCALE, Scheme, to_hf
from hepta.stage import atomic_directory, claim, digest_of, read_json, withdraw_if_refused, write_json
from hepta.tokenizer.load import load_tokenizer

VERSION = 2
WORST = 5  # maps named in the result
CHECKED = 8  # of so many sequences of calibration text one is kept to check with


@dataclass
class QuantizeResult:
    """What became of a model.

    Attributes:
        bytes_before, bytes_after: of all tensors on disk.
        bits_per_weight: of all tensors on disk, scales and what stayed wide included.
        kept: bytes that stayed as they were, by why.
        errors: of each rounded matrix: ‖(W − Ŵ) X‖ / ‖W X‖ where it was calibrated, else ‖W − Ŵ‖ / ‖W‖.
        calibration_tokens: 0 where nothing was calibrated.
        drift: on calibration text that was not rounded by, of a causal model.
    """

    output: str
    model: str
    bits: int
    group: int | None
    parameters: int
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    kept: dict[str, int]
    errors: dict[str, float]
    calibration_tokens: int = 0
    drift: Drift | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """Which of a model's matrices become integers.

    Attributes:
        model: on the meta device; tells names.
        linear: names of the maps.
        delicate: those of them that take 8 bits whatever the others take.
        tables: names of the embedding and an own head, 8 bits each.
        kept: name of a map that stays as it is → why.
    """

    model: Any
    linear: list[str]
    delicate: list[str]
    tables: list[str]
    kept: dict[str, str]

    @property
    def head(self) -> str | None:
        """Which of the tables gives a causal model's logits; None for others."""
        network = _network(self.model)
        if self.model is not network or network.config.kind != "causal":
            return None
        owner = network.embedding if network.lm_head is None else network.lm_head
        return next((name for name in self.tables if self.model.get_submodule(name) is owner), None)

    def on_disk(self, name: str) -> str:
        """The name of a map on disk."""
        return self.model.to_disk(name + SCALE, torch.empty(0, 0))[0].removesuffix(SCALE)


def plan(directory: Path, scheme: Scheme) -> Plan:
    """Which matrices of a (resolved) model directory become integers, and why others do not.

    Raises:
        HeptaError: a quantised model, or one without matrices.
    """
    refuse_quantized(directory)
    with torch.device("meta"):
        shape = None if is_classifier(directory) else read_config(directory)
        model = meta_classifier(directory) if shape is None else network_class(shape)(shape)
    network = _network(model)
    heads = {name.rpartition(".")[0] for name in getattr(model, "head_names", list)()}
    found = Plan(model, [], [], [], {})
    for name, module in model.named_modules():
        if module is network.lm_head or (isinstance(module, nn.Embedding) and module is network.embedding):
            found.tables.append(name)
        elif isinstance(module, Linear):
            if name in heads:
                found.kept[name] = "head of the task"
            elif name.endswith(network.wide or "\0"):
                found.kept[name] = "read step by step"
            elif name.endswith(network.delicate or "\0"):
                found.linear.append(name)
                found.delicate.append(name)
            elif scheme.bits == 4 and module.in_features % scheme.group:
                found.kept[name] = f"{module.in_features} columns are no whole number of groups"
            else:
                found.linear.append(name)
    if len(found.linear) == len(found.delicate):
        fit = f" that groups of {scheme.group} fit" if scheme.group else ""
        what = f"a model of the class {type(network).__name__} holds no linear maps{fit}"
        raise HeptaError(f"{directory}: {what}; there is nothing to quantise")
    return found


def quantize(config: QuantizeConfig) -> QuantizeResult:
    """Write a model with integers for matrices: the library function behind ``hepta compress quantize``.

    Raises:
        HeptaError: no such model, one that cannot be quantised, calibration text that does not fit.
    """
    stage = claim(config, "compress quantize", VERSION)
    if stage.state == "done" and stage.manifest is not None:
        say(f"{config.output}: already done")
        return read_result(stage.manifest["facts"], config.output)
    scheme = Scheme(8) if config.bits == 8 else Scheme(4, config.group)
    with withdraw_if_refused(stage):
        directory = merged(resolve_model(config.model), config.output / f".merged.tmp-{os.getpid()}")
        chosen = plan(directory, scheme)
        batches = _batches(config, directory, chosen)
    rounded: dict[str, Rounded] = {}
    errors: dict[str, float] = {}
    if batches is not None:
        groups = {name: None if name in chosen.delicate else scheme.group or None for name in chosen.linear}
        rounded, errors = round_by_blocks(directory, groups, chosen.head, batches[0])
    nearest = nearest_bytes if scheme.bits == 8 else lambda weight: nearest_half_bytes(weight, scheme.group)
    written = Written()
    with atomic_directory(config.output / "model") as place:
        write_stream(_tensors(directory, chosen, rounded, nearest, errors, written), place)
        _describe(directory, place, chosen, scheme, config)
    result = QuantizeResult(
        output=str(config.output), model=config.model, bits=config.bits, group=scheme.group or None,
        parameters=chosen.model.config.num_parameters, bytes_before=written.before, bytes_after=written.after,
        bits_per_weight=round(8 * written.after / chosen.model.config.num_parameters, 3), kept=dict(written.kept),
        errors=errors, calibration_tokens=sum(batch.numel() for batch in batches[0]) if batches else 0,
        drift=_check(directory, config.output / "model", batches[1] if batches else []),
    )  # fmt: skip
    shutil.rmtree(config.output / f".merged.tmp-{os.getpid()}", ignore_errors=True)
    facts = {key: value for key, value in asdict(result).items() if key != "output"}
    stage.finish(digest_of(config.output / "model"), facts)
    return result


def merged(directory: Path, place: Path) -> Path:
    """The directory itself; of an adapter, a model directory of base and adapter in one, written to ``place``.

    Raises:
        HeptaError: the adapter's base is quantised, or not there.
    """
    if not (directory / ADAPTER).is_file():
        return directory
    base = find_base(directory, read_json(directory / ADAPTER))
    refuse_quantized(base)
    provenance = read_hepta_json(directory).get("provenance") or {}
    say(f"{directory}: is an adapter; merged into {base} first")
    if is_classifier(directory):
        classifier = load_classifier(directory)
        merge_adapters(classifier.network)
        save_classifier(classifier, place, directory, provenance=provenance)
    else:
        save_model(merge_adapters(load_model(directory)), place, directory, provenance=provenance)
    return place


def read_result(facts: dict[str, Any], output: Path) -> QuantizeResult:
    """A result from a manifest's facts."""
    known = facts.get("drift")
    return QuantizeResult(**{**facts, "output": str(output), "drift": Drift(**known) if known else None})


def _batches(config: QuantizeConfig, directory: Path, chosen: Plan) -> tuple[list[Tensor], list[Tensor]] | None:
    """Text to round by, and text to check with; None without calibration."""
    if config.calibrate is None:
        return None
    refuse_pairs(chosen.model)
    length = min(config.sequence_length, chosen.model.config.longest or config.sequence_length)
    batches = calibration_batches(config.calibrate, load_tokenizer(directory), config.sequences, length)
    rows = torch.cat(batches)
    kept = len(rows) // CHECKED
    size = len(batches[0])
    return list(rows[: len(rows) - kept].split(size)), list(rows[len(rows) - kept :].split(size)) if kept else []


@dataclass
class Written:
    """Bytes read and written."""

    before: int = 0
    after: int = 0
    kept: Counter[str] = field(default_factory=Counter)


def _tensors(
    directory: Path,
    chosen: Plan,
    rounded: dict[str, Rounded],
    nearest: Callable[[Tensor], Rounded],
    errors: dict[str, float],
    written: Written,
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the new directory under its name on disk; counts bytes and errors on the way."""
    model = chosen.model
    network = _network(model)
    copies = network.tied_copies if model is network and _has_head(network) else ()
    for stored_name, tensor in read_tensors(directory):
        found = model.from_disk(stored_name, tensor)
        name = found[0] if found else ""
        if (stored_name.endswith(BUFFERS) and not found) or (name in TIED and model.config.tied):
            continue
        written.before += tensor.nbytes
        owner = name.removesuffix(".weight")
        if found is None or owner not in (*chosen.linear, *chosen.tables):
            written.kept[_why(chosen, owner)] += tensor.nbytes
            written.after += tensor.nbytes
            yield stored_name, tensor.clone().contiguous()
            continue
        method = nearest if owner in chosen.linear and owner not in chosen.delicate else nearest_bytes
        kept = rounded.pop(owner) if owner in rounded else method(found[1])
        if owner not in errors:
            wide = found[1].float()
            errors[owner] = float((kept.dequantized() - wide).norm() / wide.norm().clamp(min=1e-30))
        parts = {f"{chosen.on_disk(owner)}.{end}": part for end, part in kept.stored().items()}
        if model.config.tied and owner in chosen.tables:
            parts |= {copy + SCALE: kept.scale.clone() for copy in copies}
        written.after += sum(part.nbytes for part in parts.values())
        yield from parts.items()


def _network(model: Any) -> Network:
    """The body of a classifier, a language model itself."""
    return getattr(model, "network", model)


def _has_head(network: Network) -> bool:
    return bool(getattr(network.config, "head", True))


def _why(chosen: Plan, owner: str) -> str:
    if owner in chosen.kept:
        return chosen.kept[owner]
    return "positions" if "position" in owner or owner.endswith("wpe") else "norms, biases and other small tensors"


def _describe(directory: Path, place: Path, chosen: Plan, scheme: Scheme, config: QuantizeConfig) -> None:
    """Everything of the new directory but its weights."""
    for file in directory.iterdir():
        if file.is_file() and not file.name.startswith(".") and ".safetensors" not in file.name:
            shutil.copy2(file, place / file.name)
    model = chosen.model
    network = _network(model)
    tables = [chosen.on_disk(name) for name in chosen.tables]
    if model is network and model.config.tied and _has_head(network):
        tables += network.tied_copies
    linear = [chosen.on_disk(name) for name in chosen.linear if name not in chosen.delicate]
    tables += [chosen.on_disk(name) for name in chosen.delicate]
    hf = {**read_json(directory / "config.json"), KEY: to_hf(scheme, linear, tables)}
    if network.transposed:  # transformers keeps these maps in a class that it cannot quantise; its name refuses them
        hf["model_type"] = f"hepta-{hf['model_type']}"
    write_json(place / "config.json", hf)
    known = read_hepta_json(directory)
    old = known.get("provenance") or {}
    length = trained_length(directory, known)
    provenance = {**old, **({"sequence_length": length} if length else {})}
    provenance["quantized"] = {"original": config.model, "bits": config.bits, "group": scheme.group or None}
    write_json(place / "hepta.json", {"format": 1, **known, "provenance": provenance})


def _check(directory: Path, small: Path, batches: list[Tensor]) -> Drift | None:
    """How far the small model's predictions are from the original's; None where there is nothing to ask."""
    if not batches or is_classifier(directory) or read_config(directory).kind != "causal":
        return None
    return drift(load_model(directory), load_model(small), batches)


def show_quantized(result: QuantizeResult) -> str:
    """The result for people."""
    what = f"{result.bits} bits" + (f" in groups of {result.group}" if result.group else "")
    lines = [
        f"{result.output}: {result.model} with {what}, {result.bits_per_weight:.2f} bits per weight in all",
        f"{result.bytes_before / 1e6:,.1f} MB → {result.bytes_after / 1e6:,.1f} MB"
        f" ({result.bytes_before / result.bytes_after:.2f} times smaller)",
    ]
    if result.drift is not None:
        lines.append(result.drift.described())
    if result.kept:
        kept = [f"{why} {size / 1e6:,.2f} MB" for why, size in result.kept.items()]
        lines.append("kept as they were: " + ", ".join(kept))
    worst = sorted(result.errors.items(), key=lambda item: -item[1])[:WORST]
    lines.append("largest relative errors: " + ", ".join(f"{name} {error:.2%}" for name, error in worst))
    return "\n".join([*lines, *result.notes])
