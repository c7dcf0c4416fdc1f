"""A few seconds of training steps with made-up tokens: what a model's micro-batch takes here, never run before."""

import time

from hepta.model.families import network_class
from hepta.model.shape import Shape
from hepta.planning.machine import keep_memory
from hepta.planning.memory import Setting

LEAST, MOST = 2, 8  # micro-batches timed after the first


def try_steps(config: Shape, setting: Setting, seconds: float) -> float:
    """Seconds of one micro-batch, forward and backward, uncompiled; the update is left out.

    Args:
        config: the model's shape; its weights are drawn and thrown away.
        setting: micro-batch, length, precision.
        seconds: about how long to try.
    """
    import torch

    from hepta.objectives.causal import Causal

    keep_memory()  # as a run does
    model, objective = network_class(config)(config), Causal()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)
    model.train()
    model.compute_dtype = torch.bfloat16 if setting.half else None
    ids = torch.randint(0, config.vocab_size, (setting.micro_batch, setting.sequence_length))
    batch = {"input_ids": ids, "labels": ids.roll(-1, 1)}
    times: list[float] = []
    while len(times) <= LEAST or (len(times) <= MOST and sum(times) < seconds):
        began = time.perf_counter()
        objective(model, batch).total.backward()
        model.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[(len(times) - 1) // 2]  # the first one chooses kernels
