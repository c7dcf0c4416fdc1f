"""Speed of tuning a classifier against transformers' Trainer, the same weights and texts, taking turns in one process.

    python benchmarks/classify.py --body bert llama [--rows 1024] [--rounds 5] [--threads 2] [--compile]

Bodies of MiniLM-L6's size: BERT with D 384 and 6 layers, and a Llama alike. Both sides: 11 topics of Wikipedia leads,
32 rows a step, AdamW (fused), bfloat16 products on float32 weights where ``--precision bf16``, rows of one length
together, padded to the longest of the batch. Trainer runs as its manual recommends on a CPU: ``bf16``,
``train_sampling_strategy="group_by_length"``, ``DataCollatorWithPadding``, nothing logged or saved, and
``torch_compile`` with ``--compile``. Each round both train ``--steps`` steps, in turns. Printed: rows per second of
both, median ratio and spread, and the accuracy of both on held-out rows after equally many steps from equal weights.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hepta.catalog.fetch import dataset_path
from hepta.data.rows import RowData, RowOrder, TextEncoder
from hepta.data.tables import load_labelled
from hepta.evaluation.predict import logits_of
from hepta.model.classifier import Classifier, Task, load_classifier, save_classifier
from hepta.model.families import preset
from hepta.objectives.classify import Classify
from hepta.planning.machine import keep_memory
from hepta.stage import write_json
from hepta.tokenizer.load import Tokenizer, load_tokenizer
from hepta.tokenizer.train import tokenizer_config, train_bpe
from hepta.training.guard import Guard
from hepta.training.optimizer import make_optimizer
from hepta.training.step import micro_batches, run_step

ROWS, SEED, RATE = 32, 7, 3e-4
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert-nano", {"hidden_size": 384, "num_layers": 6, "num_heads": 12, "intermediate_size": 1536}),
    "llama": ("nano", {
        "hidden_size": 384, "num_layers": 6, "num_heads": 6, "num_kv_heads": 6, "head_dim": 64,
        "intermediate_size": 1024,
    }),
}  # fmt: skip


def prepare(rows: int, folder: Path, length: int) -> tuple[Tokenizer, RowData, RowData, tuple[str, ...]]:
    """A tokenizer and encoded rows to train on and to be scored by."""
    examples = load_labelled(dataset_path("topics-en"), "classify")[0]
    examples = [examples[i] for i in np.random.default_rng(SEED).permutation(len(examples))[: rows + 400]]
    labels = tuple(sorted({str(e.label) for e in examples}))
    (folder / "tokenizer.json").write_text(train_bpe([e.text for e in examples[:rows]], 8192, 4).to_str(), "utf-8")
    write_json(folder / "tokenizer_config.json", tokenizer_config())
    tokenizer = load_tokenizer(folder)
    encoder = TextEncoder(tokenizer, length)

    def part(some: list[Any]) -> RowData:
        texts = [e.text for e in some]
        numbers = np.array([labels.index(str(e.label)) for e in some], np.int64)
        return RowData(texts, encoder.many(texts), numbers, [e.name for e in some], [e.lang for e in some])

    return tokenizer, part(examples[:rows]), part(examples[rows:]), labels


class Ours:
    """Steps of hepta's own loop."""

    def __init__(self, model: Classifier, order: RowOrder, half: bool, micro: int) -> None:
        self.model, self.order, self.micro, self.step = model.train(), order, micro, 0
        model.compute_dtype = torch.bfloat16 if half else None
        self.optimizer, self.guard, self.objective = make_optimizer(model, 0.01), Guard(float("inf")), Classify()

    def run(self, steps: int) -> float:
        """Seconds of so many steps."""
        began = time.perf_counter()
        for _ in range(steps):
            batches = micro_batches(self.order, self.step, ROWS, self.micro)
            run_step(self.model, self.optimizer, self.objective, batches, RATE, 1.0, self.guard)
            self.step += 1
        return time.perf_counter() - began


class Theirs:
    """Steps of transformers' Trainer, which is made anew in each round with the weights and moments of the last."""

    def __init__(self, directory: Path, data: RowData, tokenizer_dir: Path, half: bool, compiled: bool) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

        self.model = AutoModelForSequenceClassification.from_pretrained(directory)
        self.rows = [
            {"input_ids": ids.astype(np.int64).tolist(), "attention_mask": [1] * len(ids), "labels": int(label)}
            for ids, label in zip(data.ids, data.labels, strict=True)
        ]
        self.collate = DataCollatorWithPadding(AutoTokenizer.from_pretrained(tokenizer_dir))
        self.half, self.compiled, self.optimizer, self.turn = half, compiled, None, 0

    def run(self, steps: int) -> float:
        """Seconds of so many steps, without the Trainer's own preparations."""
        from transformers import Trainer, TrainerCallback, TrainingArguments

        class Clock(TrainerCallback):
            began = ended = 0.0

            def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                self.began = self.began or time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                self.ended = time.perf_counter()

        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=ROWS, learning_rate=RATE,
                lr_scheduler_type="constant", weight_decay=0.01, adam_beta2=0.95, max_grad_norm=1.0, bf16=self.half,
                train_sampling_strategy="group_by_length", use_cpu=True, optim="adamw_torch_fused", report_to=[],
                save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=SEED + self.turn,
                torch_compile=self.compiled, dataloader_pin_memory=False,
            )  # fmt: skip
            clock = Clock()
            trainer = Trainer(
                self.model, arguments, train_dataset=self.rows, data_collator=self.collate, callbacks=[clock],
                optimizers=(self.optimizer, None),
            )  # fmt: skip
            trainer.train()
            self.turn += 1
            self.optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        return clock.ended - clock.began


def accuracy(model: Classifier, data: RowData) -> float:
    """Share of rows whose class is named right, in float32."""
    model.compute_dtype = None
    return float((logits_of(model, data.ids).argmax(1) == data.labels).mean())


def benchmark(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides on one body."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer, train, held, labels = prepare(options.rows, folder, options.length)
        kind, sizes = BODIES[name]
        shape = preset(kind, tokenizer.padded_size).replace(**sizes)
        model = Classifier(shape, Task(labels, sequence_length=options.length))
        model.network.init_weights(SEED)
        model.init_head(SEED)
        save_classifier(model, folder / "start", folder)
        half = options.precision == "bf16"
        ours = Ours(model, RowOrder(train, ROWS, SEED, tokenizer.pad_id), half, ROWS)
        theirs = Theirs(folder / "start", train, folder, half, options.compile)
        ours.run(1)
        theirs.run(1)
        pairs = [(ours.run(options.steps), theirs.run(options.steps)) for _ in range(options.rounds)]
        theirs.model.save_pretrained(folder / "end")
        tokenizer.copy_to(folder / "end")
        scores = accuracy(model, held), accuracy(load_classifier(folder / "end"), held)
    ratios = sorted(b / a for a, b in pairs)
    rows = ROWS * options.steps
    return {
        "body": name, "parameters": sum(p.numel() for p in model.parameters()), "precision": options.precision,
        "trainer_compiled": options.compile, "steps": 1 + options.steps * options.rounds,
        "rows_per_second": round(rows / statistics.median(a for a, _ in pairs), 1),
        "trainer_rows_per_second": round(rows / statistics.median(b for _, b in pairs), 1),
        "ratio": round(statistics.median(ratios), 2), "ratio_spread": [round(ratios[0], 2), round(ratios[-1], 2)],
        "accuracy": round(scores[0], 3), "trainer_accuracy": round(scores[1], 3),
    }  # fmt: skip


def main() -> None:
    """Read the arguments, print a JSON line per body."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--body", nargs="+", default=list(BODIES), choices=list(BODIES))
    parser.add_argument("--rows", type=int, default=1024, help="training rows")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--compile", action="store_true", help="torch_compile in the Trainer")
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    for name in options.body:
        print(json.dumps(benchmark(name, options)), flush=True)


if __name__ == "__main__":
    main()
