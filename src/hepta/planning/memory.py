"""Bytes of training and inference by class, from closed forms.

What stands behind the numbers, so that they can be checked:

- *full*: fp32 weights, fp32 gradients, two fp32 AdamW moments: 16 bytes per parameter. (bf16 weights and
  gradients with fp32 masters and moments are 16 bytes too.) Beside them, bf16 copies of the weights that
  the backward pass needs: of all layers, or of one layer where layers are recomputed.
- *lora*: the base in bf16 and frozen; adapters of a rank on every linear layer at 16 bytes per parameter.
- *qlora*: as lora, the layers' matrices at 4.127 bits (NF4, blocks of 64, double quantisation), the rest bf16.
- *inference*: bf16 all; int8 and 4-bit as ``hepta compress quantize`` writes them: the layers' matrices at 8 bits
  with a bf16 scale per row, or at 4 with one per 32 columns (the Llama line's values at 8); embedding and head at
  8 bits in both; the rest bf16.
- *activations*: what autograd keeps of an uncompiled model (compiled, less), attention fused: no T × T
  matrix, but on a CPU, where keeping the probabilities of the causal half is faster.
  Recomputed: each layer's input, and one layer in full.
- *logits*: the head and loss taken in chunks of 1,024 rows: fp32 logits and their gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from hepta.model.config import ModelConfig
from hepta.model.shape import Shape, TransformerShape

TRAINING = ("full", "lora", "qlora")
INFERENCE = ("bf16", "int8", "4-bit")
METHODS = TRAINING + INFERENCE
LOGIT_ROWS = 1024
WIDE_LOGITS = 1 << 23  # float32 at a time
CPU_BLOCK = 128  # queries whose probabilities a CPU computes together, each with the keys up to the block's end
MATRIX_BITS = {"full": 32.0, "bf16": 16.0, "int8": 8.0, "4-bit": 4.0}
FROZEN_BYTES = {"lora": 2.0, "qlora": 4.127 / 8}  # of a base, per parameter: fp32 4, bf16 2, int8 1.06, int4 0.56
VALUES = 2  # place of the values' map among a layer's; the Llama line's takes 8 bits in a 4-bit model
GROUP = 32  # columns that share a bf16 scale where weights have 4 bits
TILE = 1 << 20  # quantised weights turned to floats at a time


@dataclass(frozen=True)
class ValueBytes:
    """Bytes per trained parameter: its weight, its gradient, and the copy that products and backward pass need."""

    weights: float
    gradients: float
    copies: float


@dataclass(frozen=True)
class StateBytes:
    """What an optimizer keeps: bytes per parameter of the layers' matrices, per other parameter, per row and column."""

    matrix: float
    other: float
    line: float = 0.0  # of the layers' matrices, where moments are factored

    def total(self, shapes: Sequence[tuple[int, int]], others: int) -> float:
        """Bytes of the state of matrices (rows, columns) and of ``others`` parameters beside them."""
        matrices = sum(self.matrix * rows * columns + self.line * (rows + columns) for rows, columns in shapes)
        return matrices + self.other * others


PRECISIONS = {  # key ``precision`` of training → what a parameter weighs
    "fp32": ValueBytes(4, 4, 0),
    "bf16": ValueBytes(4, 4, 2),  # products in bf16 on fp32 weights
    "bf16-pure": ValueBytes(2, 2, 0),
}
OPTIMIZERS = {  # key ``optimizer`` of training → its state
    "adamw": StateBytes(8, 8),
    "adamw8bit": StateBytes(2 + 8 / 256, 2 + 8 / 256),  # and a scale per block of each moment
    "muon": StateBytes(4, 8),
    "adafactor": StateBytes(0, 0, 4),  # the tables' rows and columns, and vectors, are too few to count
    "sgd": StateBytes(4, 4),
}


@dataclass(frozen=True)
class Memory:
    """Bytes by class; ``copies`` are bf16 copies or dequantised layers alive during a step."""

    weights: float
    gradients: float = 0.0
    optimizer: float = 0.0
    copies: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    kv_cache: float = 0.0

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Setting:
    """What memory depends on beside the model."""

    sequence_length: int
    micro_batch: int = 1
    rank: int = 16
    recompute: bool = False
    shards: int = 1  # devices over which weights, gradients and moments are split evenly
    precision: str = "bf16"  # one of PRECISIONS
    cpu: bool = False  # whose attention keeps its probabilities for the backward pass
    optimizer: str = "adamw"  # one of OPTIMIZERS
    update_in_backward: bool = False  # a gradient lives until its parameter is updated

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch."""
        return self.micro_batch * self.sequence_length

    @property
    def half(self) -> bool:
        """Whether products are of 16-bit values."""
        return self.precision != "fp32"


def adapter_parameters(config: Shape, rank: int) -> int:
    """Parameters of LoRA adapters of ``rank`` on every linear map of every layer."""
    return config.num_layers * sum(rank * (inputs + outputs) for inputs, outputs in config.linear_shapes())


def layer_matrix_parameters(config: Shape) -> int:
    """Parameters of one layer's matrices."""
    return sum(inputs * outputs for inputs, outputs in config.linear_shapes())


def largest_part(config: Shape) -> int:
    """Parameters of the largest part whose gradients live together: a layer's matrices, or the embedding."""
    return max(layer_matrix_parameters(config), config.vocab_size * config.hidden_size)


def weight_bytes(config: Shape, method: str) -> float:
    """Bytes of the weights as ``method`` stores them (adapters not counted)."""
    matrices = config.num_layers * layer_matrix_parameters(config)
    if method in FROZEN_BYTES:
        each = FROZEN_BYTES[method]
        return each * matrices + max(each, 2.0) * (config.num_parameters - matrices)
    if method in ("full", "bf16"):
        return config.num_parameters * MATRIX_BITS[method] / 8
    stored = matrices * MATRIX_BITS[method] / 8
    rows = config.vocab_size * (1 if config.tied else 2)  # of the embedding, and of a head of its own
    tables, scales = rows * config.hidden_size, rows
    for place, (inputs, outputs) in enumerate(config.linear_shapes()):
        bytes_each = method == "int8" or (place == VALUES and isinstance(config, ModelConfig))
        scales += config.num_layers * (outputs if bytes_each else inputs * outputs // GROUP)
        stored += config.num_layers * inputs * outputs / 2 if bytes_each and method == "4-bit" else 0
    return stored + tables + 2.0 * (scales + config.num_parameters - matrices - tables)


def kv_cache_bytes(config: Shape, sequence_length: int, sequences: int = 1) -> float:
    """Bytes of keys and values in bf16 for ``sequences`` of a length; a sliding layer keeps its window only."""
    if not isinstance(config, TransformerShape):
        return 0.0
    windows = [config.window(layer) for layer in range(config.num_layers)]
    kept = sum(min(sequence_length, window or sequence_length) for window in windows)
    return 2.0 * 2 * config.key_width * kept * sequences


def layer_activation_bytes(config: Shape, setting: Setting) -> float:
    """Bytes autograd keeps of one layer.

    Two norms, each its input and its scaled input in fp32 and its result; q, k, v and attention's output; an
    fp32 log-sum per head, or on a CPU the probabilities (of the causal half, where a model is causal); the MLP's
    gate, silu of it, up, and their product, or without a gate its inner values before and after the GELU.
    """
    size = 2 if setting.half else 4
    if not isinstance(config, TransformerShape):  # what goes into and comes out of each linear map
        return setting.tokens * size * float(sum(inputs + outputs for inputs, outputs in config.linear_shapes()))
    D, T, causal = config.hidden_size, setting.sequence_length, config.kind == "causal"
    norms = 2 * (2 * 4 + size) * D
    seen = size * (min(T, (T + CPU_BLOCK) / 2) if causal else T) if setting.cpu else 4
    attention = size * (2 * config.query_width + 2 * config.key_width) + config.num_heads * seen
    hidden = (4 if config.mlp_matrices == 3 else 2) * config.intermediate_size
    return setting.tokens * (norms + attention + size * hidden)


def activation_bytes(config: Shape, setting: Setting) -> float:
    """Bytes of activations of one micro-batch, with or without recomputation of layers."""
    layer = layer_activation_bytes(config, setting)
    width = setting.tokens * config.hidden_size * (2.0 if setting.half else 4.0)
    if setting.recompute:
        return (config.num_layers + 2) * width + layer  # each layer's input, the head's input and gradient
    return config.num_layers * layer + 2 * width


def logits_bytes(config: Shape, setting: Setting) -> float:
    """Bytes of one chunk of fp32 logits and its gradient."""
    rows = min(LOGIT_ROWS, setting.tokens)
    return 8.0 * rows * config.vocab_size


def memory(config: Shape, method: str, setting: Setting) -> Memory:
    """Bytes by class on each device.

    Args:
        config: widths of the decoder.
        method: one of ``METHODS``.
        setting: sequence length, micro-batch, rank, recomputation, devices, precision, optimizer.
    """
    parameters, shards = config.num_parameters, setting.shards
    weights = weight_bytes(config, method)
    layer = 2.0 * layer_matrix_parameters(config)  # one layer's matrices in 16 bits
    if method in INFERENCE:
        width = config.hidden_size + sum(outputs for _, outputs in config.linear_shapes())
        copies = (0.0 if setting.half else layer) if method == "bf16" else (2.0 if setting.half else 4.0) * TILE
        return Memory(
            weights=weights / shards,
            copies=copies,
            activations=(2.0 if setting.half else 4.0) * setting.tokens * width,  # one layer at a time
            logits=4.0 * setting.micro_batch * config.vocab_size,  # of the last position
            kv_cache=kv_cache_bytes(config, setting.sequence_length, setting.micro_batch) / shards,
        )
    activations, logits = activation_bytes(config, setting), logits_bytes(config, setting)
    state = OPTIMIZERS[setting.optimizer]
    if method == "full":
        each, inner = PRECISIONS[setting.precision], layer_matrix_parameters(config)
        maps = config.linear_shapes() * config.num_layers
        copied = inner if setting.recompute or shards > 1 else parameters
        graded = largest_part(config) if setting.update_in_backward else parameters
        return Memory(
            weights=each.weights * parameters / shards, gradients=each.gradients * graded / shards,
            optimizer=state.total(maps, parameters - config.num_layers * inner) / shards,
            copies=each.copies * copied, activations=activations, logits=logits,
        )
    adapters = adapter_parameters(config, setting.rank)
    pairs = [(setting.rank, side) for shape in config.linear_shapes() for side in shape] * config.num_layers
    return Memory(
        weights=(weights + 4.0 * adapters) / shards, gradients=4.0 * adapters / shards,
        optimizer=state.total(pairs, 0) / shards, copies=layer if method == "qlora" or shards > 1 else 0.0,
        activations=activations, logits=logits,
    )
