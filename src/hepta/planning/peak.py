"""The largest memory a training process will hold: the classes of ``memory``, and what lies around them on a CPU.

Three things cannot be had from shapes and were fitted once to the peaks of real runs (nano to small; the table is in
docs/planning.md, with runs that had no part in it): what kernels take, the allocator's gaps and what a backward pass
makes and drops, as a share of the activations, and what a process holds after its first evaluation.
"""

from dataclasses import dataclass

from hepta.model.shape import Shape
from hepta.planning.memory import LOGIT_ROWS, WIDE_LOGITS, Setting, memory

PROCESS_BYTES = 491e6  # interpreter, torch, tokenizer, order of data and what a first evaluation loads; no weight
COPY_BYTES = 8.0  # per logit of a chunk beside the logit itself: as float32, and its log-softmax
HEAD_BYTES = 6.0  # per weight of the head: its gradient's sum in float32, and a chunk's in the compute dtype


@dataclass(frozen=True)
class Surroundings:
    """Bytes beside the classes: once, and per byte of activations."""

    once: float
    slack: float


EAGER = {False: Surroundings(17e6, 1.93), True: Surroundings(17e6, 1.62)}  # by ``Setting.half``
COMPILED = {False: Surroundings(112e6, 1.0), True: Surroundings(112e6, 0.91)}  # with the compiler's modules


def chunk_bytes(config: Shape, setting: Setting, rows: float) -> float:
    """Bytes of the largest chunk of logits under way.

    The logits, two float32 copies, and from the second chunk on the gradient of the one before, which Python drops
    only when the next is there. Of a large vocabulary some rows have copies at a time, and the gradient waits for all.

    Args:
        config: its vocabulary.
        setting: how wide a logit is.
        rows: positions that meet the head; where few are supervised, only those do.
    """
    width = 2.0 if setting.half else 4.0
    logits = min(LOGIT_ROWS, rows) * config.vocab_size
    gradients = (rows > LOGIT_ROWS) + (logits > WIDE_LOGITS)
    return width * (1 + gradients) * logits + COPY_BYTES * min(logits, WIDE_LOGITS)


def step_bytes(
    config: Shape,
    method: str,
    setting: Setting,
    several: bool,
    compiled: bool,
    activations: float | None = None,
    rows: float | None = None,
) -> float:
    """Bytes that training adds to a process which holds the weights: at the head, or where the last gradient is made.

    Args:
        config: the model's shape.
        method: one of ``TRAINING``.
        setting: one micro-batch, precision, optimizer.
        several: a step has more than one micro-batch, so gradients live beside activations.
        compiled: blocks are compiled.
        activations: bytes of them where a way to recompute keeps others than the setting's.
        rows: positions of a micro-batch that meet the head; None: all.
    """
    found, around = memory(config, method, setting), (COMPILED if compiled else EAGER)[setting.half]
    table = float(config.vocab_size * config.hidden_size) if method == "full" else 0.0
    logits = chunk_bytes(config, setting, setting.tokens if rows is None else rows)
    kept = found.activations if activations is None else activations
    forward = around.slack * kept + logits + HEAD_BYTES * table + (found.gradients if several else 0.0)
    backward = found.gradients + 4.0 * table  # the embedding's own gradient, before it is added
    return around.once + found.optimizer + found.copies + max(forward, backward)


def run_bytes(
    config: Shape, method: str, setting: Setting, several: bool, compiled: bool, process: float = PROCESS_BYTES
) -> float:
    """Bytes of a whole training process at its peak; ``process`` are those beside the weights."""
    return process + memory(config, method, setting).weights + step_bytes(config, method, setting, several, compiled)
