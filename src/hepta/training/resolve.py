"""Automatic values, decided once per run, written to it and read back: nothing automatic twice."""

import os
import platform
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from hepta import __version__
from hepta.config import HeptaError, read_yaml
from hepta.console import say, warn
from hepta.cores import waiting
from hepta.model.shape import Shape
from hepta.planning.cost import training_flops
from hepta.planning.machine import (
    cache_directory,
    compiler,
    keep_memory,
    measured_peak,
    processor_name,
    recommend_precision,
)  # fmt: skip
from hepta.planning.memory import OPTIMIZERS, PRECISIONS, Setting, activation_bytes
from hepta.planning.rates import rate_factor
from hepta.stage import write_atomic, write_json
from hepta.training.config import LoopConfig
from hepta.training.recompute import pick_recompute
from hepta.training.world import world

MICRO_TOKENS = 8192  # most tokens of one forward pass when nothing is said
MICRO_BYTES = 1.5 * 2**30  # most memory of its activations
WORTH_COMPILING = 240.0  # seconds of training that repay a compilation
RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Resolved:
    """Every automatic value of a run."""

    precision: str
    device: str
    threads: int
    compile: bool
    micro_batch: int
    lr: float
    peak_gflops: float  # measured, of the dtype that is used
    processor: str
    torch_version: str
    recompute: str = "none"
    processes: int = 1
    total_steps: int = 0
    save_every: int | None = None  # steps that the first two minutes made, where checkpoint.every is not given
    step_seconds: float | None = None  # of a few steps that were tried
    warmup: int | None = None  # steps, decided before those of ``minutes`` are counted anew
    counts: list[list[int]] = field(default_factory=list)  # of ``minutes``: from which step on which total holds
    budget: dict[str, Any] = field(default_factory=dict)

    def total_at(self, step: int) -> int:
        """The number of steps that the rate of a step is reckoned by."""
        return next((total for start, total in reversed(self.counts) if start <= step), self.total_steps)

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Dtype of products; None: that of the weights."""
        return torch.bfloat16 if self.precision == "bf16" else None


def _pick_micro_batch(config: LoopConfig, shape: Shape, precision: str) -> int:
    if config.update_in_backward:
        return config.sequences_per_step
    if config.micro_batch:
        return min(config.micro_batch, config.sequences_per_step)
    sequences = config.sequences_per_step // world().readers
    length, best, again = config.sequence_length, 1, config.recompute == "block"
    for n in range(1, MICRO_TOKENS // length + 1):
        setting = Setting(length, n, recompute=again, precision=precision, cpu=True)
        fits = activation_bytes(shape, setting) <= MICRO_BYTES
        if fits and sequences % n == 0:  # equal parts compile once
            best = n
    return best


def pick_device(name: str) -> str:
    """What ``device`` means here.

    Raises:
        HeptaError: an unknown device, or a GPU that torch does not see.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type  # compare types: a device never equals a string (trap R14)
    except RuntimeError:
        raise HeptaError(f"device {name!r} is unknown; use cpu, cuda or auto") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise HeptaError("device 'cuda': this torch sees no GPU; use device=cpu, or install torch from a CUDA index")
    return name


def _pick_compile(config: LoopConfig, shape: Shape, peak: float, tokens: float) -> bool:
    if config.compile is False:
        return False
    if compiler() is None:
        say("compile: no C++ compiler here, so the blocks run as they are (slower, same mathematics)")
        return False
    if config.compile is True:
        return True
    seconds = training_flops(shape, tokens, config.sequence_length) / (0.4 * peak * 1e9)
    if config.minutes is not None:
        seconds = min(seconds, config.minutes * 60)
    return seconds >= WORTH_COMPILING


def precision_of(config: LoopConfig) -> str:
    """The precision of a run, which its weights may be read in: as it began, or what its keys mean on this machine."""
    old = read_resolved(config.output)
    if old is not None:
        return old.precision
    if config.precision != "auto":
        return config.precision
    threads, kind = config.threads or torch.get_num_threads(), torch.device(pick_device(config.device)).type
    return recommend_precision({dtype: measured_peak(dtype, threads, kind) for dtype in ("fp32", "bf16")})


def resolve(config: LoopConfig, shape: Shape, lr: float, tokens: float, trained: int) -> Resolved:
    """Decide every automatic value but the number of steps.

    Args:
        config: the run's keys.
        shape: the model's.
        lr: what ``lr: auto`` means for this verb and AdamW.
        tokens: tokens the run may read at most, by its budgets other than ``minutes``.
        trained: parameters that learn.
    """
    device = pick_device(config.device)
    threads = config.threads or torch.get_num_threads()
    kind = torch.device(device).type
    precision = precision_of(config)
    peak = measured_peak(precision.removesuffix("-pure"), threads, kind)
    compiled = _pick_compile(config, shape, peak, tokens)
    if config.recompute == "selective" and compiled and config.compile == "auto":
        compiled = False  # compiled blocks choose for themselves what to keep
    micro, recompute = _pick_micro_batch(config, shape, precision), config.recompute
    if recompute == "auto":
        setting = Setting(config.sequence_length, micro, precision=precision, cpu=kind == "cpu")
        state = OPTIMIZERS[config.optimizer].other * trained  # Adafactor's is next to nothing
        if not config.update_in_backward:
            state += PRECISIONS[precision].gradients * trained
        recompute = pick_recompute(shape, setting, state, device, compiled)
    return Resolved(
        precision=precision, device=device, threads=threads, compile=compiled, micro_batch=micro, recompute=recompute,
        lr=lr * rate_factor(config.optimizer, shape.hidden_size) if isinstance(config.lr, str) else config.lr,
        peak_gflops=peak, processes=world().size,
        processor=processor_name(), torch_version=str(torch.__version__),
    )  # fmt: skip


def read_resolved(run: Path) -> Resolved | None:
    """The values of a run begun earlier, None where there are none."""
    path = run / RECIPE
    if not path.is_file():
        return None
    return Resolved(**read_yaml(path)["resolved"])


def write_resolved(run: Path, verb: str, config: LoopConfig, resolved: Resolved) -> None:
    """Write ``recipe.yaml``: the run's keys and what its automatic values became."""
    values = {"verb": verb, **config.model_dump(mode="json"), "resolved": asdict(resolved)}
    write_atomic(run / RECIPE, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def write_environment(run: Path) -> None:
    """Write ``environment.json``: versions and machine."""
    write_json(run / "environment.json", {
        "hepta": __version__, "torch": str(torch.__version__), "python": platform.python_version(),
        "system": platform.platform(), "processor": processor_name(), "cores": os.cpu_count(),
        "threads_wait": waiting(),
    })  # fmt: skip


def carry_over(config: LoopConfig, old: Resolved) -> Resolved:
    """The values to go on with: the old ones, unless the user now says otherwise or the machine is another.

    What makes the rest of the run differ in its last bits is said, with the reason.
    """
    new = replace(old, device=pick_device(config.device) if config.device != "auto" else old.device)
    new = replace(new, processes=world().size)
    if config.threads is not None or new.processes != old.processes:
        new = replace(new, threads=config.threads or torch.get_num_threads())
    if config.compile != "auto":
        new = replace(new, compile=config.compile)
    if config.micro_batch is not None:
        new = replace(new, micro_batch=config.micro_batch)
    if config.recompute != "auto":
        new = replace(new, recompute=config.recompute)
    keys = ("device", "threads", "compile", "micro_batch", "processes")
    changed = [key for key in keys if getattr(new, key) != getattr(old, key)]
    here = {"processor": processor_name(), "torch_version": str(torch.__version__)}
    changed += [key for key, value in here.items() if getattr(old, key) != value]
    if changed:
        warn(f"not bit-exact with an uninterrupted run from here on: {', '.join(changed)} differ from when it began")
    if new.compile and compiler() is None:
        warn("the run began with compiled blocks and there is no C++ compiler now: going on without, not bit-exact")
        new = replace(new, compile=False)
    return replace(new, **here)


def prepare_machine(resolved: Resolved) -> None:
    """Set threads, keep freed memory, and let compiled code be found again by the next run."""
    torch.set_num_threads(resolved.threads)
    keep_memory()
    if resolved.compile:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_directory() / "inductor"))
