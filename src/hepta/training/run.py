"""A run's parts put together: model, optimizer, checkpoint, log; and what is done with them between steps."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hepta.console import say, warn
from hepta.data.around import Around, Ranges
from hepta.planning.cost import step_flops
from hepta.stage import Stage, atomic_directory
from hepta.training.accelerate import compile_blocks, compile_objective
from hepta.training.backward import BackwardUpdates
from hepta.training.by_source import loss_by_source
from hepta.training.checkpoint import (
    Checkpoint,
    best_checkpoint,
    checkpoint_path,
    latest_checkpoint,
    prune,
    publish,
    save_checkpoint,
)  # fmt: skip
from hepta.training.clock import Clock
from hepta.training.config import LoopConfig
from hepta.training.evaluate import bytes_per_token, describe_evaluation, evaluate
from hepta.training.forecast import Forecast
from hepta.training.guard import Guard
from hepta.training.held_out import write_documents
from hepta.training.job import Job, State
from hepta.training.layers import LayerStatistics
from hepta.training.metrics import RunLog, peak_memory_bytes, shares, waste
from hepta.training.optimizer import make_optimizer, optimizer_tensors, restore_optimizer
from hepta.training.profiling import Profiler
from hepta.training.recompute import recompute_blocks
from hepta.training.resolve import (
    Resolved,
    carry_over,
    prepare_machine,
    read_resolved,
    resolve,
)  # fmt: skip
from hepta.training.samples import answer
from hepta.training.sharding import reshard, shard
from hepta.training.step import Batch, StepResult, micro_batches, run_step
from hepta.training.together import agreed_checkpoint, begin, follow_save, open_log
from hepta.training.tracker import open_tracker
from hepta.training.usage import MEASURED_AT, MemoryMeter
from hepta.training.world import world


class Run:
    """Everything of one training run in this process; ``state`` says where it stands."""

    def __init__(self, config: LoopConfig, stage: Stage, job: Job) -> None:
        self.config, self.stage, self.job, self.path = config, stage, job, config.output
        self.world = world()
        begin(self.world, config)
        self.checkpoint: Checkpoint | None = agreed_checkpoint(self.world, self.path)
        self.state = State(Guard(config.spike))
        self.resolved = Resolved(**self.world.lead(lambda: asdict(self._resolve())))
        prepare_machine(self.resolved)
        job.prepare_weights(self.resolved.precision, fresh=self.checkpoint is None)
        shard(job.model, self.world, self.resolved.device, self.resolved.compute_dtype)
        job.model.compute_dtype = self.resolved.compute_dtype
        if self.resolved.recompute != "none":
            recompute_blocks(job.model, self.resolved.recompute, self.resolved.compile)
        elif self.resolved.compile:
            compile_blocks(job.model)
        self.objective = compile_objective(job.objective) if self.resolved.compile else job.objective
        self.whole_order = job.train
        self.optimizer = self.make_optimizer()
        self.take_step = BackwardUpdates(job.model).run_step if config.update_in_backward else run_step
        if self.checkpoint is not None:
            self._restore(self.checkpoint)
            say(f"{self.path}: going on from step {self.state.step}")
        self.profiler = Profiler(self.path, config.profile, self.world.main)
        self.layers: LayerStatistics | None = None  # of the step under way
        self.clock, self.steps_here = Clock(self.resolved.device), 0  # steps of this process
        restored = sum(t.nbytes for t in optimizer_tensors(job.model, self.optimizer).values())
        self.forecast = Forecast(config, job, self.resolved, restored)
        self.epoch_line = ""  # of an epoch that has just ended
        self.evaluation_seconds = 0.0  # of the last one here
        unfinished = stage.manifest is None and self.state.step == self.resolved.total_steps
        start = self.state.step if self.checkpoint else -1
        self.tracker = open_tracker(config.tracker, self.path, job.verb) if self.world.main else None
        self.log: RunLog = open_log(
            self.world, self.path, start, not unfinished, len(self.state.rollbacks), self.tracker
        )

    def close(self) -> None:
        """End what is written row by row."""
        self.log.close()
        if self.tracker is not None:
            self.tracker.close()

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Weights, optimizer, state and the way through the data, as a checkpoint has them."""
        self.job.restore(checkpoint.path)
        restore_optimizer(self.job.model, self.optimizer, checkpoint.optimizer_tensors())
        vars(self.state).update(vars(State.read(checkpoint.state, self.config.spike)))
        self._read_around()

    def _read_around(self) -> None:
        left_out = self.state.left_out
        self.job.train = Around(self.whole_order, left_out) if left_out else self.whole_order

    @property
    def anchor_every(self) -> int | None:
        """Steps between the checkpoints that the run may go back to; None: not known before the first two minutes."""
        return self.config.checkpoint.every or self.resolved.save_every

    def go_back(self, checkpoint: Checkpoint, left_out: Ranges, rollbacks: list[int]) -> None:
        """Stand where a checkpoint of this run stands, with more left out; what was written since is forgotten."""
        self.optimizer = self.make_optimizer()
        self._restore(checkpoint)
        self.state.left_out, self.state.rollbacks = left_out, rollbacks
        self._read_around()
        self.log.close()
        self.log = open_log(self.world, self.path, self.state.step, True, len(rollbacks), self.tracker)

    def _resolve(self) -> Resolved:
        old = read_resolved(self.path)
        if old is not None:
            return carry_over(self.config, old)
        config, per_epoch = self.config, self.job.train.sequences_per_epoch * self.config.sequence_length
        per_step = config.sequences_per_step * config.sequence_length
        limits = [config.tokens, config.max_steps and config.max_steps * per_step]
        limits.append((config.epochs or 1) * per_epoch if config.epochs or not any(limits) else None)
        most = min(limit for limit in limits if limit) if config.minutes is None else float("inf")
        trained = sum(parameter.numel() for parameter in self.job.model.parameters() if parameter.requires_grad)
        return resolve(config, self.job.model.config, self.job.lr, most, trained)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimizer of the model's trainable parameters."""
        config, rounding = self.config, self.config.seed if self.resolved.precision == "bf16-pure" else None
        return make_optimizer(self.job.model, config.weight_decay, config.optimizer, config.layer_decay, rounding)

    @cached_property
    def flops_per_token(self) -> float:
        """Useful FLOPs of one token of a step: nothing for gradients that frozen weights do not get (trap R13)."""
        parameters = list(self.job.model.parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        frozen = not all(p.requires_grad for p in parameters)
        return step_flops(self.job.model.config, self.config.sequence_length, trained if frozen else None)

    @cached_property
    def tokens_per_step(self) -> float:
        """Real tokens of a step: the mean of the first four."""
        per_step, order = self.config.sequences_per_step, self.job.train
        some = [micro_batches(order, step, per_step, self.resolved.micro_batch) for step in range(4)]
        return sum(order.count_tokens(step * per_step, part) for step, part in enumerate(some)) / len(some)

    @contextmanager
    def watched(self, batches: list[Batch]) -> Iterator[None]:
        """Around a step: some have their layers measured, the second one of a process its memory, later ones may be
        profiled."""
        self.steps_here += 1
        every = self.config.statistics
        self.layers = LayerStatistics(self.job.model) if every and (self.state.step + 1) % every == 0 else None
        if self.layers is not None:
            self.layers.activations(self.objective, batches)
            with self.layers.of(self.optimizer):
                yield
            return
        if self.steps_here - 1 != MEASURED_AT:
            with self.profiler.around(self.steps_here, self.state.step + 1):
                yield
            return
        meter = MemoryMeter(self.job.model, self.optimizer)
        self.clock.watch = meter.leave
        yield
        self.clock.watch = None
        self.state.memory = meter.row()

    def record(self, result: StepResult, batches: list[Batch], rate: float, began: float) -> dict[str, Any]:
        """Count a step that began at ``began`` (seconds) and write its row; close the epoch that it ends."""
        state, config = self.state, self.config
        read, sources = self.count(batches), self.by_source(batches, result)
        seconds = time.perf_counter() - began
        per_epoch, sequences = self.job.train.sequences_per_epoch, config.sequences_per_step
        tokens, phases = read["tokens"], self.clock.take(seconds)
        self.add_phases(phases)
        epoch = state.step * sequences // per_epoch
        state.step, state.tokens, state.seconds = state.step + 1, state.tokens + tokens, state.seconds + seconds
        state.positions += read["positions"]
        state.val_loss = None
        if result.skipped is None:
            state.epoch_loss += result.loss * result.weight
            state.epoch_weight += result.weight
        flops = self.flops_per_token * tokens
        row = {
            "step": state.step, "epoch": state.step * sequences / per_epoch, "tokens_seen": state.tokens,
            "loss": result.loss, **result.parts, **sources, "grad_norm": result.grad_norm, "lr": rate,
            "tokens_per_second": tokens / seconds,
            "mfu": flops / seconds / (self.resolved.peak_gflops * 1e9 * self.world.size),
            "memory_bytes": peak_memory_bytes(), "seconds": state.seconds, "waste": shares(read), "phases": phases,
            "data_wait": phases["data"] / seconds,
        }  # fmt: skip
        if self.steps_here - 1 == MEASURED_AT:
            row["memory"] = state.memory
        self.log.metrics(row)
        if self.layers is not None:
            clipped = min(1.0, config.clip_norm / (result.grad_norm + 1e-6))
            self.log.metrics({"step": state.step, "layers": self.layers.row(clipped)})
        if result.skipped is not None:
            self._note_skip(result.skipped)
        last = state.step == self.resolved.total_steps
        ended = state.step * sequences // per_epoch > epoch
        if (last or ended) and state.epoch_weight:
            mean, whole = state.epoch_loss / state.epoch_weight, int(row["epoch"])
            part = 0.0 if ended else row["epoch"] - whole
            self.epoch_line = f"Epoch {whole + 1} ({part:.0%} of it)" if part else f"Epoch {whole}"
            self.epoch_line += f"  loss {mean:.4f}"
            if not self.evaluation_due:  # else it says both on one line
                self._tell_epoch()
            self.log.metrics({"step": state.step, "epoch": row["epoch"], "epoch_loss": mean})
            state.epoch_loss, state.epoch_weight = 0.0, 0
        return row

    @property
    def evaluated_every(self) -> int | None:
        """Steps between evaluations; None: a tenth of the run, whatever that is."""
        by_epoch = math.ceil(self.job.train.sequences_per_epoch / self.config.sequences_per_step)
        return self.config.eval.every or (by_epoch if self.job.by_epoch else None)

    @property
    def evaluation_due(self) -> bool:
        """Whether this step is one of those after which held-out data are scored; the run's end has its own."""
        step, total, every = self.state.step, self.resolved.total_steps, self.config.eval.every
        if self.job.by_epoch and every is None:
            due = bool(self.epoch_line)
        else:
            due = step % (every or max(1, total // 10)) == 0
        return due and (step < total or self.job.patience is not None)

    def _tell_epoch(self, more: str = "") -> None:
        if line := "  ".join(part for part in (self.epoch_line, more) if part):
            say(line)
        self.epoch_line = ""

    def _documents(self, first: int, end: int) -> list[str]:
        return sorted({name for n in range(first, end) for name in self.job.train.where(n)})

    def _note_skip(self, reason: str) -> None:
        step, per_step = self.state.step, self.config.sequences_per_step
        window = [(step - 1) * per_step, step * per_step]
        event = {"step": step, "event": "skip", "reason": reason, "sequences": window}
        self.log.event({**event, "documents": self._documents(*window)})
        warn(f"step {step} skipped: {reason} (its documents: {self.path / 'journal.jsonl'})")

    def warn_masked(self, batches: list[Batch]) -> None:
        """Name the documents of a micro-batch in which nothing is supervised (trap R4)."""
        place, rows = self.state.step * self.config.sequences_per_step, [batch["labels"].shape[0] for batch in batches]
        for weights in self.world.gather([self.objective.weight(batch) for batch in batches]):
            for weight, count in zip(weights, rows, strict=True):
                if not weight:
                    names = ", ".join(self._documents(place, place + count)[:4])
                    warn(f"sequences {place} to {place + count - 1} have no supervised token (from {names})")
                place += count

    def count(self, batches: list[Batch]) -> dict[str, int]:
        """``waste`` of a step, of which this process read ``batches``."""
        first, _ = self.world.part(self.state.step, self.config.sequences_per_step)
        read = waste(self.job.train.count_tokens(first, batches), batches)
        return {name: int(total) for name, total in zip(read, self.world.sum(*read.values()), strict=True)}

    def by_source(self, batches: list[Batch], result: StepResult) -> dict[str, dict[str, float]]:
        """The loss of each source in a step, of which this process read ``batches``; empty where there is one only."""
        names = getattr(self.whole_order, "source_names", ())
        if len(names) < 2 or not result.losses:
            return {}
        first, _ = self.world.part(self.state.step, self.config.sequences_per_step)
        return loss_by_source(self.job.train, names, first, batches, result.losses, self.world)

    def add_phases(self, phases: dict[str, float]) -> None:
        """Add to the run's seconds by phase."""
        for name, value in phases.items():
            self.state.phases[name] = self.state.phases.get(name, 0.0) + value

    def evaluate(self, most_tokens: int | None) -> dict[str, Any]:
        """Score the held-out data, answer the sample prompts, write both."""
        began = time.perf_counter()
        with self.clock.phase("evaluation"):
            row = self._evaluate(most_tokens)
            reshard(self.job.model)
        self.evaluation_seconds = time.perf_counter() - began
        return row

    def _evaluate(self, most_tokens: int | None) -> dict[str, Any]:
        job, row = self.job, {"step": self.state.step}
        with torch.compiler.set_stance("force_eager"):  # a second graph, without gradients, would not pay
            row |= job.evaluate(most_tokens) if job.evaluate else self._language_scores(most_tokens)
        if "val_loss" in row:
            self._remember(row["val_loss"])
            self.log.metrics(row)
            if job.describe:
                told = ("" if self.epoch_line else f"step {row['step']}: ") + job.describe(row)
            else:
                told = describe_evaluation(row, job.model.config.vocab_size)
            self._tell_epoch(told)
        texts = job.answer(job.prompts) if job.answer else answer(job.model, job.tokenizer, job.prompts)
        for prompt, text in zip(job.prompts, texts, strict=True):
            said = {"kind": prompt.kind, "lang": prompt.lang, "held_out": prompt.held_out}
            self.log.sample({"step": self.state.step, "stage": job.verb, "prompt": prompt.text, "text": text, **said})
        return row

    def _language_scores(self, most_tokens: int | None) -> dict[str, Any]:
        job = self.job
        if job.held_out is None or not job.held_out.sequences_per_epoch:
            return {}
        micro = self.resolved.micro_batch
        scores = evaluate(
            job.model, self.objective, job.held_out, self.widths, job.answer_ends, micro, most_tokens, self.world
        )
        if most_tokens is None and self.world.main:
            write_documents(self.path, scores)
        return scores.row() if scores.overall.bytes else {}

    @cached_property
    def widths(self) -> torch.Tensor:
        """UTF-8 bytes that each id spells (V,)."""
        return bytes_per_token(self.job.tokenizer, self.job.model.config.vocab_size)

    def _remember(self, loss: float) -> None:
        state = self.state
        state.val_loss = loss
        better = state.best_loss is None or loss < state.best_loss
        state.best_loss, state.since_best = (loss, 0) if better else (state.best_loss, state.since_best + 1)

    @property
    def exhausted(self) -> bool:
        """Whether held-out loss has not fallen for as many evaluations as the job has patience for."""
        return self.job.patience is not None and self.state.since_best >= self.job.patience

    def back_to_best(self) -> None:
        """Put back the weights of the step with the lowest held-out loss; they are what is published."""
        best = best_checkpoint(self.path)
        if best is not None and best.step != self.state.step:
            say(f"{self.path}: the weights of step {best.step} had the lowest held-out loss and are kept")
            self.job.restore(best.path)

    def save(self) -> Path:
        """Write the checkpoint of this step and drop those no longer needed."""
        with self.clock.phase("save"):
            tensors = optimizer_tensors(self.job.model, self.optimizer)
            step, state = self.state.step, self.state.saved()
            if not self.world.main:
                follow_save(self.job, None, tensors)
                return checkpoint_path(self.path, step)
            path = save_checkpoint(self.path, step, lambda place: self.job.save(place, None), tensors, state)
            prune(self.path, self.config.checkpoint.keep, self.anchor_every)
        return path

    def publish(self) -> None:
        """Write ``RUN/model``: hard links to the last checkpoint's where that is the same bytes."""
        copies = self.job.whole_model and (self.config.save_dtype == "fp32" or self.resolved.precision == "bf16-pure")
        dtype = torch.bfloat16 if self.config.save_dtype == "bf16" else None
        if not self.world.main:
            return None if copies else follow_save(self.job, dtype)
        if not copies:
            with atomic_directory(self.path / "model") as directory:
                self.job.save(directory, dtype)
            return None
        last = (best_checkpoint if self.job.patience is not None else latest_checkpoint)(self.path)
        assert last is not None, "the last step saves"
        publish(self.path, last.path)
        return None
