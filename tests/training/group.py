"""What processes of a group do in tests: each function runs in all of them, the first one's value comes back."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from tiny import SHAPE, ByteOrder, TwoSources, byte_tokenizer, tiny_config, tiny_job

from hepta.config import HeptaError, Interrupted, build
from hepta.model.decoder import Decoder
from hepta.model.load import save_model
from hepta.model.whole import placed_like, whole
from hepta.objectives.causal import Causal, LossSum
from hepta.training.config import SftConfig
from hepta.training.guard import Guard
from hepta.training.job import Job
from hepta.training.loop import train
from hepta.training.optimizer import make_optimizer, set_learning_rate
from hepta.training.sft import sft
from hepta.training.sharding import shard
from hepta.training.step import micro_batches, run_step
from hepta.training.together import claim_together
from hepta.training.world import World, world

UNEVEN = (1, 5, 6, 7)  # sequences without a supervised token: of step 0 in part, of step 1 all that rank 1 reads
TALK = [
    ("hello", "Good day to you, and what a fine one it is."), ("bye", "Bye."), ("count", "One, two, three, four."),
    ("and back", "Five, four."), ("who are you?", "I am a very small model, smaller than most."), ("你好", "你好。"),
    ("数数", "一，二，三，四，五，六，七。"), ("再见", "下次再见，路上小心。"),
]  # fmt: skip

METHODS = ({"method": "full", "validation": 0.2}, {"method": "lora", "validation": 0.0})


def talk(folder: Path) -> dict[str, Any]:
    """Keys of a tuning run: a model that answers, made here, and conversations with answers of many lengths."""
    model = Decoder(SHAPE)
    model.init_weights(1)
    save_model(model, folder / "talker", byte_tokenizer(folder / "bytes"))
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": said}]}
        for question, said in TALK
    ]
    (folder / "talk.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return {
        "model": str(folder / "talker"), "data": [str(folder / "talk.jsonl")], "sequence_length": 128,
        "batch_tokens": 512, "micro_batch": 1, "max_steps": 5, "lr": 4e-3, "precision": "fp32", "compile": False,
        "threads": 1, "sample_prompts": [], "eval": {"every": 9}, "packing": False,
    }  # fmt: skip


def tuned(keys: dict[str, Any]) -> dict[str, Any]:
    """``hepta sft`` in all processes of a group."""
    return {"p_stop": sft(build(SftConfig, keys)).p_stop}


def whole_run(asked: dict[str, Any]) -> dict[str, Any]:
    """``tiny_run`` of a group; ``die`` = [rank, step]: that process is killed where it reads that step; ``heads``:
    of a model whose heads can be split; ``signal`` = [step, number], see ``stopped_late``."""
    output, die, late = Path(asked.pop("output")), asked.pop("die", None), asked.pop("signal", None)
    model = untied() if asked.pop("heads", False) else None
    config = tiny_config(output, **asked)
    stage = claim_together(config, "pretrain", 1)
    world().lead(lambda: str(tiny_job(output)))  # writes the tokenizer
    job = tiny_job(output, poison=UNEVEN, prompts=["print"], model=model)
    job.train = TwoSources(32, 19, poison=UNEVEN)
    if die and die[0] == world().rank:
        batch = job.train.batch

        def mortal(start: int, count: int) -> Any:
            if start >= die[1] * config.sequences_per_step:
                os.kill(os.getpid(), signal.SIGKILL)
            return batch(start, count)

        job.train.batch = mortal
    if late:
        signal_at(job, late[0] * config.sequences_per_step, late[1])
    outcome = train(config, stage, job)
    if world().main:
        stage.finish(outcome.weights_sha256, {})
    return {"sha256": outcome.weights_sha256, "prefix": os.environ.get("GLOO_SOCKET_IFNAME")}


def signal_at(job: Job, sequence: int, number: int) -> None:
    """Signal the first process where it reads this sequence, the others where they save."""
    batch, save = job.train.batch, job.save

    def read(start: int, count: int) -> Any:
        if start == sequence and world().main:
            os.kill(os.getpid(), number)
        return batch(start, count)

    def saving(place: Path, dtype: Any) -> None:
        if not world().main:
            os.kill(os.getpid(), number)
        save(place, dtype)

    job.train.batch, job.save = read, saving


def stopped_late(asked: dict[str, Any]) -> dict[str, Any]:
    """``whole_run``: the first process has a signal at step 6, the second only when it saves, and again as it ends."""
    asked["signal"] = [6, signal.SIGTERM]  # the first four are read to be measured
    try:
        return whole_run(asked)
    except Interrupted:
        if not world().main:
            os.kill(os.getpid(), signal.SIGTERM)
        raise


def steps(
    world: World, model: Decoder | None = None, spoilt: int | None = None, count: int = 4, name: str = "adamw"
) -> dict[str, Any]:
    """A few optimizer steps on uneven data; in step ``spoilt`` the last process's loss is not finite."""
    if model is None:
        model = Decoder(SHAPE)
        model.init_weights(3)
    shard(model, world, "cpu", None)
    order = ByteOrder(32, 19, poison=UNEVEN)
    optimizer, guard, results = make_optimizer(model, 0.1, name), Guard(20.0), []
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


def given(world: World, model: Decoder) -> dict[str, list[float]]:
    """Weights after three steps of Muon on gradients whose every bit is given, so that no sum over parts differs."""
    shard(model, world, "cpu", None)
    optimizer, generator = make_optimizer(model, 0.1, "muon"), torch.Generator().manual_seed(5)
    set_learning_rate(optimizer, 1e-2)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = placed_like(parameter, torch.randn(parameter.shape, generator=generator))
        optimizer.step()
    return {name: whole(parameter.detach()).flatten().tolist() for name, parameter in model.named_parameters()}


class Spoilt(Causal):
    """A loss that overflowed."""

    def __call__(self, model: Any, batch: Any) -> LossSum:
        found = super().__call__(model, batch)
        return found._replace(total=found.total * float("inf"))


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
    chat = world().lead(lambda: talk(Path(folder)))
    keys = {"max_steps": 8, "schedule": "constant", "warmup": 1, "eval": {"every": 4, "tokens": 256}, "statistics": 3}
    split = World(here.rank, 2, tensor=2)
    return {
        "cut": steps(here), "spoilt": steps(here, spoilt=2), "heads": steps(split, untied()),
        "muon": steps(here, name="muon"), "given": [given(here, untied()), given(split, untied())],
        "refusals": refusals(), "run": whole_run({"output": run, **keys}),
        "sft": [tuned({**chat, **how, "output": Path(folder) / how["method"]}) for how in METHODS],
    }  # fmt: skip
