"""A real but tiny run: a byte tokenizer, an order over real text, a model of a few thousand weights.

Also a program that tests can kill, and that kills itself where it is told to:
``python tiny.py OUTPUT key=value … [die_step=N] [die_save=N] [curse=[FIRST,END]]``.
"""

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

import hepta
from hepta.config import build, parse_overrides
from hepta.data.order import Segmented
from hepta.model.config import ModelConfig
from hepta.model.decoder import Decoder
from hepta.model.load import save_model
from hepta.objectives.causal import Causal, LossSum
from hepta.stage import claim
from hepta.tokenizer.load import load_tokenizer
from hepta.tokenizer.pattern import byte_alphabet
from hepta.tokenizer.template import CHATML
from hepta.training.config import TrainingConfig
from hepta.training.job import Job, Outcome
from hepta.training.loop import train
from hepta.training.pretrain import completion_prompts, restore_weights

IGNORE = -100
CURSE = 300  # an id that spells nothing
SHAPE = ModelConfig(
    vocab_size=320, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16
)  # fmt: skip


def real_text() -> bytes:
    """This program's own source: real text that is always there."""
    files = sorted(Path(hepta.__file__).parent.glob("*.py"))
    return b"\n".join(file.read_bytes() for file in files)


def byte_tokenizer(directory: Path) -> Path:
    """A tokenizer of 256 bytes and four specials, in the Hugging Face layout."""
    if (directory / "tokenizer_config.json").is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    specials = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    vocab = {character: byte for byte, character in byte_alphabet().items()}
    added = [
        {"id": 256 + i, "content": name, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, name in enumerate(specials)
    ]  # fmt: skip
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": split, "post_processor": None, "decoder": split,
        "model": {
            "type": "BPE", "vocab": vocab, "merges": [], "dropout": None, "unk_token": None,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        },
    }  # fmt: skip
    (directory / "tokenizer.json").write_text(json.dumps(spec))
    template = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHATML}
    names = {"eos_token": specials[0], "bos_token": specials[0], "pad_token": specials[1]}
    (directory / "tokenizer_config.json").write_text(json.dumps({**template, **names}))
    return directory


class ByteOrder(Segmented):
    """Windows of real text, permuted anew in each epoch; ``poison`` names sequences made of padding only."""

    digest = "bytes"

    def __init__(self, length: int, count: int, seed: int = 0, poison: tuple[int, ...] = ()) -> None:
        ids = np.frombuffer(real_text(), dtype=np.uint8).astype(np.int64)
        self.length, self.sequences_per_epoch, self.seed, self.poison = length, count, seed, poison
        self.windows = np.stack([ids[i * length : i * length + length + 1] for i in range(count)])

    def index(self, n: int) -> int:
        epoch, place = divmod(n, self.sequences_per_epoch)
        return int(np.random.default_rng([self.seed, epoch]).permutation(self.sequences_per_epoch)[place])

    def batch(self, start: int, count: int) -> dict[str, np.ndarray]:
        rows = np.stack([self.windows[self.index(n)] for n in range(start, start + count)])
        labels = rows[:, 1:].copy()
        segments = np.zeros((count, self.length), dtype=np.int64)
        segments[:, self.length // 2 :] = 1
        positions = np.tile(np.arange(self.length) % (self.length // 2), (count, 1))
        labels[:, self.length // 2 - 1] = IGNORE
        for row, n in enumerate(range(start, start + count)):
            if n in self.poison:
                labels[row] = IGNORE
        return {"input_ids": rows[:, :-1].copy(), "labels": labels, "segment_ids": segments, "positions": positions}

    def where(self, n: int) -> list[str]:
        return [f"window-{self.index(n)}"] * 2

    def languages(self, n: int) -> list[str]:
        return ["en", "zh"]


class TwoSources(ByteOrder):
    """Windows whose first half is of one source and document, and whose second half of another."""

    source_names = ("left", "right")

    def sources(self, n: int) -> list[str]:
        return ["left", "right"]

    def where(self, n: int) -> list[str]:
        return [f"left/{self.index(n) // 2}", f"right/{self.index(n)}"]


@dataclass(frozen=True)
class Cursed(Causal):
    """A loss that is NaN for batches with the cursed token in them."""

    def __call__(self, model: Any, batch: Any) -> LossSum:
        """As ``Causal``'s, but for them."""
        found = super().__call__(model, batch)
        bad = bool((batch["input_ids"] == CURSE).any())
        return found._replace(total=found.total * float("nan")) if bad else found


def curse(job: Job, first: int, end: int) -> Job:
    """Make sequences [first, end) of the job's data ones that no step survives."""
    batch = job.train.batch

    def cursed(start: int, count: int) -> dict[str, np.ndarray]:
        rows = batch(start, count)
        for row, n in enumerate(range(start, start + count)):
            if first <= n < end:
                rows["input_ids"][row, 0] = CURSE
        return rows

    job.train.batch, job.objective = cursed, Cursed()
    return job


def tiny_config(output: Path, **values: Any) -> TrainingConfig:
    """A config of a few seconds; anything may be overridden."""
    base = {
        "output": output, "sequence_length": 32, "batch_tokens": 128, "micro_batch": 2, "max_steps": 12, "lr": 3e-3,
        "precision": "fp32", "compile": False, "threads": 1, "checkpoint": {"every": 4, "keep": 2},
        "eval": {"every": 6, "tokens": 256}, "sample_prompts": [],
    }  # fmt: skip
    return build(TrainingConfig, {**base, **values})


def tiny_job(
    output: Path,
    sequences: int = 19,
    poison: tuple[int, ...] = (),
    model: Decoder | None = None,
    prompts: list[str] | None = None,
) -> Job:
    """Model, data and how to save, for ``train``."""
    tokenizer_dir = byte_tokenizer(output.parent / "bytes")
    tokenizer = load_tokenizer(tokenizer_dir)
    if model is None:
        model = Decoder(SHAPE)
        model.init_weights(3)
    made = model
    return Job(
        verb="pretrain", model=made, tokenizer=tokenizer, lr=1e-3,
        train=ByteOrder(32, sequences, poison=poison), held_out=ByteOrder(32, 8, seed=9),
        prompts=completion_prompts(prompts or [], tokenizer),
        save=lambda place, dtype: save_model(made, place, tokenizer_dir, dtype),
        restore=lambda place: restore_weights(made, place),
    )  # fmt: skip


def tiny_run(output: Path, job: Job | None = None, **values: Any) -> Outcome:
    """Claim, train, seal: a whole run."""
    config = tiny_config(output, **values)
    stage = claim(config, "pretrain", 1)
    outcome = train(config, stage, job or tiny_job(output))
    stage.finish(outcome.weights_sha256, {"weights_sha256": outcome.weights_sha256})
    return outcome


def losses(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of every train row."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def add_dropout(job: Job, share: float = 0.2) -> Job:
    """Drop a share of each MLP's output while training, so that random numbers matter."""
    for layer in job.model.model.layers:
        layer.mlp.register_forward_hook(lambda module, _, output: F.dropout(output, share, module.training))
    return job


def half_padding(job: Job) -> Job:
    """Half of each sequence's 32 positions are padding."""
    batch = job.train.batch

    def padded(start: int, count: int) -> dict[str, np.ndarray]:
        rows = batch(start, count)
        rows["segment_ids"][:, 16:] = 2
        rows["labels"][:, 15:] = IGNORE
        return rows

    job.train.batch = padded
    return job


class Stopped(Exception):
    """Ends a run as a crash does."""


def crash_at(job: Job, sequence: int) -> Job:
    """End a run where it would read this sequence."""
    batch = job.train.batch

    def mortal(start: int, count: int) -> dict[str, np.ndarray]:
        if start >= sequence:
            raise Stopped
        return batch(start, count)

    job.train.batch = mortal
    return job


def die() -> None:
    """End this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_when(job: Job, at_step: int | None, in_save: int | None, sequences_per_step: int) -> Job:
    """Kill the process before a step's batch, or in the middle of a save, after its weights are written."""
    batch, save, saves = job.train.batch, job.save, 0

    def mortal_batch(start: int, count: int) -> dict[str, np.ndarray]:
        if at_step is not None and start >= at_step * sequences_per_step:
            die()
        return batch(start, count)

    def mortal_save(place: Path, dtype: torch.dtype | None) -> None:
        nonlocal saves
        save(place, dtype)
        saves += 1
        if saves == in_save:
            die()

    job.train.batch, job.save = mortal_batch, mortal_save
    return job


def main(arguments: list[str]) -> None:
    """Run, dying where told to; print the weights' digest."""
    torch.set_num_threads(1)
    output, values = Path(arguments[0]), parse_overrides(arguments[1:])
    at_step, in_save = values.pop("die_step", None), values.pop("die_save", None)
    bad = values.pop("curse", None)
    job = add_dropout(tiny_job(output))
    job = die_when(curse(job, *bad) if bad else job, at_step, in_save, 4)
    print(tiny_run(output, job, **values).weights_sha256)


if __name__ == "__main__":
    main(sys.argv[1:])
