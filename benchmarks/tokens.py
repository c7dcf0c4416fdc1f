"""How fast text becomes tokens: `tokenizers`, `tiktoken` as hepta uses it, and the whole of `hepta tokens build`.

Run: python benchmarks/tokens.py CORPUS TOKENIZER_DIR   (a corpus directory, or .jsonl/.txt files)
Ids are compared first; a speed for other ids would mean nothing.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokenizers import Tokenizer as HfTokenizer

from hepta.catalog.documents import iter_documents
from hepta.data.build import build_tokens
from hepta.data.config import TokensConfig
from hepta.data.order import TokenOrder
from hepta.tokenizer.load import load_tokenizer

ROUNDS = 5
SMALLEST = 20_000_000  # bytes; smaller corpora are repeated in memory


def timed(name: str, size: int, work: Callable[[], object]) -> float:
    """Print median and spread of ``ROUNDS`` runs in MB/s, and MB per CPU second; returns the median."""
    rates, per_cpu = [], []
    for _ in range(ROUNDS):
        started, cpu = time.perf_counter(), time.process_time()
        work()
        rates.append(size / 1e6 / (time.perf_counter() - started))
        per_cpu.append(size / 1e6 / (time.process_time() - cpu))
    spread = f"(from {min(rates):.2f} to {max(rates):.2f}; {statistics.median(per_cpu):.2f} MB per CPU second)"
    print(f"{name:<38} {statistics.median(rates):6.2f} MB/s  {spread}")
    return statistics.median(rates)


def main(corpus: Path, directory: Path) -> None:
    """Print MB/s of each way, and milliseconds per sequence of reading them back."""
    documents = list(iter_documents(corpus))
    texts = [document.text for document in documents]
    size = sum(len(text.encode()) for text in texts)
    ours, peer = load_tokenizer(directory), HfTokenizer.from_file(str(directory / "tokenizer.json"))
    wanted = [encoding.ids for encoding in peer.encode_batch(texts, add_special_tokens=False)]
    same = sum(ours.encode(text) == ids for text, ids in zip(texts, wanted, strict=True))
    print(f"{len(texts)} documents, {size / 1e6:.1f} MB; identical ids in {same}")
    repeats = -(-SMALLEST // size)
    chunks = [texts[i::64] for i in range(64)] * repeats
    flat = texts * repeats

    def threaded() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(ours.encode_arrays, chunks))

    slow = timed(
        "tokenizers, encode_batch, all cores", size * repeats, lambda: peer.encode_batch(flat, add_special_tokens=False)
    )
    timed("hepta, one thread", size * repeats, lambda: [ours.encode_arrays(chunk) for chunk in chunks])
    fast = timed("hepta, two threads", size * repeats, threaded)
    print(f"two threads against tokenizers: {fast / slow:.1f} times")
    with tempfile.TemporaryDirectory() as folder:
        number = iter(range(ROUNDS))

        def build() -> None:
            build_tokens(
                TokensConfig(input=corpus, tokenizer=directory, output=Path(folder) / str(next(number)), workers=2)
            )

        timed("hepta tokens build, whole", size, build)
        order = TokenOrder(Path(folder) / "0", "train", 512, seed=1)
        started = time.perf_counter()
        for start in range(0, 960, 32):
            order.batch(start, 32)
        print(
            f"reading back: {(time.perf_counter() - started) / 960 * 1e3:.3f} ms per sequence of 512 in batches of 32"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
