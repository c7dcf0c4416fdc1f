"""Seconds of a training step on this machine, from rates that were measured on it; no torch here."""

from dataclasses import dataclass

from hepta.model.shape import Shape
from hepta.planning.cost import muon_flops
from hepta.planning.machine import COPY, read_rates
from hepta.planning.memory import Setting, activation_bytes, adapter_parameters
from hepta.planning.products import Rates, cached_products, rate_at

PART_OF_PEAK = 0.6  # of a large square product's rate, where training's own products were never timed
VISITS = 5  # times each byte of activations crosses to memory: written, read, read again, its gradient both ways
UPDATE_BYTES = 40.0  # per trained parameter: norm, clipping, and an update that reads four values and writes three
ROUNDED_BYTES = 130.0  # the same where bfloat16 weights are rounded by chance: 3.2 ns of a machine that copies 38 GB/s
DECODED_BYTES = 16.0  # per weight kept as an integer and pass: made a float in cache, in products of some rows each
ATTENTION_ROWS = 256  # the small products of attention are as slow as those of few rows


@dataclass(frozen=True)
class Speed:
    """What a machine does: GFLOP/s of large products, of training's products, and GB/s; None: never measured."""

    peak: float
    products: Rates | None
    memory: float | None

    def rate(self, kind: str, rows: float) -> float:
        """FLOP/s of one kind of product at a number of rows."""
        known = PART_OF_PEAK * self.peak if self.products is None else rate_at(self.products[kind], rows)
        return known * 1e9


def machine_speed(machine: str, precision: str) -> Speed | None:
    """What the cache knows of the machine of this key, None where not even a peak was measured."""
    rates, dtype = read_rates(), "fp32" if precision == "fp32" else "bf16"
    peak = rates.get(f"{machine}, {dtype}")
    if peak is None:
        return None
    return Speed(peak, cached_products(dtype, machine), rates.get(f"{machine}, {COPY}"))


def step_seconds(config: Shape, method: str, setting: Setting, micro_batches: float, speed: Speed) -> float:
    """Seconds of one optimizer step of ``micro_batches`` full ones; a run's calibration corrects it.

    Products at the rate of their kind and rows, activations at the speed of memory, and the update.

    Args:
        config: the model's shape.
        method: ``full``, or with a frozen base ``lora`` or ``qlora``.
        setting: one micro-batch.
        micro_batches: of one step; the last may be a part of one.
        speed: of the machine.
    """
    parts, rows, full = config.token_flops(setting.sequence_length), setting.tokens, method == "full"
    maps = parts.total - parts.attention
    seconds = maps * (2 if setting.recompute else 1) / speed.rate("forward", rows)
    seconds += maps / speed.rate("inputs", rows) + (maps / speed.rate("weights", rows) if full else 0.0)
    seconds += (4 if setting.recompute else 3) * parts.attention / speed.rate("forward", ATTENTION_ROWS)
    trained = config.num_parameters if full else adapter_parameters(config, setting.rank)
    update = 0.0
    if setting.optimizer == "muon" and full:
        update = muon_flops(config) / speed.rate("forward", config.hidden_size)
    if speed.memory is not None:
        seconds += VISITS * activation_bytes(config, setting) / setting.tokens / (speed.memory * 1e9)
        each = ROUNDED_BYTES if setting.precision == "bf16-pure" else UPDATE_BYTES
        update += each * trained / (speed.memory * 1e9)
        if method == "qlora":  # once in each pass of a micro-batch, however many tokens it has
            passes = 3 if setting.recompute else 2
            seconds += passes * DECODED_BYTES * config.num_parameters / setting.tokens / (speed.memory * 1e9)
    return micro_batches * setting.tokens * seconds + update
