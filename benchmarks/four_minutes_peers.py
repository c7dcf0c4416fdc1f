"""One run of nanoGPT or nanochat for ``four_minutes.py``: trained until the time is out, then scored on held-out text.

    python benchmarks/four_minutes_peers.py '{"peer": "nanoGPT", "directory": "…", …}'

Imports the peer's model and optimizer from a checkout and does around them what the peer's own training script does,
with one change: where that counts iterations, this takes the share of the time that has gone, so that its schedule
ends when the time does. The clock starts before the model is made, with the text already encoded; the first step, which
compiles, is inside. The last line printed is ``result`` and a JSON object.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hepta.catalog.documents import iter_documents
from hepta.evaluation.perplexity import cut_windows
from hepta.tokenizer.load import load_tokenizer

IGNORE = -1  # label of a position that is not scored, in both peers
SCORED_AT_ONCE = 4096  # tokens in one forward pass of scoring
READ_BY_TOKENIZER = 10_000  # characters of a document that nanochat's tokenizer is trained on, as its script has it
Batch = tuple[Tensor, Tensor]  # inputs and labels (B, T)
Losses = Callable[[Tensor, Tensor], Tensor]  # of inputs and labels: nats of each position (B · T,)


def encode(job: dict[str, Any]) -> tuple[dict[str, list[list[int]]], int, int]:
    """Ids of every document by split, the id that stands between documents, and the size of the vocabulary.

    ``chars`` takes its characters from all text, as nanoGPT's own script does; ``hepta`` is hepta's tokenizer; a number
    is the size of a vocabulary that nanochat trains itself.
    """
    kind, texts = job["ids"], {}
    for split in ("train", job["split"]):
        texts[split] = [document.text for document in iter_documents(job["corpus"], split)]
    if kind == "chars":
        known = sorted({character for document in iter_documents(job["corpus"]) for character in document.text})
        place = {character: number for number, character in enumerate(known)}
        ids = {split: [[place[c] for c in text] for text in some] for split, some in texts.items()}
        return ids, place["\n"], len(known)
    if kind == "hepta":
        words = load_tokenizer(Path(job["tokens"]) / "tokenizer")
        return {split: words.encode_batch(some) for split, some in texts.items()}, words.eos_id, words.padded_size
    from nanochat.tokenizer import RustBPETokenizer

    made = RustBPETokenizer.train_from_iterator((text[:READ_BY_TOKENIZER] for text in texts["train"]), kind)
    ids = {split: made.encode(some, num_threads=2) for split, some in texts.items()}
    return ids, made.get_bos_token_id(), made.get_vocab_size()


def stream(documents: list[list[int]], between: int, seed: int) -> Tensor:
    """All documents in one row of ids (N,), each behind the separator, in an order drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(documents))
    return torch.from_numpy(np.concatenate([np.array([between, *documents[n]], np.int64) for n in order]))


class NanoGPT:
    """nanoGPT: windows from random places, AdamW, cosine to a tenth, clipping at 1, float32 as on any CPU."""

    def __init__(self, job: dict[str, Any], row: Tensor, vocabulary: int) -> None:
        from model import GPT, GPTConfig

        self.shape, self.rate, self.row = job["shape"], job["rate"], row
        layers, heads, width, self.length, self.sequences = (
            self.shape[key] for key in ("layers", "heads", "width", "length", "sequences")
        )
        self.model = GPT(GPTConfig(self.length, vocabulary, layers, heads, width, dropout=0.0, bias=False))
        self.optimizer = self.model.configure_optimizers(0.1, self.rate, (0.9, 0.99), "cpu")
        self.forward = torch.compile(self.model) if self.shape["compile"] else self.model

    def batches(self) -> Iterator[Batch]:
        """Windows from random places of the row."""
        while True:
            starts = torch.randint(len(self.row) - self.length, (self.sequences,)).tolist()
            rows = torch.stack([self.row[start : start + self.length + 1] for start in starts])
            yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def step(self, batch: Batch, number: int, gone: float) -> None:
        """One update; ``gone`` is the share of the time. A twentieth of it warms up, as 100 of 2,000 iterations do."""
        rising, falling = min(1.0, (gone + 1e-3) / 0.05), max(0.0, (gone - 0.05) / 0.95)
        share = rising if gone < 0.05 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, falling)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * share
        self.forward(*batch)[1].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def losses(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Nats of each position."""
        logits = self.model(inputs, labels)[0]
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")


class Nanochat:
    """nanochat: the row read in order, Muon and AdamW, a rate that falls over the last 65 %, its own rules for what
    small batches and models do to rates and decay. All its rates are multiplied by ``rate``."""

    def __init__(self, job: dict[str, Any], row: Tensor, vocabulary: int) -> None:
        from nanochat.gpt import GPT, GPTConfig

        self.shape, self.row, self.length = job["shape"], row, job["shape"]["length"]
        self.sequences, self.parts = self.shape["sequences"], self.shape.get("parts", 1)

        def make(depth: int, head: int) -> Any:
            width = depth * 64
            with torch.device("meta"):
                return GPT(GPTConfig(self.length, vocabulary, depth, width // head, width // head, width, "L"))

        def counted(model: Any) -> int:
            counts = model.num_scaling_params()
            return counts["transformer_matrices"] + counts["lm_head"]

        self.model = make(self.shape["layers"], 64)
        self.model.to_empty(device="cpu")
        self.model.init_weights()
        smaller = (self.sequences * self.length / 2**19) ** 0.5  # than the batch its rates were tuned for
        scale = job["rate"] * smaller
        self.decay = 0.28 * smaller * counted(make(12, 128)) / counted(self.model)
        self.optimizer = self.model.setup_optimizer(
            unembedding_lr=0.008 * scale, embedding_lr=0.3 * scale, scalar_lr=0.5 * scale, matrix_lr=0.02 * scale,
            weight_decay=self.decay,
        )  # fmt: skip
        self.forward = torch.compile(self.model, dynamic=False) if self.shape["compile"] else self.model

    def batches(self) -> Iterator[Batch]:
        """The row cut into windows one behind the other, again and again.

        nanochat's own packing throws away what does not fit a window, so that chapters longer than one would hardly be
        read; for small data and long documents it recommends this.
        """
        size = self.sequences * self.length
        while True:
            for start in range(0, len(self.row) - size, size):
                piece = self.row[start : start + size + 1]
                yield piece[:-1].clone().view(self.sequences, -1), piece[1:].clone().view(self.sequences, -1)

    def step(self, batch: Batch, number: int, gone: float) -> None:
        """One update; ``gone`` is the share of the time. 40 steps, or a twentieth of the time, warm up."""
        rising = min(1.0, max((number + 1) / 40, gone / 0.05))
        share = min(rising, 1.0 if gone < 0.35 else 0.05 + 0.95 * (1 - gone) / 0.65)
        momentum = 0.85 + 0.12 * number / 400 if number < 400 else 0.97 - 0.07 * max(0.0, gone - 0.35) / 0.65
        for inputs, labels in zip(*(side.chunk(self.parts) for side in batch), strict=True):
            (self.forward(inputs, labels) / self.parts).backward()
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
            if group["kind"] == "muon":
                group["momentum"], group["weight_decay"] = momentum, self.decay * 0.5 * (1 + math.cos(math.pi * gone))
        self.optimizer.step()
        self.model.zero_grad(set_to_none=True)

    def losses(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Nats of each position."""
        return self.model(inputs, labels, loss_reduction="none").flatten()


def train(job: dict[str, Any], row: Tensor, vocabulary: int) -> tuple[NanoGPT | Nanochat, dict[str, Any]]:
    """Steps until the time is out, or ``steps`` of them; the schedule begins behind the first step, which compiles."""
    began, budget = time.perf_counter(), job["minutes"] * 60
    learner = (NanoGPT if job["peer"] == "nanoGPT" else Nanochat)(job, row, vocabulary)
    first, last, number = 0.0, 0.0, 0
    for batch in learner.batches():
        before = time.perf_counter() - began
        if number == job.get("steps") or (number and before + last / 2 > budget):
            break
        learner.step(batch, number, 0.0 if not number else (before - first) / max(budget - first, 1e-9))
        number, after = number + 1, time.perf_counter() - began
        last = after - before if first else 0.0  # the first step compiles
        first = first or after
    seconds = time.perf_counter() - began
    tokens = number * learner.sequences * learner.length
    parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    speed = (tokens - tokens / number) / max(seconds - first, 1e-9)
    facts = {"steps": number, "tokens": tokens, "tokens_per_second": speed, "seconds": seconds, "until_first": first}
    return learner, {**facts, "parameters": parameters, "length": learner.length}


@torch.no_grad()
def score(learner: Any, documents: list[list[int]], between: int) -> list[float]:
    """Nats of each document as ``hepta eval`` counts them, sliding: every token and the end, each once, behind at least
    half a window of context where the document has that much."""
    learner.model.eval()
    framed = [[between, *ids, between] for ids in documents]
    windows = [w for n, ids in enumerate(framed) for w in cut_windows(len(ids), learner.length, n)]
    windows.sort(key=lambda window: window.length)
    nats = [0.0] * len(documents)
    while windows:
        count = max(1, SCORED_AT_ONCE // windows[-1].length)
        some, windows = windows[-count:], windows[:-count]
        longest = max(2, max(window.length for window in some))
        inputs, labels = torch.zeros(2, len(some), longest, dtype=torch.long)
        labels += IGNORE
        for place, window in enumerate(some):
            ids = torch.tensor(framed[window.document][window.start : window.start + window.length + 1])
            inputs[place, : window.length], labels[place, : window.length] = ids[:-1], ids[1:]
            labels[place, : window.sliding_from] = IGNORE
        found = learner.losses(inputs, labels).double().view(len(some), -1).sum(1)
        for window, value in zip(some, found.tolist(), strict=True):
            nats[window.document] += value
    return nats


def bits_per_byte(job: dict[str, Any], nats: list[float]) -> dict[str, float]:
    """By language and over all, of the bytes of the text."""
    sums: dict[str, list[float]] = {"all": [0.0, 0.0]}
    for document, value in zip(iter_documents(job["corpus"], job["split"]), nats, strict=True):
        for name in ("all", document.lang):
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += value / math.log(2)
            total[1] += len(document.text.encode())
    return {name: bits / size for name, (bits, size) in sums.items()}


def main() -> None:
    """Read the job, do it, print the result."""
    job = json.loads(sys.argv[1])
    sys.path.insert(0, job["directory"])
    ids, between, vocabulary = encode(job)
    torch.manual_seed(job["seed"])
    learner, facts = train(job, stream(ids["train"], between, job["seed"]), vocabulary)
    if "steps" not in job:
        facts["bpb"] = bits_per_byte(job, score(learner, ids[job["split"]], between))
    print("result " + json.dumps({**facts, "vocabulary": vocabulary}))


if __name__ == "__main__":
    main()
