"""Where the automatic learning rate lies between those a factor of two apart, by family, width and optimizer.

    python benchmarks/rates.py [--rows out/rates.jsonl] [--text docs] [--widths 128 256] [--optimizers adamw muon]
        [--families llama gpt2] [--seeds 3] [--steps 200] [--minutes 4]

Small models of bytes (vocabulary 256, two layers, heads of 32, sequences of 64, 8 a step) learn from the handbook's own
pages, with the run's clipping, decay, warm-up and cosine. All rates of a case see the same weights and batches of a
seed; what counts is the loss on the last tenth of the bytes. A row is written per run and none is done twice, so the
script goes on where it stopped; rates nearest to the automatic one and first seeds come first. The table, of the rows
there are: for each rate, a multiple of the automatic one, the mean loss over the automatic one's, seed by seed, and the
largest deviation of a seed from that mean. Short runs flatter high rates.
"""

import argparse
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from hepta.model.config import ModelConfig
from hepta.model.families import network_class
from hepta.model.learned import GPT2Shape
from hepta.model.shape import Shape
from hepta.objectives.causal import Causal
from hepta.planning.rates import automatic_lr, rate_factor
from hepta.training.guard import Guard
from hepta.training.optimizer import make_optimizer
from hepta.training.schedule import learning_rate
from hepta.training.step import Batch, run_step

LENGTH, SEQUENCES, LAYERS, HEAD, VOCABULARY = 64, 8, 2, 32, 256
FACTORS = (1.0, 0.5, 2.0, 0.25, 4.0, 0.125, 8.0)  # of the automatic rate, in the order they are tried
CASE = ("family", "width", "optimizer", "steps")


def shape_of(family: str, width: int) -> Shape:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": width, "num_layers": LAYERS, "num_heads": width // HEAD, "tied": True,
    }  # fmt: skip
    if family == "gpt2":
        return GPT2Shape(**sizes, intermediate_size=4 * width, max_positions=LENGTH)
    return ModelConfig(**sizes, num_kv_heads=width // HEAD, head_dim=HEAD, intermediate_size=8 * width // 3)


def read_bytes(place: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of the pages' bytes (N, LENGTH + 1): nine tenths to learn from, and the last tenth."""
    text = b"\n".join(path.read_bytes() for path in sorted(place.rglob("*.md")))
    ids = np.frombuffer(text, np.uint8)
    count = len(ids) // (LENGTH + 1)
    windows = torch.from_numpy(ids[: count * (LENGTH + 1)].astype(np.int64)).view(count, -1)
    cut = count * 9 // 10
    return windows[:cut], windows[cut:]


def as_batch(windows: torch.Tensor) -> Batch:
    return {"input_ids": windows[:, :-1].contiguous(), "labels": windows[:, 1:].contiguous()}


def run(case: dict[str, Any], factor: float, seed: int, text: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Any]:
    """Train one model; its row."""
    shape, (train, held_out), name = shape_of(case["family"], case["width"]), text, case["optimizer"]
    automatic = automatic_lr(shape) * rate_factor(name, shape.hidden_size)
    model: Any = network_class(shape)(shape)
    model.init_weights(seed)
    model.train()
    optimizer, guard, objective = make_optimizer(model, 0.1, name), Guard(20.0), Causal()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    steps, skipped, began = case["steps"], 0, time.perf_counter()
    for step in range(steps):
        places = order.roll(-step * SEQUENCES)[:SEQUENCES]
        rate = learning_rate(step, steps, factor * automatic, "cosine", 0.05)
        result = run_step(model, optimizer, objective, [as_batch(train[places])], rate, 1.0, guard)
        skipped += result.skipped is not None
    with torch.no_grad():
        parts = [objective(model, as_batch(some)) for some in held_out[:512].split(64)]
    loss = float(sum(part.total for part in parts)) / sum(part.weight for part in parts)
    took = time.perf_counter() - began
    return {**case, "seed": seed, "factor": factor, "rate": factor * automatic, "loss": loss, "skipped": skipped,
            "seconds": round(took, 2)}  # fmt: skip


def plan(arguments: argparse.Namespace) -> Iterator[tuple[dict[str, Any], float, int]]:
    """All runs: (case, factor of the automatic rate, seed)."""
    cases = [
        dict(zip(CASE, (family, width, optimizer, arguments.steps), strict=True))
        for width, optimizer, family in itertools.product(arguments.widths, arguments.optimizers, arguments.families)
    ]
    for seed, factors in itertools.product(range(arguments.seeds), (FACTORS[:5], FACTORS[5:])):
        for case, factor in itertools.product(cases, factors):
            yield case, factor, seed


def table(rows: list[dict[str, Any]]) -> str:
    cases: dict[tuple[Any, ...], dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    automatic: dict[tuple[Any, ...], float] = {}
    for row in rows:
        case = tuple(row[key] for key in CASE)
        cases[case][row["factor"]][row["seed"]] = row["loss"]
        automatic[case] = row["rate"] / row["factor"]
    factors = sorted(FACTORS)
    lines = [f"{'':34}{'automatic':>10}{'its loss':>9}  " + "".join(f"{'× ' + format(f, 'g'):>15}" for f in factors)]
    for case, found in sorted(cases.items()):
        own = found.get(1.0, {})
        line = f"{' '.join(map(str, case)) + ' steps':34}{automatic[case]:10.2g}"
        line += f"{mean(own.values()):9.3f}  " if own else f"{'':9}  "
        for factor in factors:
            gaps = [loss - own[seed] for seed, loss in found.get(factor, {}).items() if seed in own]
            told = f"{mean(gaps):+.3f}±{max(abs(gap - mean(gaps)) for gap in gaps):.3f}/{len(gaps)}" if gaps else ""
            line += f"{told:>15}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=Path("out/rates.jsonl"))
    parser.add_argument("--text", type=Path, default=Path("docs"))
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "muon", "adafactor", "sgd", "adamw8bit"])
    parser.add_argument("--families", nargs="+", default=["llama", "gpt2"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=4.0)
    arguments = parser.parse_args()
    arguments.rows.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in arguments.rows.read_text().splitlines()] if arguments.rows.is_file() else []
    done = {(*(row[key] for key in CASE), row["factor"], row["seed"]) for row in rows}
    text, end = read_bytes(arguments.text), time.monotonic() + 60 * arguments.minutes
    for case, factor, seed in plan(arguments):
        if (*case.values(), factor, seed) in done:
            continue
        if time.monotonic() > end:
            print("time is up; the same command goes on")
            break
        rows.append(run(case, factor, seed, text))
        with arguments.rows.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
