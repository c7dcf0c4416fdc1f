"""The largest memory a training process will hold: the classes of ``memory``, and what lies around them on a CPU.

The allocator's gaps, kernels' scratch and what a backward pass makes and drops cannot be had from shapes. They were
fitted once to the peaks of fifteen real runs (nano to small, 1 to 32 sequences of 256 to 1,024 tokens; the table is in
docs/planning.md), which this then meets within a few per cent.
"""

from dataclasses import dataclass

from hepta.model.shape import Shape
from hepta.planning.memory import Setting, memory

PROCESS_BYTES = 350e6  # interpreter, torch, tokenizer and the order of data, before any weight
LOGIT_BYTES = 10.0  # per logit of a chunk: in the compute dtype, as float32, and its log-softmax
HEAD_BYTES = 6.0  # per weight of the head: its gradient's sum in float32, and a chunk's in the compute dtype


@dataclass(frozen=True)
class Surroundings:
    """Bytes beside the classes: once, and per byte of activations and logits."""

    once: float
    slack: float


EAGER = {False: Surroundings(150e6, 1.9), True: Surroundings(150e6, 1.6)}  # by ``Setting.half``
COMPILED = {False: Surroundings(250e6, 1.0), True: Surroundings(250e6, 0.96)}  # with the compiler's modules


def step_bytes(
    config: Shape, method: str, setting: Setting, several: bool, compiled: bool, activations: float | None = None
) -> float:
    """Bytes that training adds to a process which holds the weights: at the head, or where the last gradient is made.

    Args:
        config: the model's shape.
        method: one of ``TRAINING``.
        setting: one micro-batch, precision, optimizer.
        several: a step has more than one micro-batch, so gradients live beside activations.
        compiled: blocks are compiled.
        activations: bytes of them where a way to recompute keeps others than the setting's.
    """
    found, around = memory(config, method, setting), (COMPILED if compiled else EAGER)[setting.half]
    table = float(config.vocab_size * config.hidden_size) if method == "full" else 0.0
    logits = LOGIT_BYTES * found.logits / 8
    kept = found.activations if activations is None else activations
    forward = around.slack * (kept + logits) + HEAD_BYTES * table + (found.gradients if several else 0.0)
    backward = found.gradients + 4.0 * table  # the embedding's own gradient, before it is added
    return around.once + found.optimizer + found.copies + max(forward, backward)


def run_bytes(
    config: Shape, method: str, setting: Setting, several: bool, compiled: bool, process: float = PROCESS_BYTES
) -> float:
    """Bytes of a whole training process at its peak; ``process`` are those before the weights."""
    return process + memory(config, method, setting).weights + step_bytes(config, method, setting, several, compiled)
