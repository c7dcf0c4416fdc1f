"""A step of many processes, rehearsed in one: fake tensors have shapes and no numbers, a fake group sends nothing.

What the real step would hold and send is counted while the same code runs: the same ``shard``, forward pass, backward
pass and optimizer. So it is the program's own memory, not a formula's; what allocator and NCCL add is not in it.
"""

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hepta.config import HeptaError
from hepta.model.families import PRESETS, network_class
from hepta.model.whole import local
from hepta.objectives.causal import CHUNK, ChunkedLoss, fusible_softmax_gradient
from hepta.planning.plan import read_shape
from hepta.tokenizer.contract import read_specials
from hepta.training.config import LoopConfig
from hepta.training.optimizer import make_optimizer
from hepta.training.recompute import recompute_blocks
from hepta.training.resolve import _pick_micro_batch
from hepta.training.sharding import device_mesh, shard
from hepta.training.together import refuse_unshared
from hepta.training.world import join, leave, world

KINDS = {"allgather": "all-gather", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter"}


@dataclass(frozen=True)
class Rehearsal:
    """One device of many in one step: bytes that it holds by class, and that it sends and receives."""

    processes: int
    tensor_parallel: int
    parameters: int  # of the whole model
    micro_batch: int
    micro_batches: int
    sequence_length: int
    precision: str
    memory: dict[str, int]
    traffic: dict[str, int]

    def __str__(self) -> str:
        split = f", matrices split over {self.tensor_parallel}" if self.tensor_parallel > 1 else ""
        lines = [
            f"rehearsed: {self.processes} processes{split}, {self.parameters:,} parameters, {self.precision} products, "
            f"{self.micro_batches} × {self.micro_batch} sequences of {self.sequence_length} each",
            "memory of one device, GB",
        ]
        lines += [f"  {name:38} {size / 1e9:10,.3f}" for name, size in self.memory.items()]
        lines.append("traffic of one device in a step, GB")
        lines += [f"  {name:38} {size / 1e9:10,.3f}" for name, size in self.traffic.items()]
        return "\n".join(lines)


class Meter(TorchDispatchMode):
    """Counts what collectives send: of N parts a device is sent all but its own, and a sum is sent there and back."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, float] = defaultdict(float)
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count(str(func), args, result)
        return result

    def _count(self, name: str, args: Any, result: Any) -> None:
        tensors = [value for value in tree_leaves((args, result)) if isinstance(value, Tensor)]
        if not tensors:
            return
        sizes = sorted(local(tensor).numel() * tensor.element_size() for tensor in tensors)
        for word, kind in KINDS.items():
            if word in name:
                self.sent[kind] += sizes[-1] - sizes[0]
                if kind == "all-gather":
                    self.largest = max(self.largest, sizes[-1])
                return
        if "reduce" in name:
            self.sent["all-reduce"] += 2.0 * sizes[-1]


class Kept:
    """Bytes that autograd keeps for the backward pass, weights left out: they are counted where they lie."""

    def __init__(self, model: Any) -> None:
        self.weights: set[int] = set()
        self.sizes: dict[int, int] = {}
        self.alive: list[Tensor] = []  # so that no storage's number is given twice
        for module in model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_pre_hook(self._note)

    def _note(self, module: Any, _: Any) -> None:
        for parameter in module.parameters(recurse=False):
            self.weights.add(_storage(local(parameter)))

    def pack(self, tensor: Tensor) -> Tensor:
        held = local(tensor)
        if _storage(held) not in self.weights:
            self.sizes[_storage(held)] = held.untyped_storage().nbytes()
            self.alive.append(tensor)
        return tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def rehearse(config: Any) -> Rehearsal:
    """Run one micro-batch, backward pass and update as the first of ``config.nproc`` processes, on fake tensors.

    Args:
        config: keys of ``pretrain`` or ``sft``; the data need not be there.

    Raises:
        HeptaError: the same as the run would, of what cannot be shared out.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    shape = _shape(config)
    precision = "bf16" if config.precision == "auto" else config.precision
    if shape.kind != "causal":
        raise HeptaError(f"nproc with --dry-run: a {shape.kind} model is not rehearsed; leave one of them out")
    join("fake", config.tensor_parallel, store=FakeStore(), rank=0, world_size=config.nproc)
    try:
        refuse_unshared(world(), config)
        micro = _pick_micro_batch(config, shape, precision)
        parts = -(-(config.sequences_per_step // world().readers) // micro)
        micro = min(micro, config.sequences_per_step // world().readers)
        memory, traffic = _one_step(config, shape, precision, micro, parts)
    finally:
        leave()
    return Rehearsal(
        config.nproc, config.tensor_parallel, shape.num_parameters, micro, parts, config.sequence_length, precision,
        memory, {name: int(size) for name, size in sorted(traffic.items())},
    )  # fmt: skip


def _shape(config: Any) -> Any:
    name = config.model if config.model != "auto" else "nano"
    tokenizer = getattr(config, "data", None)
    if name in PRESETS and tokenizer is not None and (tokenizer / "tokenizer" / "tokenizer.json").is_file():
        return read_shape(name, -(-read_specials(tokenizer / "tokenizer").contract()["size"] // 64) * 64)
    return read_shape(name)


def _one_step(
    config: LoopConfig, shape: Any, precision: str, micro: int, parts: int
) -> tuple[dict[str, int], dict[str, float]]:
    mesh = device_mesh(world(), "cpu")
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        model: Any = network_class(shape)(shape)
        model.compute_dtype = torch.bfloat16 if precision == "bf16" else None
        shard(model, world(), "cpu", model.compute_dtype, mesh)
        how = "none" if config.recompute == "auto" else config.recompute
        recompute_blocks(model, how)
        kept, meter = Kept(model), stack.enter_context(Meter())
        optimizer = make_optimizer(model, config.weight_decay, config.optimizer)
        ids = torch.zeros(micro, config.sequence_length, dtype=torch.int64)
        targets = torch.zeros(ids.numel(), dtype=torch.int64)

        def head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
            def of_chunk(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
                return fusible_softmax_gradient(logits, targets[part], 0.0)

            return ChunkedLoss.apply(hidden.flatten(0, -2), weight, bias, CHUNK, of_chunk)[0]

        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            total = model(ids, head=head)
        activations = sum(kept.sizes.values())
        total.backward()
        for kind in meter.sent:  # of each micro-batch, where the update is one
            meter.sent[kind] *= parts
        optimizer.step()
        parameters = list(model.parameters())
        states = [value for state in optimizer.state.values() for value in state.values()]
        memory = {
            "parameters": _bytes(parameters), "gradients": _bytes([p.grad for p in parameters]),
            "optimizer": _bytes(states), f"activations (recompute {how})": activations,
            "largest tensors gathered at once": meter.largest,
        }  # fmt: skip
    return {**memory, "together": sum(memory.values())}, meter.sent


def _bytes(tensors: Any) -> int:
    return sum(local(tensor).numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))
