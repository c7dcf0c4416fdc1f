"""``hepta plan``: parameters, memory, tokens, time and cost of a model before anything is spent."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hepta.catalog.hub import PREFIX, hub_config
from hepta.catalog.models import model_names, model_path
from hepta.config import HeptaError, nearest
from hepta.model.families import PRESETS, from_hf, preset
from hepta.model.history import NGramShape
from hepta.model.shape import Shape
from hepta.planning.config import PlanConfig
from hepta.planning.cost import flops_per_token, rule_of_thumb_flops, step_flops, training_flops
from hepta.planning.devices import Device, find_device
from hepta.planning.memory import METHODS, TRAINING, Memory, Setting, adapter_parameters, memory
from hepta.stage import read_json

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022: where data and parameters are equally worth adding
DEFAULT_LENGTH = 2048
BITS = {"fp32": 32, "bf16": 16, "8 bits": 8, "4 bits": 4}
LABELS = {method: method if method in TRAINING else f"inference {method}" for method in METHODS}


@dataclass(frozen=True)
class Verdict:
    """Whether one method fits one device, what it needs there (GB per device), and how fast it trains if it fits."""

    method: str
    fits: bool
    recompute: bool
    needs_gb: float
    has_gb: float
    classes_gb: dict[str, float]
    text: str
    tokens_per_second: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class DevicePlan:
    """All methods on one device (or several equal ones), and the time and cost of pretraining there."""

    device: str
    count: int
    has_gb: float
    peak_tflops: float
    peak_from: str
    utilisation: float
    verdicts: list[Verdict]
    tokens_per_second: float
    seconds: float
    usd: float | None


@dataclass(frozen=True)
class PlanResult:
    """What ``hepta plan`` says. Bytes are exact counts, GB are 10⁹ bytes, FLOPs count a multiply-add as two."""

    model: str
    parameters: int
    parameters_by_class: dict[str, int]
    adapter_parameters: int
    weights_gb: dict[str, float]
    full_state_gb: float
    kv_cache_gb: float
    memory_gb: dict[str, dict[str, float]]
    tokens: float
    sequence_length: int
    micro_batch: int
    flops_per_token: float
    training_flops: float
    rule_of_thumb_flops: float
    devices: list[DevicePlan]
    assumptions: list[str]


def read_shape(model: str, vocab_size: int | None = None) -> Shape:
    """The shape behind a preset's name, a model's directory or name, a run or an adapter's base; torch-free.

    Raises:
        HeptaError: neither a preset nor a directory with a config.json.
    """
    if model in PRESETS:
        return preset(model, vocab_size)
    if vocab_size is not None:
        raise HeptaError(f"vocab_size: only for presets; {model} has its own vocabulary")
    path = Path(model)
    if not path.exists() and model.startswith(PREFIX):
        known, _ = hub_config(model)
        if known is not None:  # else an adapter, which is brought whole
            return from_hf(known, model)
    if not path.exists():
        path = model_path(model) or path
    if not path.exists():
        known = [*PRESETS, *model_names()]
        raise HeptaError(f"model {model!r}: no such directory, not a preset, not a name; {nearest(model, known)}")
    for place in (path, path / "config.json", path / "model" / "config.json"):
        if place.is_file():
            value = read_json(place)
            if not isinstance(value, dict):
                raise HeptaError(f"{place}: expected a JSON object, found a {type(value).__name__}")
            return from_hf(value, str(place))
    for place in (path / "adapter_config.json", path / "model" / "adapter_config.json"):
        if place.is_file():
            return read_shape(str(read_json(place).get("base_model_name_or_path")))
    raise HeptaError(f"{model}: no config.json, so not a model directory")


def _gigabytes(found: Memory) -> dict[str, float]:
    return {name: round(value / 1e9, 3) for name, value in asdict(found).items() if value} | {
        "total": round(found.total / 1e9, 3)
    }


def judge(config: Shape, method: str, device: Device, setting: Setting) -> Verdict:
    """Whether ``method`` fits ``device``: as it is, or else (training) with layers recomputed.

    Args:
        config: the model's shape.
        method: one of ``METHODS``.
        device: what is there.
        setting: sequence length, micro-batch and rank; the rest is the device's.
    """
    has = device.memory_gb
    attempts = (False, True) if method in TRAINING else (False,)
    found, recompute = Memory(0), False
    for recompute in attempts:
        found = memory(config, method, Setting(
            setting.sequence_length, setting.micro_batch, setting.rank, recompute, device.count,
            "fp32" if device.precision == "fp32" else "bf16", device.measured,
        ))  # fmt: skip
        if found.total <= has * 1e9:
            break
    needs = found.total / 1e9
    each = " each" if device.count > 1 else ""
    way = " with layers recomputed" if recompute else ""
    fits = needs <= has
    if fits:
        text = f"fits{way}: needs {_short(needs)} GB{each}, has {has:g} GB"
    else:
        text = f"does not fit: needs {_short(needs)} GB{each}{' even' + way if way else ''}, has {has:g} GB"
    return Verdict(method, fits, recompute, round(needs, 3), has, _gigabytes(found), text)


def _timed(verdict: Verdict, config: Shape, setting: Setting, flops_per_second: float, tokens: float) -> Verdict:
    """A training method's verdict with its tokens a second, said where it fits."""
    if verdict.method not in TRAINING:
        return verdict
    adapters = None if verdict.method == "full" else adapter_parameters(config, setting.rank)
    rate = flops_per_second / step_flops(config, setting.sequence_length, adapters, verdict.recompute)
    text = f"; {count_text(rate)} tokens/s, {time_text(tokens / rate)}" if verdict.fits else ""
    return replace(
        verdict, text=verdict.text + text, tokens_per_second=float(f"{rate:.3g}"), seconds=round(tokens / rate, 1)
    )


def plan_device(
    config: Shape, device: Device, request: PlanConfig, tokens: float, setting: Setting
) -> DevicePlan:
    """Every method's verdict on a device, and the time full pretraining would take there, fitting or not."""
    share = request.utilisation or device.utilisation
    rate = device.count * device.tflops * 1e12 * share
    verdicts = [_timed(judge(config, name, device, setting), config, setting, rate, tokens) for name in METHODS]
    full = verdicts[0]
    assert full.tokens_per_second is not None
    assert full.seconds is not None
    price = device.usd_per_hour if request.price is None else request.price
    return DevicePlan(
        device.name, device.count, device.memory_gb, device.tflops,
        f"{device.precision}, {'measured here' if device.measured else 'listed by the maker'}", share, verdicts,
        full.tokens_per_second, full.seconds,
        None if price is None else round(price * device.count * full.seconds / 3600, 2),
    )  # fmt: skip


def plan(config: PlanConfig) -> PlanResult:
    """Parameters, memory, time and cost of one model.

    Raises:
        HeptaError: unknown preset, directory or device.
    """
    if config.model is None:
        raise HeptaError("model: none given; say which one, or ask for advice with minutes")
    shape = read_shape(config.model, config.vocab_size)
    if isinstance(shape, NGramShape):
        raise HeptaError(f"model {config.model!r}: an n-gram model is counted in seconds, there is nothing to plan")
    devices = [find_device(word) for word in config.devices]
    length = config.sequence_length or min(shape.max_positions, DEFAULT_LENGTH)
    setting = Setting(length, config.micro_batch, config.rank)
    parameters = shape.num_parameters
    tokens = config.tokens or float(TOKENS_PER_PARAMETER * parameters)
    by_method = {method: memory(shape, method, setting) for method in METHODS}
    recomputed = {
        f"{method}, recomputed": memory(shape, method, Setting(length, config.micro_batch, config.rank, True))
        for method in TRAINING
    }
    return PlanResult(
        model=config.model, parameters=parameters, parameters_by_class=shape.parameters(),
        adapter_parameters=adapter_parameters(shape, config.rank),
        weights_gb={name: round(parameters * bits / 8e9, 3) for name, bits in BITS.items()},
        full_state_gb=round(16 * parameters / 1e9, 3), kv_cache_gb=round(by_method["bf16"].kv_cache / 1e9, 3),
        memory_gb={method: _gigabytes(found) for method, found in (by_method | recomputed).items()},
        tokens=tokens, sequence_length=length, micro_batch=config.micro_batch,
        flops_per_token=flops_per_token(shape, length), training_flops=training_flops(shape, tokens, length),
        rule_of_thumb_flops=rule_of_thumb_flops(parameters, tokens),
        devices=[plan_device(shape, device, config, tokens, setting) for device in devices],
        assumptions=_assumptions(config, devices, length),
    )  # fmt: skip


def _assumptions(config: PlanConfig, devices: list[Device], length: int) -> list[str]:
    lines = [
        "GB are 10⁹ bytes; a card counts for the number on its box, the driver takes what is above",
        "full training is AdamW in mixed precision, 16 bytes per parameter, plus 2 for bf16 copies unless recomputed",
        f"LoRA and QLoRA: rank {config.rank} on every linear layer; QLoRA leaves embedding and head in bf16",
        "int8 and 4-bit as hepta compress quantize writes them: embedding and head at 8 bits in both",
        "their rates: a frozen matrix needs no gradient; turning 4 bits back into 16 is not counted",
        f"{config.micro_batch} × {length} tokens at once; attention fused but on a CPU; logits by 1,024 rows",
        "several devices: weights, gradients and moments split evenly over them",
    ]
    if config.tokens is None:
        lines.append(f"{TOKENS_PER_PARAMETER} training tokens per parameter (Hoffmann et al. 2022)")
    for device in devices:
        share = config.utilisation or device.utilisation
        source = "measured here" if device.measured else "listed"
        price = device.usd_per_hour if config.price is None else config.price
        cost = f", {price:.2f} USD an hour each" if price is not None else ""
        lines.append(f"{device.name}: {share:.0%} of {device.tflops:.3g} TFLOP/s ({device.precision}, {source}){cost}")
    return lines


def _short(value: float) -> str:
    return f"{value:,.1f}" if value >= 1 else f"{value:.3g}"


def count_text(value: float) -> str:
    """``6738415616`` → ``6.74 G``: three digits and a decimal prefix."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def time_text(seconds: float) -> str:
    """Seconds in the unit people would use: minutes, hours, days or years."""
    units: list[tuple[float, str]] = [(31_557_600, "years"), (86_400, "days"), (3_600, "hours"), (60, "minutes")]
    for size, unit in units:
        if seconds >= size:
            return f"{seconds / size:,.3g} {unit}" if seconds < 1e4 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.3g} seconds"


def table_text(rows: list[list[str]]) -> list[str]:
    """Columns as wide as their widest cell, the first flush left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def show_plan(result: PlanResult) -> str:
    """The plan as text for people."""
    classes = ", ".join(f"{name} {count:,}" for name, count in result.parameters_by_class.items())
    lines = [f"{result.model}: {result.parameters:,} parameters ({count_text(result.parameters)})", f"  {classes}"]
    weights = ", ".join(f"{_short(size)} in {name}" for name, size in result.weights_gb.items())
    lines.append(f"  weights alone, GB: {weights}; with AdamW's state, 16 bytes each: {_short(result.full_state_gb)}")
    lines.append("")
    lines.append(f"memory in GB, {result.micro_batch} × {result.sequence_length} tokens at once")
    names = ["weights", "gradients", "optimizer", "copies", "activations", "logits", "kv_cache", "total"]
    rows = [["", *(name.replace("_", " ") for name in names)]]
    for method, found in result.memory_gb.items():
        rows.append([LABELS.get(method, method), *(_short(found[name]) if name in found else "" for name in names)])
    lines += table_text(rows)
    lines += ["", f"tokens: {count_text(result.tokens)}, {result.training_flops:.3g} FLOP to train on them"]
    lines.append(f"  (6·N·D says {result.rule_of_thumb_flops:.3g}; counted: products, causal attention and head)")
    for entry in result.devices:
        lines += ["", _device_line(entry)]
        lines += [f"  {LABELS[verdict.method]:15} {verdict.text}" for verdict in entry.verdicts]
    lines += ["", "assumed:", *(f"- {line}" for line in result.assumptions)]
    return "\n".join(lines)


def device_text(entry: DevicePlan, method: str) -> str:
    """One line on one way to train on a device: memory, speed, time and cost."""
    verdict = next(verdict for verdict in entry.verdicts if verdict.method == method)
    cost = ""
    if verdict.fits and entry.usd is not None and verdict.seconds is not None:
        cost = f", {entry.usd * verdict.seconds / entry.seconds:,.0f} USD"
    return f"{entry.device}: {method} {verdict.text}{cost}"


def _device_line(entry: DevicePlan) -> str:
    cost = "" if entry.usd is None else f", {entry.usd:,.0f} USD"
    full = entry.verdicts[0]
    doubt = "" if full.fits else " if it fitted"
    speed = f"{count_text(entry.tokens_per_second)} tokens/s, {time_text(entry.seconds)}{cost}"
    return f"{entry.device}: pretraining{doubt} {speed}"


