"""Speed and memory of hepta's training step beside transformers' `Trainer`, taking turns.

    python benchmarks/trainer.py [--rounds 5] [--steps 3] [--skip 6] [--only hepta fp32]

A Llama of 30M parameters (width 512, 8 layers, 8 heads, vocabulary 8192, tied), batches of 8 × 512 tokens, AdamW with
clipping at 1 and decay 0.1, the same weights and the same batches for all. Every contestant is a process of its own
that waits for its turn between groups of steps; each round gives every one a turn, so a busy machine slows all alike.
Printed per contestant: the loss of its first step (all must agree), tokens per second as median and quartiles over the
rounds, hepta's ratio to it as the median of the rounds' ratios with their range, and the peak resident memory.

    fp32       transformers as it comes on a CPU
    bf16       with bf16=True (autocast)
    compiled   that and torch_compile=True
    kept       that and glibc told by its environment to keep freed memory, as hepta tells it from inside

Threads wait for work as each comes: hepta decides by the load, the others as OpenMP does by itself (spinning for 3 ms).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

B, T, V, D, LAYERS, HEADS, INNER = 8, 512, 8192, 512, 8, 8, 1536
LR, DECAY, CLIP, BATCHES = 1e-3, 0.1, 1.0, 16
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": str(64 << 20)}
TRAINER: dict[str, dict[str, Any]] = {
    "fp32": {}, "bf16": {"bf16": True}, "compiled": {"bf16": True, "torch_compile": True},
    "kept": {"bf16": True, "torch_compile": True},
}  # fmt: skip
AGREE = 0.02  # nats between two first losses; bfloat16 rounds


def write_model(place: Path) -> None:
    """Fresh weights as a Hugging Face directory (float32), and batches of random ids beside them."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from hepta.model.config import ModelConfig
    from hepta.model.decoder import Decoder
    from hepta.model.families import to_hf

    shape = ModelConfig(
        vocab_size=V, hidden_size=D, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=HEADS, head_dim=D // HEADS,
        intermediate_size=INNER, tied=True,
    )  # fmt: skip
    model = Decoder(shape)
    model.init_weights(0)
    place.mkdir(parents=True)
    save_file({name: value.detach() for name, value in model.named_parameters()}, place / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    (place / "config.json").write_text(json.dumps(to_hf(shape)))
    torch.manual_seed(1)
    np.save(place / "ids.npy", torch.randint(0, V, (BATCHES * B, T)).numpy())


class Turns:
    """The worker's side of taking turns: reports a group of steps, then waits for a line."""

    def __init__(self, skip: int, steps: int) -> None:
        self.left, self.size, self.began, self.first = skip, steps, time.perf_counter(), 0.0

    def wait(self, report: dict[str, Any]) -> bool:
        """Hand over; whether there is another turn."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print("turn " + json.dumps({**report, "first_loss": self.first, "peak_gib": peak}), flush=True)
        going_on = sys.stdin.readline().strip() == "go"
        self.left, self.began = self.size, time.perf_counter()
        return going_on

    def step(self) -> bool:
        """A step is over; whether to take another."""
        self.left -= 1
        return self.left > 0 or self.wait({"seconds": time.perf_counter() - self.began})


def hepta_worker(place: Path, turns: Turns) -> None:
    """hepta's own step, as `hepta pretrain` takes it: bfloat16 products, compiled blocks, memory kept."""
    from hepta.cores import choose_waiting

    choose_waiting()  # before torch loads OpenMP

    import numpy as np
    import torch

    from hepta.model.load import load_model
    from hepta.objectives.causal import IGNORE, Causal
    from hepta.planning.machine import keep_memory
    from hepta.training.accelerate import compile_blocks, compile_objective
    from hepta.training.guard import Guard
    from hepta.training.optimizer import make_optimizer
    from hepta.training.step import run_step

    keep_memory()
    model = load_model(place).train()
    model.compute_dtype = torch.bfloat16
    compile_blocks(model)
    objective, guard = compile_objective(Causal()), Guard(20.0)
    optimizer = make_optimizer(model, DECAY)
    ids, step = torch.from_numpy(np.load(place / "ids.npy")), 0
    while True:
        rows = ids[step % BATCHES * B : (step % BATCHES + 1) * B]
        labels = torch.nn.functional.pad(rows[:, 1:], (0, 1), value=IGNORE)
        batch = {"input_ids": rows, "labels": labels}
        result = run_step(model, optimizer, objective, [batch], LR, CLIP, guard)
        turns.first, step = turns.first or result.loss, step + 1
        if not turns.step():
            return


def trainer_worker(place: Path, turns: Turns, settings: dict[str, Any]) -> None:
    """transformers' Trainer over the same batches, nothing saved or logged but the losses."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    ids = torch.from_numpy(np.load(place / "ids.npy"))

    class Rows(torch.utils.data.Dataset):
        """The rows in order; labels are the ids, which the model shifts itself."""

        def __len__(self) -> int:
            return 10**6

        def __getitem__(self, n: int) -> dict[str, Any]:
            return {"input_ids": ids[n % len(ids)], "labels": ids[n % len(ids)]}

    class Handover(TrainerCallback):
        """Ends a turn after its steps."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            control.should_training_stop = not turns.step()
            return control

    class InOrder(Trainer):
        """Batches in order; the first loss is noted."""

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, *given: Any, **named: Any) -> Any:
            found = super().compute_loss(*given, **named)
            turns.first = turns.first or float(found)
            return found

    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    arguments = TrainingArguments(
        output_dir=str(place / "out"), per_device_train_batch_size=B, learning_rate=LR, weight_decay=DECAY,
        max_grad_norm=CLIP, max_steps=10**6, lr_scheduler_type="constant", optim="adamw_torch_fused", use_cpu=True,
        save_strategy="no", report_to=[], logging_strategy="no", disable_tqdm=True, adam_beta2=0.95, **settings,
    )  # fmt: skip
    InOrder(model, arguments, train_dataset=Rows(), callbacks=[Handover()]).train()


class Contestant:
    """The other end: a worker process and what it told."""

    def __init__(self, name: str, place: Path, arguments: argparse.Namespace) -> None:
        self.name, self.seconds, self.facts = name, list[float](), dict[str, Any]()
        command = [sys.executable, __file__, "--worker", name, "--place", str(place)]
        command += ["--skip", str(arguments.skip), "--steps", str(arguments.steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
        environment |= KEEP if name == "kept" else {}
        self.log = (place / f"{name}.log").open("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
        )
        self.read()

    def read(self) -> float:
        """Wait for the end of a turn; its seconds."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("turn "):
                self.facts = json.loads(line[5:])
                return self.facts["seconds"]
        self.log.seek(0)
        raise SystemExit(f"{self.name} ended:\n{self.log.read()[-2000:]}")

    def tell(self, word: str) -> None:
        """``go``, or anything else to end it."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def take_turn(self) -> None:
        """Some steps."""
        self.tell("go")
        self.seconds.append(self.read())


def compare(arguments: argparse.Namespace) -> None:
    """Run everybody in turn and print a table."""
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        write_model(place)
        load = os.getloadavg()[0]
        everyone = [Contestant(name, place, arguments) for name in arguments.only]
        for _ in range(arguments.rounds):
            for one in everyone:
                one.take_turn()
        for one in everyone:
            one.tell("stop")
            one.process.wait(120)
    losses = [one.facts["first_loss"] for one in everyone]
    if max(losses) - min(losses) > AGREE:
        raise SystemExit(f"first losses differ, so this is not the same work: {losses}")
    tokens = arguments.steps * B * T
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{versions}, {arguments.threads} threads, load {load:.1f} at the start; ", end="")
    print(f"{arguments.rounds} rounds of {arguments.steps} steps after {arguments.skip}")
    for one in everyone:
        rates = sorted(tokens / seconds for seconds in one.seconds)
        ratios = sorted(theirs / ours for theirs, ours in zip(one.seconds, everyone[0].seconds, strict=True))
        low, _, high = statistics.quantiles(rates, n=4) if len(rates) > 1 else (rates[0], 0, rates[0])
        print(
            f"{one.name:9} loss {one.facts['first_loss']:.4f}"
            f"  {statistics.median(rates):7.0f} tok/s ({low:.0f}–{high:.0f})"
            f"  {everyone[0].name} is {statistics.median(ratios):.2f}× ({ratios[0]:.2f}–{ratios[-1]:.2f})"
            f"  peak {one.facts['peak_gib']:.2f} GiB"
        )


def main() -> None:
    """Read the arguments; compare, or be one of those compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of one turn")
    parser.add_argument("--skip", type=int, default=6, help="steps before the first that counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="+", default=["hepta", *TRAINER], help="the first is what others are held to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is None:
        compare(arguments)
        return
    turns = Turns(arguments.skip, arguments.steps)
    if arguments.worker == "hepta":
        hepta_worker(arguments.place, turns)
    else:
        trainer_worker(arguments.place, turns, TRAINER[arguments.worker])


if __name__ == "__main__":
    main()
