"""``hepta plan --minutes 30``: which model, on how many tokens, this machine trains best in that time.

The trade of size against tokens is the loss L = E + A / N^α + B / D^β (Hoffmann et al. 2022, constants as corrected by
Besiroglu et al. 2024). It ranks models; it is no prediction of a loss, whose constants belong to another text. Up to
four passes over the same text teach nearly as much as new text does (Muennighoff et al. 2023); more are not advised.
"""

from dataclasses import dataclass
from pathlib import Path

from hepta.config import HeptaError
from hepta.data.shards import read_tokens_manifest
from hepta.model.families import PRESETS, preset
from hepta.model.shape import Shape, TransformerShape
from hepta.planning.calibration import case_of, recall
from hepta.planning.config import PlanConfig
from hepta.planning.cost import muon_flops, training_flops
from hepta.planning.machine import cached_peak, machine_key, measured_peak, memory_limit, recommend_precision
from hepta.planning.memory import Setting
from hepta.planning.peak import run_bytes
from hepta.planning.plan import PlanResult, count_text, plan, read_shape, show_plan, table_text
from hepta.planning.rates import automatic_lr, rate_factor
from hepta.planning.speed import Speed, machine_speed, step_seconds
from hepta.planning.trial import try_steps

CANDIDATES = ("nano", "micro", "mini", "small", "1b", "7b")
SCALE, SIZE, SIZE_POWER, TOKENS, TOKENS_POWER = 1.8172, 482.01, 0.3478, 2085.43, 0.3658  # E, A, α, B, β
EPOCHS = 4  # passes over the same text that still teach
IN_STEPS = 0.95  # of the time; evaluations and saves take the rest
TRIED = 2  # uncalibrated candidates that are tried for a few seconds
TRIAL_SECONDS = 3.0
WORTH_TRYING = 4096  # tokens of a trial; what does not get so far is out of question in minutes, or known well enough
ARITHMETIC = "arithmetic"
LENGTHS = (128, 256, 512, 1024, 2048)
BATCHES = tuple(1 << power for power in range(11, 20))  # 2,048 to 524,288 tokens
STEPS = {"muon": 500, "adamw": 1000}  # updates that a run should have at least, where the smallest batch allows
MICRO_TOKENS = 8192
SCHEDULE = "linear"  # better than cosine where the run's end is known beforehand (docs/log.md)
WORTH_MUON = 0.25  # share of a step that its own products may take; it saves more (docs/log.md)


@dataclass(frozen=True)
class Candidate:
    """One model in the given time. ``score`` ranks: lower is better."""

    model: str
    parameters: int
    tokens_per_second: float
    tokens: float
    epochs: float | None  # passes over the data, where data are given
    seconds: float
    memory_gb: float
    fits: bool
    score: float
    source: str  # of the speed


@dataclass(frozen=True)
class Advice:
    """What to train, and the command for it."""

    minutes: float
    advised: str
    candidates: list[Candidate]
    sequence_length: int
    batch_tokens: int
    optimizer: str
    lr: float
    command: str
    reasons: list[str]


@dataclass(frozen=True)
class Text:
    """What matters of token shards."""

    directory: Path
    tokens: int
    mean_length: float
    vocabulary: int


def plan_or_advise(config: PlanConfig) -> PlanResult | Advice:
    """Plan a model, or with ``minutes`` advise one: the library function behind ``hepta plan``.

    Raises:
        HeptaError: unknown preset, directory or device; no token shards; nothing that fits.
    """
    return plan(config) if config.minutes is None else advise(config)


def read_text(directory: Path) -> Text:
    """Counts of the training split of token shards.

    Raises:
        HeptaError: no shards there.
    """
    facts = read_tokens_manifest(directory)["facts"]
    train = facts["splits"]["train"]
    return Text(directory, train["tokens"], train["tokens"] / max(1, train["documents"]), facts["padded_size"])


def rank(parameters: float, tokens: float) -> float:
    """The loss that decides between sizes; lower is better."""
    return SCALE + SIZE / parameters**SIZE_POWER + TOKENS / max(tokens, 1.0) ** TOKENS_POWER


def advise(config: PlanConfig) -> Advice:
    """The best of the presets, or the given model, for ``config.minutes`` on this machine.

    Raises:
        HeptaError: no shards in ``data``; nothing that fits this machine's memory.
    """
    import torch

    assert config.minutes is not None
    text = read_text(config.data) if config.data is not None else None
    length = config.sequence_length or _length(text)
    threads = torch.get_num_threads()
    peaks = {dtype: cached_peak(dtype) or measured_peak(dtype) for dtype in ("bf16", "fp32")}
    precision = recommend_precision(peaks)
    speed = machine_speed(machine_key(threads), precision) or Speed(peaks[precision], None, None)
    names = CANDIDATES if config.model is None else (config.model,)
    found = [_candidate(name, config, text, length, precision, threads, speed) for name in names]
    quick = [c for c in found if c.fits and c.tokens_per_second * TRIAL_SECONDS > WORTH_TRYING]
    unsure = [c for c in quick if c.source == ARITHMETIC]
    for candidate in sorted(unsure, key=lambda c: c.score)[:TRIED]:
        place = found.index(candidate)
        found[place] = _candidate(candidate.model, config, text, length, precision, threads, speed, tried=True)
    fitting = [candidate for candidate in found if candidate.fits]
    if not fitting:
        needs = min(found, key=lambda c: c.memory_gb)
        need = f"model {needs.model}: needs {needs.memory_gb:.1f} GB"
        raise HeptaError(f"{need}, more than this machine has; name a smaller one")
    best = min(fitting, key=lambda candidate: candidate.score)
    shape = _shape(best.model, text)
    optimizer, batch = _way(shape, best.tokens, length)
    lr = automatic_lr(shape) * rate_factor(optimizer, shape.hidden_size)
    command, reasons = _command(config, text, best, length, batch, optimizer), _reasons(config, text, best, fitting)
    return Advice(config.minutes, best.model, found, length, batch, optimizer, lr, command, reasons)


def _shape(name: str, text: Text | None) -> Shape:
    if name in PRESETS:
        shape = preset(name, text.vocabulary if text else None)
    else:
        shape = read_shape(name)
    if shape.kind != "causal" or not isinstance(shape, TransformerShape):
        raise HeptaError(f"model {name}: minutes= plans Transformers that predict the next token; leave it out")
    return shape


def _candidate(
    name: str, config: PlanConfig, text: Text | None, length: int, precision: str, threads: int, speed: Speed,
    tried: bool = False,
) -> Candidate:  # fmt: skip
    assert config.minutes is not None
    shape, micro = _shape(name, text), max(1, MICRO_TOKENS // length // 4)
    setting = Setting(length, micro, precision=precision, cpu=True)
    memory = run_bytes(shape, "full", setting, several=False, compiled=False)
    known = recall(case_of(shape, machine_key(threads), "full", precision, False, tokens=setting.tokens))
    seconds, source = step_seconds(shape, "full", setting, 1, speed), ARITHMETIC
    if known is not None:
        seconds, source = seconds * known.factor, known.told
    elif tried:
        seconds, source = try_steps(shape, setting, TRIAL_SECONDS), "tried for a few seconds"
    rate = setting.tokens / seconds
    tokens = rate * config.minutes * 60 * IN_STEPS
    if text is not None:
        tokens = min(tokens, EPOCHS * text.tokens)
    parameters = shape.num_parameters
    return Candidate(
        name, parameters, float(f"{rate:.3g}"), tokens, None if text is None else tokens / text.tokens, tokens / rate,
        round(memory / 1e9, 2), memory <= memory_limit()[0], rank(parameters, tokens), source,
    )  # fmt: skip


def _length(text: Text | None) -> int:
    """Long enough for the mean document; longer windows only cost attention."""
    wanted = 512 if text is None else text.mean_length
    return next((length for length in LENGTHS if length >= wanted), LENGTHS[-1])


def _way(shape: Shape, tokens: float, length: int) -> tuple[str, int]:
    """Optimizer and batch: Muon where its products are a small part of a step, and the largest batch that leaves
    ``STEPS`` updates, at least the smallest and one sequence."""
    fitting = {
        name: max(length, max((batch for batch in BATCHES if tokens / batch >= least), default=BATCHES[0]))
        for name, least in STEPS.items()
    }
    worth = muon_flops(shape) <= WORTH_MUON * training_flops(shape, fitting["muon"], length)
    optimizer = "muon" if worth else "adamw"
    return optimizer, fitting[optimizer]


def _command(
    config: PlanConfig, text: Text | None, best: Candidate, length: int, batch: int, optimizer: str
) -> str:
    data = "TOKENS" if text is None else text.directory
    whole = text is not None and best.tokens >= EPOCHS * text.tokens
    budget = f"epochs={EPOCHS}" if whole else f"minutes={config.minutes:g}"
    name = Path(best.model).name
    return (
        f"hepta pretrain --data {data} --model {best.model} --output out/{name}-{config.minutes:g}min "
        f"{budget} sequence_length={length} batch_tokens={batch} optimizer={optimizer} schedule={SCHEDULE}"
    )


def _reasons(config: PlanConfig, text: Text | None, best: Candidate, fitting: list[Candidate]) -> list[str]:
    lines = [f"{best.tokens / best.parameters:.3g} tokens a parameter; a large model wants about 20"]
    if text is not None and best.tokens >= EPOCHS * text.tokens:
        took = f"{EPOCHS} passes take {best.seconds / 60:.0f} minutes of {config.minutes:g}"
        lines.append(f"the text ends first: {took}; more text would allow more")
    others = sorted((c for c in fitting if c.model != best.model), key=lambda c: c.score)
    if others:
        lines.append(f"next best: {others[0].model}, by {others[0].score - best.score:.2g} of a loss that only ranks")
    return lines


def show_answer(answer: PlanResult | Advice) -> str:
    """The plan or the advice as text for people."""
    return show_plan(answer) if isinstance(answer, PlanResult) else show_advice(answer)


def show_advice(advice: Advice) -> str:
    """The advice as text for people."""
    rows = [["", "parameters", "tokens/s", "tokens", "passes", "GB", "rank", "speed"]]
    for c in advice.candidates:
        mark = "→ " if c.model == advice.advised else "  "
        passes = "" if c.epochs is None else f"{c.epochs:.2g}"
        score = f"{c.score:.2f}" if c.fits else "too large"
        figures = [count_text(c.parameters), count_text(c.tokens_per_second), count_text(c.tokens), passes]
        rows.append([mark + c.model, *figures, f"{c.memory_gb:.2f}", score, c.source])
    lines = [f"{advice.minutes:g} minutes on this machine: {advice.advised}", *table_text(rows)]
    told = f"{advice.batch_tokens:,} tokens a step, {advice.optimizer} at lr {advice.lr:.2g}, which falls in a line"
    lines.append(f"sequences of {advice.sequence_length}, {told}")
    lines += [f"- {reason}" for reason in advice.reasons]
    return "\n".join([*lines, f"train it:  {advice.command}"])
