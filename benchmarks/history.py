"""Speed of the models before attention, in turns with a peer in the same process.

    python benchmarks/history.py --data out/demo/tokens [--rounds 5] [--threads 2]

- one LSTM layer, forward and backward, against ``torch.nn.LSTM`` of the same size, both as a step uses them;
- a training step of each preset against a step of nano on the same batch, all uncompiled;
- counting n-grams against the same counts in a dictionary (of the first tenth of the tokens).

Printed: tokens per second (of the fastest round), the median ratio and its spread. Above 1 is faster than the peer.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hepta.data.order import TokenOrder
from hepta.data.shards import read_tokens_manifest
from hepta.model.load import build_model
from hepta.model.lstm import Layer
from hepta.model.ngram import count_ngrams
from hepta.objectives.causal import Causal
from hepta.planning.machine import keep_memory
from hepta.training.counting import read_documents
from hepta.training.guard import Guard
from hepta.training.optimizer import make_optimizer
from hepta.training.step import micro_batches, run_step


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(name: str, tokens: int, ours: Callable[[], object], peer: Callable[[], object], rounds: int) -> None:
    ours(), peer()
    pairs = [(seconds(ours), seconds(peer)) for _ in range(rounds)]
    ratios = [theirs / mine for mine, theirs in pairs]
    rate = tokens / min(mine for mine, _ in pairs)
    print(f"{name:34} {rate:12,.0f} tokens/s   {statistics.median(ratios):5.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


def layer(sequences: int, length: int, width: int, rounds: int) -> None:
    ours, theirs = Layer(width, 0), torch.nn.LSTM(width, width, batch_first=True)
    x = torch.randn(sequences, length, width)
    half = x.bfloat16().requires_grad_()
    x.requires_grad_()
    name = f"LSTM layer {sequences} x {length}, bfloat16"
    mine = lambda: ours(half, None, None, None).float().sum().backward()  # noqa: E731
    compare(name, sequences * length, mine, lambda: theirs(x)[0].sum().backward(), rounds)


def step(name: str, data: Path, length: int, batch: int) -> Callable[[], object]:
    model = build_model(name, read_tokens_manifest(data)["facts"]["padded_size"], 7).train()
    model.compute_dtype = torch.bfloat16
    optimizer = make_optimizer(model, 0.1)
    batches = micro_batches(TokenOrder(data, "train", length), 0, batch // length, batch // length)
    return lambda: run_step(model, optimizer, Causal(), batches, 1e-4, 1.0, Guard(float("inf")))


def dictionary(ids: np.ndarray, ends: np.ndarray, order: int) -> None:
    counts: Counter[tuple[int, ...]] = Counter()
    for document in np.split(ids, ends[:-1]):
        tokens = document.tolist()
        for k in range(1, order + 1):
            counts.update(zip(*(tokens[i:] for i in range(k)), strict=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("out/demo/tokens"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    keep_memory()
    for sequences, length in ((16, 64), (8, 256), (32, 256)):
        layer(sequences, length, 256, arguments.rounds)
    for name in ("lstm", "feedforward"):
        for length, batch in ((64, 1024), (256, 2048)):
            mine, nano = step(name, arguments.data, length, batch), step("nano", arguments.data, length, batch)
            compare(f"step of {name}, {batch // length} x {length}", batch, mine, nano, arguments.rounds)
    facts = read_tokens_manifest(arguments.data)["facts"]
    ids, ends = read_documents(arguments.data)
    some = ends[ends <= len(ids) // 10]
    part, size = ids[: some[-1]], facts["padded_size"]
    compare("5-grams counted, a tenth", len(part), lambda: count_ngrams(part, some, size, 5),
            lambda: dictionary(part, some, 5), min(arguments.rounds, 3))  # fmt: skip
    took = seconds(lambda: count_ngrams(ids, ends, size, 5))
    megabytes = facts["splits"]["train"]["bytes"] / 1e6
    print(f"5-grams counted, all: {took:.1f} s, {megabytes / took:.2f} MB of text a second")


if __name__ == "__main__":
    main()
