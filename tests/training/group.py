"""What processes of a group do in tests: each function runs in all of them, the first one's value comes back."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from tiny import SHAPE, ByteOrder, tiny_config, tiny_job

from hepta.config import HeptaError
from hepta.model.decoder import Decoder
from hepta.model.whole import whole
from hepta.objectives.causal import Causal, LossSum
from hepta.training.guard import Guard
from hepta.training.loop import train
from hepta.training.optimizer import make_optimizer
from hepta.training.sharding import shard
from hepta.training.step import micro_batches, run_step
from hepta.training.together import claim_together
from hepta.training.world import World, world

UNEVEN = (1, 5, 6, 7)  # sequences without a supervised token: of step 0 in part, of step 1 all that rank 1 reads


def whole_run(asked: dict[str, Any]) -> dict[str, Any]:
    """``tiny_run`` of a group; ``die`` = [rank, step]: that process is killed where it reads that step."""
    output, die = Path(asked.pop("output")), asked.pop("die", None)
    config = tiny_config(output, **asked)
    stage = claim_together(config, "pretrain", 1)
    world().lead(lambda: str(tiny_job(output)))  # writes the tokenizer
    job = tiny_job(output, poison=UNEVEN, prompts=["print"])
    if die and die[0] == world().rank:
        batch = job.train.batch

        def mortal(start: int, count: int) -> Any:
            if start >= die[1] * config.sequences_per_step:
                os.kill(os.getpid(), signal.SIGKILL)
            return batch(start, count)

        job.train.batch = mortal
    outcome = train(config, stage, job)
    if world().main:
        stage.finish(outcome.weights_sha256, {})
    return {"sha256": outcome.weights_sha256, "prefix": os.environ.get("GLOO_SOCKET_IFNAME")}


def steps(world: World, model: Decoder | None = None, spoilt: int | None = None, count: int = 4) -> dict[str, Any]:
    """A few optimizer steps on uneven data; in step ``spoilt`` the last process's loss is not finite."""
    if model is None:
        model = Decoder(SHAPE)
        model.init_weights(3)
    shard(model, world, "cpu", None)
    order = ByteOrder(32, 19, poison=UNEVEN)
    optimizer, guard, results = make_optimizer(model, 0.1), Guard(20.0), []
    for step in range(count):
        objective = Spoilt() if step == spoilt and world.rank == world.size - 1 else Causal()
        batches = micro_batches(order, step, 4, 1, world)
        results.append(run_step(model, optimizer, objective, batches, 3e-3, 1.0, guard, world=world))
    weights = {name: whole(parameter.detach()).flatten()[:50].tolist() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        logits = model(torch.arange(24)[None] * 7)[0, :, :40]
    return {
        "rows": [[one.loss, one.weight, one.grad_norm] for one in results], "weights": weights,
        "skipped": [one.skipped for one in results], "logits": logits.tolist(),
    }  # fmt: skip


class Spoilt(Causal):
    """A loss that overflowed."""

    def __call__(self, model: Any, batch: Any) -> LossSum:
        total, weight, parts = super().__call__(model, batch)
        return LossSum(total * float("inf"), weight, parts)


def untied(**changes: Any) -> Decoder:
    """A decoder with a head of its own, and biases."""
    model = Decoder(SHAPE.replace(tied=False, num_heads=4, num_kv_heads=2, head_dim=8, **changes))
    model.init_weights(3)
    return model


def refusals() -> list[str]:
    """What cannot be split says so."""
    said = []
    for changes in ({"num_kv_heads": 1}, {"num_kv_heads": 2, "intermediate_size": 63}, {"qk_norm": True}):
        model = Decoder(SHAPE.replace(**changes))
        try:
            shard(model, World(world().rank, 2, tensor=2), "cpu", None)
        except HeptaError as error:
            said.append(str(error))
    return said


def two(folder: str) -> dict[str, Any]:
    """Everything the default tests ask of two processes, in one group, as starting one takes seconds."""
    here, run = world(), str(Path(folder) / "run")
    keys = {"max_steps": 8, "schedule": "constant", "warmup": 1, "eval": {"every": 4, "tokens": 256}}
    split = World(here.rank, 2, tensor=2)
    return {
        "cut": steps(here), "spoilt": steps(here, spoilt=2), "heads": steps(split, untied()),
        "refusals": refusals(), "run": whole_run({"output": run, **keys}),
    }  # fmt: skip
