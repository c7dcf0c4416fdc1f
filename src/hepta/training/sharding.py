"""A model's tensors cut over processes, by FSDP2 and in tensor parallel, from outside: its file shows mathematics."""

from typing import Any

import torch

from hepta.config import HeptaError
from hepta.model.decoder import Decoder
from hepta.training.world import World


def device_mesh(world: World, device: str) -> Any:
    """The processes as a table: a row for each part of a step's sequences, in it those that split matrices."""
    from torch.distributed.device_mesh import init_device_mesh

    kind = torch.device(device).type  # compare types: a device never equals a string (trap R14)
    return init_device_mesh(kind, (world.readers, world.tensor), mesh_dim_names=("readers", "tensor"))


def shard(model: Any, world: World, device: str, dtype: torch.dtype | None, mesh: Any = None) -> None:
    """Put a model on its device; of several processes each keeps its part of every tensor.

    Blocks are gathered one by one as the forward and backward pass come to them (ZeRO-3), embedding, last norm and head
    for the whole of the root's forward; gradients are summed, not averaged, since the loss was divided by the weight of
    all processes' tokens already.

    Args:
        model: changed in place.
        world: the processes.
        device: where this one's part goes.
        dtype: of products; tensors are gathered in it (None: in their own), gradients are summed in float32.
        mesh: ``device_mesh``, if it is made already.
    """
    if world.size == 1:
        model.to(device)
        return
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = mesh or device_mesh(world, device)
    if world.tensor > 1:
        split_matrices(model, mesh["tensor"])
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for part in [*model.blocks, model]:
        fully_shard(part, mesh=mesh["readers"], mp_policy=policy)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no division


def reshard(model: Any) -> None:
    """After forward passes without a backward pass, drop what the root has gathered.

    Its whole tensors stand in for its parts until then, and the optimizer's moments would not be found under them.
    """
    for part in model.modules():
        if hasattr(part, "reshard"):
            part.reshard()


def split_matrices(model: Any, mesh: Any) -> None:
    """Cut each layer's matrices over the processes of ``mesh``: q, k, v, gate and up by outputs, o and down by inputs.

    Each process then has whole heads and whole neurons, and one sum after o and one after down make the residual
    stream whole again (Shoeybi et al. 2019). Embedding, norms and head are the same in all.

    Raises:
        HeptaError: no plan for the family, or the heads or neurons cannot be shared out evenly.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    shape, parts = model.config, mesh.size()
    if not isinstance(model, Decoder) or shape.qk_norm:
        raise HeptaError("tensor_parallel: only the Llama line without query and key norms has a plan; leave it out")
    if any(type(module).__name__ == "LoRALinear" for module in model.modules()):
        raise HeptaError("tensor_parallel: adapters are too small to be cut; leave it out, or use method=full")
    for what, count in (
        ("heads", shape.num_heads), ("key-value heads", shape.num_kv_heads), ("neurons", shape.intermediate_size),
    ):  # fmt: skip
        if count % parts:
            raise HeptaError(f"tensor_parallel {parts} does not divide the model's {count} {what}; choose a divisor")
    by_outputs = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    plan: dict[str, Any] = {name: ColwiseParallel() for name in by_outputs}
    plan |= {name: RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")}
    for block in model.blocks:
        parallelize_module(block, mesh, plan)
