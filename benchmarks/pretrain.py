"""Speed of a pretraining step against what its matrix products alone would allow, measured in the same process.

    python benchmarks/pretrain.py --model nano mini [--eager] [--rounds 8]

Steps and products take turns, so a busy machine slows both. The products are those the step performs, in the
same shapes and dtype: forward, gradient of the input, gradient of the weight; attention's over the same blocks
of queries; the head's over the same chunks. Each is timed alone with its output kept in memory. Printed: tokens
per second, the share (time of products / time of step) as median with its spread and as fastest over fastest,
which other work on the machine disturbs least, and MFU, which divides by the peak of a large product and counts
only the causal half of attention.
"""

import argparse
import json
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable

import torch

from hepta.model.attention import BLOCK
from hepta.model.config import ModelConfig
from hepta.model.decoder import Decoder
from hepta.model.families import preset
from hepta.objectives.causal import CHUNK, IGNORE, Causal
from hepta.planning.cost import training_flops
from hepta.planning.machine import keep_memory, measured_peak
from hepta.training.accelerate import compile_blocks, compile_objective
from hepta.training.guard import Guard
from hepta.training.optimizer import make_optimizer
from hepta.training.step import Batch, run_step

clock = time.perf_counter
Product = tuple[int, int, int, int, str]  # batch, rows, inner, columns, which operands are transposed


def linear_products(rows: int, inner: int, outer: int) -> list[Product]:
    """The three products of ``y = x Wᵀ``: x Wᵀ, g W, gᵀ x."""
    return [(0, rows, inner, outer, "NT"), (0, rows, outer, inner, "NN"), (0, outer, rows, inner, "TN")]


def step_products(config: ModelConfig, sequences: int, length: int, micro: int) -> Counter[Product]:
    """Every matrix product of one optimizer step, with how often it is performed."""
    found: Counter[Product] = Counter()
    D, K = config.hidden_size, config.head_dim
    wide, narrow, inner = config.num_heads * K, config.num_kv_heads * K, config.intermediate_size
    rows, group = micro * length, config.num_heads // config.num_kv_heads
    layer = [(D, wide), (D, narrow), (D, narrow), (wide, D), (D, inner), (D, inner), (inner, D)]
    once: list[Product] = [product for shape in layer for product in linear_products(rows, *shape)]
    heads = micro * config.num_kv_heads
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        queries = group * (end - start)
        scores, values = (heads, queries, K, end, "NT"), (heads, queries, end, K, "NN")
        once += [scores, values, scores, values, (heads, end, queries, K, "TN"), (heads, end, queries, K, "TN")]
    for product in once:
        found[product] += config.num_layers * (sequences // micro)
    for start in range(0, rows, CHUNK):
        for product in linear_products(min(CHUNK, rows - start), D, config.vocab_size):
            found[product] += sequences // micro
    return found


def prepare(product: Product) -> Callable[[], object]:
    """A call that performs the product once."""
    batch, rows, inner, columns, form = product
    lead = (batch,) if batch else ()
    shape = {
        "a": (inner, rows) if form[0] == "T" else (rows, inner),
        "b": (columns, inner) if form[1] == "T" else (inner, columns),
    }
    a, b = (torch.randn(*lead, *shape[name]).to(torch.bfloat16) for name in "ab")
    a, b = a.transpose(-1, -2) if form[0] == "T" else a, b.transpose(-1, -2) if form[1] == "T" else b
    out = torch.empty(*lead, rows, columns, dtype=torch.bfloat16)
    work = torch.bmm if batch else torch.mm
    return lambda: work(a, b, out=out)


def products_seconds(calls: dict[Product, Callable[[], object]], counts: Counter[Product]) -> float:
    """Seconds that one step's products take: each distinct one timed a few times, the fastest kept."""
    total = 0.0
    for product, call in calls.items():
        best = float("inf")
        for _ in range(3):
            began = clock()
            call()
            best = min(best, clock() - began)
        total += best * counts[product]
    return total


def make_batches(config: ModelConfig, sequences: int, length: int, micro: int) -> list[Batch]:
    """Random ids in documents of 200 tokens on average, packed as in pretraining."""
    torch.manual_seed(0)
    batches = []
    for _ in range(sequences // micro):
        ids = torch.randint(0, config.vocab_size, (micro, length + 1))
        segments = (torch.rand(micro, length) < 1 / 200).long().cumsum(1)
        labels = ids[:, 1:].clone()
        labels[:, :-1][segments[:, 1:] != segments[:, :-1]] = IGNORE
        first = torch.where(
            torch.nn.functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True), torch.arange(length), 0
        )
        positions = torch.arange(length) - first.cummax(1).values
        batches.append({"input_ids": ids[:, :-1], "labels": labels, "segment_ids": segments, "positions": positions})
    return batches


def benchmark(name: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Measure one preset."""
    config, length, micro = preset(name), arguments.length, arguments.micro
    sequences = arguments.batch_tokens // length
    model = Decoder(config)
    model.init_weights(0)
    model.compute_dtype = torch.bfloat16
    objective = Causal() if arguments.eager else compile_objective(Causal())
    if not arguments.eager:
        compile_blocks(model)
    optimizer, guard, batches = (
        make_optimizer(model, 0.1),
        Guard(float("inf")),
        make_batches(config, sequences, length, micro),
    )
    counts = step_products(config, sequences, length, micro)
    calls = {product: prepare(product) for product in counts}

    def step() -> float:
        began = clock()
        run_step(model, optimizer, objective, batches, 1e-3, 1.0, guard)
        return clock() - began

    first = step()
    step()
    products_seconds(calls, counts)
    steps, products = [], []
    for _ in range(arguments.rounds):
        products.append(products_seconds(calls, counts))
        steps.append(step())
    shares = sorted(p / s for p, s in zip(products, steps, strict=True))
    tokens, seconds = sequences * length, statistics.median(steps)
    flops = training_flops(config, tokens, length)
    return {
        "model": name, "compiled": not arguments.eager, "first_step_seconds": round(first, 1),
        "step_seconds": round(seconds, 3), "products_seconds": round(statistics.median(products), 3),
        "tokens_per_second": round(tokens / seconds),
        "share": round(statistics.median(shares), 3), "share_spread": [round(shares[0], 3), round(shares[-1], 3)],
        "share_of_best": round(min(products) / min(steps), 3),
        "mfu": round(flops / seconds / (measured_peak("bf16", torch.get_num_threads()) * 1e9), 3),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }  # fmt: skip


def main() -> None:
    """Read the arguments, print a JSON line per preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["nano", "mini"])
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--micro", type=int, default=8, help="sequences per forward pass")
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count processor time, for a busy machine; one thread"
    )
    parser.add_argument("--eager", action="store_true")
    arguments = parser.parse_args()
    global clock
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    keep_memory()
    torch.set_num_threads(1 if arguments.cpu_time else arguments.threads or torch.get_num_threads())
    for name in arguments.model:
        print(json.dumps(benchmark(name, arguments)), flush=True)


if __name__ == "__main__":
    main()
