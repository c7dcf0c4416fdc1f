"""``hepta tune --task classify | regress``: from a table of texts to a tuned model and its scores."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hepta.config import HeptaError, nearest
from hepta.console import say, warn
from hepta.data.rows import RowData, RowOrder, TextEncoder
from hepta.data.tables import Labelled, load_labelled
from hepta.evaluation.classification import confusion_matrix, macro_f1
from hepta.evaluation.predict import logits_of, probabilities
from hepta.model.adapters import lora_layers
from hepta.model.classifier import (
    Classifier,
    Task,
    adapt,
    build_classifier,
    load_classifier,
    save_classifier,
    save_classifier_adapter,
)  # fmt: skip
from hepta.model.families import PRESETS
from hepta.model.load import resolve_model
from hepta.objectives.classify import Classify, Regress, balanced_weights, normalised_weights
from hepta.planning.rates import automatic_lr, automatic_tuning_lr
from hepta.stage import claim, withdraw_if_refused
from hepta.tokenizer.load import Tokenizer, load_tokenizer
from hepta.training.config import TuneConfig
from hepta.training.job import Job
from hepta.training.judge import Judged, TuneResult, already_tuned, finish_tuning, judge
from hepta.training.loop import train
from hepta.training.pretrain import refuse_layer_decay
from hepta.training.splits import Splits, make_splits
from hepta.training.task_tokenizer import task_tokenizer

VERSION = 1
FRESH_RATE = 0.15  # over the width: peak rate of a fresh Transformer, 7.8e-4 for 192
ENCODER_RATE = 59.0  # over the width squared: peak rate of tuning a pretrained BERT, 4.0e-4 for 384, 1.0e-4 for 768


def tune_classifier(config: TuneConfig) -> TuneResult:
    """Tune a model on texts with classes or numbers; see ``hepta.training.tune``.

    Raises:
        HeptaError: no model, no usable rows, another run in the output.
        Interrupted: stopped by a signal, state saved.
    """
    stage = claim(config, "tune", VERSION)
    if stage.state == "done":
        return already_tuned(stage, config)
    with withdraw_if_refused(stage):
        splits = read_splits(config)
        work = Work(config, splits, stage.inputs)
    before = work.judge()
    outcome = train(config, stage, work.job)
    work.model.compute_dtype = None  # scored as ``hepta predict`` computes
    return finish_tuning(stage, config, work.job, outcome, splits, work.report(), before, work.judge())


def read_splits(config: TuneConfig) -> Splits:
    """The rows of the data files (and of the test file), without duplicates, split."""
    assert config.task in ("classify", "regress")
    classes = config.task == "classify"
    examples, report = load_labelled(config.data, config.task, config.text, config.label, config.bad_rows)
    test = None
    if config.test_data is not None:
        columns = next(iter(report["columns"].values()))
        text, label = config.text or columns["text"], config.label or columns["label"]
        test, _ = load_labelled(config.test_data, config.task, text, label, config.bad_rows)
    splits = make_splits(examples, test, config.bad_rows, classes)
    splits.report["reading"] = report
    return splits


def class_names(examples: Sequence[Labelled]) -> tuple[str, ...]:
    """Names of the classes in order: numbers by size, then words."""
    names = {str(e.label) for e in examples}
    return tuple(sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))


class Work:
    """A tuning run's parts: encoded rows, model, objective, job; and its scores on the test split."""

    def __init__(self, config: TuneConfig, splits: Splits, digests: dict[str, Any]) -> None:
        self.config, self.splits = config, splits
        refuse_layer_decay(config, config.model)
        fresh = config.model in PRESETS
        if fresh and config.method == "lora":
            raise HeptaError(f"model {config.model!r}: has fresh weights, so nothing to adapt; use method=full")
        if not fresh and config.tokenizer is not None:
            raise HeptaError(f"{config.model}: brings its own tokenizer; leave tokenizer= out")
        self.task = _task(config, splits)
        texts = [e.text for e in splits.train]
        self.tokenizer: Tokenizer = load_tokenizer(task_tokenizer(config, texts))
        self.model = self._build(fresh)
        encoder = TextEncoder(self.tokenizer, config.sequence_length)
        self.data = {name: self._encode(encoder, getattr(splits, name)) for name in ("train", "val", "test")}
        self.cut = encoder.cut
        if self.cut:
            total = sum(len(part.ids) for part in self.data.values())
            warn(f"{self.cut} of {total} texts are longer than {config.sequence_length} tokens; their end is cut off")
        self.order = RowOrder(
            self.data["train"], config.rows, config.seed, self.tokenizer.pad_id, config.augment, encoder
        )
        for text, changed in self.order.examples():
            say(f"changed copy: {text[:60]!r} → {changed[:60]!r}")
        self.objective = self._objective()
        self.job = self._job(fresh, digests["model"])

    def _build(self, fresh: bool) -> Classifier:
        config = self.config
        vocab = self.tokenizer.padded_size if fresh else None
        model = build_classifier(config.model, self.task, vocab, config.seed, config.dropout)
        longest = model.config.longest
        if longest is not None and config.sequence_length > longest:
            raise HeptaError(f"{config.model}: reads {longest} tokens at most; give sequence_length={longest}")
        if config.method == "lora":
            targets = None if config.targets == "all" else config.targets
            adapt(model, config.rank, config.alpha, targets, config.dropout, config.seed)
        return model

    def _encode(self, encoder: TextEncoder, examples: Sequence[Labelled]) -> RowData:
        texts = [e.text for e in examples]
        labels = (
            np.array([(float(e.label) - self.task.mean) / self.task.std for e in examples], np.float32)
            if self.task.is_number
            else np.array([self.task.labels.index(str(e.label)) for e in examples], np.int64)
        )
        return RowData(texts, encoder.many(texts), labels, [e.name for e in examples], [e.lang for e in examples])

    def _objective(self) -> Classify | Regress:
        config = self.config
        if self.task.is_number:
            return Regress(config.l1, config.l2)
        weights = _class_weights(config, self.task.labels, self.data["train"].labels)
        return Classify(weights, config.label_smoothing, config.l1, config.l2)

    def _job(self, fresh: bool, base_digest: str) -> Job:
        config, model = self.config, self.model
        provenance = {
            "verb": "tune", "task": config.task, "method": config.method, "base": base_digest,
            "data": self.order.digest, "sequence_length": config.sequence_length,
        }  # fmt: skip
        tokenizer = self.tokenizer.path

        def save(place: Path, dtype: torch.dtype | None) -> None:
            if lora_layers(model.network):
                save_classifier_adapter(model, place, resolve_model(config.model), tokenizer, provenance)
            else:
                save_classifier(model, place, tokenizer, dtype, provenance)

        def restore(place: Path) -> None:
            stored = dict(load_classifier(place).named_parameters())
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(stored[name])

        return Job(
            verb="tune", model=model, tokenizer=self.tokenizer, train=self.order, held_out=None, prompts=[],
            lr=self._rate(fresh), save=save, restore=restore, whole_model=config.method == "full",
            objective=self.objective, evaluate=lambda most: self.evaluate(), patience=config.patience, by_epoch=True,
            describe=describe_row,
        )  # fmt: skip

    def _rate(self, fresh: bool) -> float:
        shape = self.model.config
        if fresh and self.model.blocks:
            return FRESH_RATE / shape.hidden_size
        if fresh or self.config.method == "lora":
            return automatic_lr(shape)
        return ENCODER_RATE / shape.hidden_size**2 if self.model.masked else automatic_tuning_lr(shape)

    def logits(self, split: str) -> np.ndarray:
        """Logits (N, C) of a split's texts."""
        return logits_of(self.model, self.data[split].ids)

    def evaluate(self) -> dict[str, Any]:
        """Scores on the validation split, and the accuracy on the training rows met since the last time."""
        logits, truth = self.logits("val"), self.data["val"].labels
        if self.task.is_number:
            error = logits[:, 0] - truth
            return {"val_loss": float((error**2).mean()), "val_mae": float(np.abs(error).mean()) * self.task.std}
        chances = probabilities(logits)
        predicted = chances.argmax(1)
        matrix = confusion_matrix(truth, predicted, len(self.task.labels))
        picked = np.clip(chances[np.arange(len(truth)), truth], 1e-12, 1.0)
        row = {
            "val_loss": float(-np.log(picked).mean()), "val_accuracy": float((predicted == truth).mean()),
            "val_f1": macro_f1(matrix),
        }  # fmt: skip
        assert isinstance(self.objective, Classify)
        seen = self.objective.tally.take()
        return row if seen is None else {**row, "train_accuracy": seen}

    def judge(self) -> Judged:
        """Scores and predictions on the test split."""
        return judge(self.task, self.splits.test, self.logits("test"))

    def report(self) -> dict[str, Any]:
        """What was read, merged, cut and changed, for the run's facts."""
        tokens = sum(len(ids) for ids in self.data["train"].ids)
        return {
            **self.splits.report, "texts cut at sequence_length": self.cut, "train tokens": tokens,
            "changed copies per epoch": self.order.copies,
            "changed copy examples": [f"{a[:80]} → {b[:80]}" for a, b in self.order.examples()],
        }  # fmt: skip


def _task(config: TuneConfig, splits: Splits) -> Task:
    shared = {"sequence_length": config.sequence_length, "dropout": config.dropout}
    if config.task == "classify":
        return Task(class_names([*splits.train, *splits.val, *splits.test]), **shared)
    targets = np.array([float(e.label) for e in splits.train])
    if not targets.std():
        raise HeptaError(f"every training row has the same number ({targets[0]:g}); there is nothing to learn")
    return Task((config.label or "value",), float(targets.mean()), float(targets.std()), **shared)


def _class_weights(config: TuneConfig, labels: Sequence[str], numbers: np.ndarray) -> tuple[float, ...] | None:
    """A weight for each class, with mean 1 over training rows; None where all count alike."""
    counts = [max(1, Counter(numbers.tolist())[i]) for i in range(len(labels))]
    if config.class_weights == "none":
        return None
    if config.class_weights == "balanced":
        return tuple(balanced_weights(counts))
    given = config.class_weights
    for name in given:
        if name not in labels:
            raise HeptaError(f"class_weights: no class {name!r}; {nearest(name, labels)}")
    return tuple(normalised_weights([given.get(name, 1.0) for name in labels], counts))


def describe_row(row: dict[str, Any]) -> str:
    """An evaluation row as what follows "Epoch 3  loss 0.3210" on its line."""
    if "val_mae" in row:
        return f"held out: loss {row['val_loss']:.4f}, mean error {row['val_mae']:.4g}"
    seen = f"accuracy {row['train_accuracy']:.1%}  " if "train_accuracy" in row else ""
    held = f"held out: loss {row['val_loss']:.4f}, accuracy {row['val_accuracy']:.1%}, macro F1 {row['val_f1']:.3f}"
    return f"{seen}{held}"
