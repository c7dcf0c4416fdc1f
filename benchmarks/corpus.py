"""How fast ``hepta corpus build`` is with default rules, beside what reading and writing alone cost.

Run: python benchmarks/corpus.py [MEGABYTES]   (default 40)
The text is wiki-en, sanguo-zh, c4-sample and wiki-long-en, repeated with a tenth of its words or characters exchanged,
so that no copy is a twin of another and every document goes through every stage.
"""

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as parquet

from hepta.catalog.fetch import dataset_path
from hepta.corpus.build import build_corpus
from hepta.corpus.config import CorpusConfig

SOURCES = ("wiki-en", "sanguo-zh", "c4-sample", "wiki-long-en")
ROUNDS = 3


def varied(text: str, chance: random.Random) -> str:
    """The text with a tenth of its words (or Han characters) taken from elsewhere in it."""
    pieces = list(text) if any("\u4e00" <= char <= "\u9fff" for char in text[:50]) else text.split(" ")
    for _ in range(len(pieces) // 10):
        pieces[chance.randrange(len(pieces))] = pieces[chance.randrange(len(pieces))]
    return ("" if len(pieces) > 1 and len(pieces[0]) == 1 == len(pieces[1]) else " ").join(pieces)


def write_input(folder: Path, megabytes: float) -> int:
    """Fill ``folder`` with JSON Lines; returns the bytes of text (UTF-8) in them."""
    chance, size, copy = random.Random(1), 0, 0
    while size < megabytes * 1e6:
        for name in SOURCES:
            (folder / name).mkdir(exist_ok=True)
            with (folder / name / f"{copy}.jsonl").open("wb") as file:
                for line in dataset_path(name).read_bytes().splitlines():
                    text = varied(orjson.loads(line)["text"], chance)
                    size += len(text.encode())
                    file.write(orjson.dumps({"text": text}) + b"\n")
        copy += 1
    return size


def copy_only(folder: Path, output: Path) -> None:
    """The limit: parse every line and write the texts as Parquet, nothing else."""
    output.mkdir()
    for number, file in enumerate(sorted(folder.rglob("*.jsonl"))):
        texts = [orjson.loads(line)["text"] for line in file.read_bytes().splitlines()]
        parquet.write_table(pa.table({"text": texts}), output / f"{number}.parquet", compression="zstd")


def timed(size: int, work: Callable[[Path], object]) -> tuple[float, float]:
    """MB of text per second, and per CPU second (workers included), of one run into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        begin, before = time.perf_counter(), sum(os.times()[:4])
        work(Path(folder) / "out")
        return size / 1e6 / (time.perf_counter() - begin), size / 1e6 / (sum(os.times()[:4]) - before)


def main(megabytes: float) -> None:
    """Print median and spread of ``ROUNDS`` alternating runs."""
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_input(folder, megabytes)
        inputs = [f"{source}={folder / source}" for source in SOURCES]

        def build_with(workers: int) -> Callable[[Path], object]:
            return lambda output: build_corpus(CorpusConfig(input=inputs, output=output, workers=workers))

        limit = "parse and write only, 1 process"
        ways: dict[str, Callable[[Path], object]] = {f"build, workers={n}": build_with(n) for n in sorted({1, cores})}
        ways[limit] = lambda output: copy_only(folder, output)
        found: dict[str, list[tuple[float, float]]] = {label: [] for label in ways}
        for _ in range(ROUNDS):
            for label, work in ways.items():
                found[label].append(timed(size, work))
    print(f"{size / 1e6:.1f} MB of text, {cores} cores, load {os.getloadavg()[0]:.1f}")
    most = statistics.median(rate for rate, _ in found[limit])
    for label, rates in found.items():
        median, per_cpu = (statistics.median(values) for values in zip(*rates, strict=True))
        spread = f"from {min(rates)[0]:.2f} to {max(rates)[0]:.2f}; {per_cpu:.2f} MB per CPU second"
        print(f"{label:<32} {median:7.2f} MB/s  ({spread})  {median / most:6.1%} of parse-and-write")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 40)
