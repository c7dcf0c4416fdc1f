"""The keys of training: what ``hepta pretrain`` and ``hepta sft`` accept (no torch here)."""

import contextlib
import math
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from hepta.config import Config, StageConfig, budget, identity, input_path, operational, preset_or_path

PROMPTS = ["今天天气怎么样？", "I love programming.", "The cat sat on the mat."]


class CheckpointKeys(Config):
    """When to save and how many to keep."""

    every: int | None = operational(None, "steps between checkpoints; none given: about every two minutes", ge=1)
    keep: int = operational(2, "newest checkpoints kept beside the best one", ge=1)


class EvalKeys(Config):
    """When to evaluate; before the first step and after the last it is always done."""

    every: int | None = operational(
        None, "steps between evaluations and samples; none given: a tenth of the run", ge=1
    )
    tokens: int = operational(
        131_072, "held-out tokens read by one evaluation on the way; the last one reads all", ge=1
    )


class LoopConfig(StageConfig):
    """What every training verb shares."""

    max_steps: int | None = budget(None, "end after this many optimizer steps", ge=1)
    tokens: int | None = budget(None, "end after this many tokens (padding not counted)", ge=1)
    minutes: float | None = budget(None, "end after about this long; its steps are counted on the way", gt=0)
    epochs: float | None = budget(
        None, "end after this many passes over the data; the budget reached first ends", gt=0
    )
    seed: int = identity(7, "seed of weights, data order and dropout", ge=0)
    lr: float | Literal["auto", "find"] = identity(
        "auto", "peak learning rate; auto: by width and optimizer; find: by a test of up to 100 steps before the first"
    )
    schedule: Literal["cosine", "wsd", "linear", "constant"] = identity(
        "cosine", "learning rate after warm-up; all but constant end near 0"
    )
    warmup: float = identity(0.05, "below 1: share of the run; else steps; at least one step", ge=0)
    decay: float = identity(0.2, "wsd only: share of the run in which the rate falls", gt=0, le=1)
    weight_decay: float = identity(0.1, "on matrices only; norms, biases and embeddings have none", ge=0)
    clip_norm: float = identity(1.0, "largest gradient norm of a step", gt=0)
    optimizer: Literal["adamw", "muon", "adafactor", "sgd", "adamw8bit"] = identity(
        "adamw", "what gradients do to weights; muon: hidden matrices orthogonally, the rest by adamw"
    )
    layer_decay: float = identity(
        1.0, "a layer's rate: the peak times this for each layer above it, embeddings lowest; for tuning a model",
        gt=0, le=1,
    )  # fmt: skip
    spike: float = identity(20.0, "skip a step whose gradient norm is this many times the recent median", gt=1)
    precision: Literal["auto", "fp32", "bf16", "bf16-pure"] = identity(
        "auto", "of the products, on float32 weights; auto: bf16 where it is fast. bf16-pure: of the weights too"
    )
    update_in_backward: bool = identity(
        False, "update each weight once its gradient is ready, and free that; clipped by the norm of the step before"
    )
    device: str = operational("auto", "cpu, cuda or auto")
    threads: int | None = operational(None, "CPU threads; none given: one per core", ge=1)
    compile: bool | Literal["auto"] = operational(
        "auto", "torch.compile the blocks; auto: if a C++ compiler is there and the run is long"
    )
    recompute: Literal["auto", "none", "block", "selective"] = operational(
        "auto", "activations made again going back: all of a block, or all but products; auto: if they do not fit"
    )
    tracker: Literal["none", "wandb"] = operational(
        "none", "wandb: numbers (no text, no paths) go to Weights & Biases too; WANDB_MODE=offline keeps them here"
    )
    statistics: int | None = operational(
        None, "steps between rows on each layer: norms of gradients and weights, updates, activations", ge=1
    )
    profile: int | None = operational(
        None, "steps recorded by the profiler, after three to warm up: a trace and a table in RUN/profile", ge=1
    )
    workers: int = operational(0, "threads that prepare batches ahead of the step", ge=0)
    sequence_length: int = identity(512, "tokens per sequence", ge=8)
    micro_batch: int | None = operational(None, "sequences per forward pass; none given: about 8,192 tokens", ge=1)
    checkpoint: CheckpointKeys = operational(CheckpointKeys(), "checkpoint.every, checkpoint.keep")
    eval: EvalKeys = operational(EvalKeys(), "eval.every, eval.tokens")
    save_dtype: Literal["fp32", "bf16"] = operational("fp32", "dtype of the final model; checkpoints keep float32")

    @field_validator("lr", mode="before")
    @classmethod
    def _a_rate(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("auto", "find"):
            with contextlib.suppress(ValueError):
                value = float(value)
        if value not in ("auto", "find") and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise ValueError("give a number above 0, auto or find")
        return value

    @model_validator(mode="after")
    def _settings_that_apply(self) -> Self:
        if self.precision == "bf16-pure":
            if "save_dtype" in self.model_fields_set and self.save_dtype == "fp32":
                raise ValueError("save_dtype fp32: bf16-pure weights are bfloat16 and saved as they are; leave it out")
            if getattr(self, "method", "full") == "lora":
                raise ValueError("precision bf16-pure: adapters stay float32; use bf16, whose frozen base is bfloat16")
        if self.update_in_backward and self.statistics is not None:
            raise ValueError("update_in_backward: gradients are gone when statistics are taken; leave statistics out")
        if self.update_in_backward and self.micro_batch and self.micro_batch < self.sequences_per_step:
            found = f"micro_batch {self.micro_batch} of {self.sequences_per_step} sequences"
            raise ValueError(f"update_in_backward: gradients cannot be summed ({found}); leave micro_batch out")
        return self

    @property
    def sequences_per_step(self) -> int:
        """Sequences of one optimizer step."""
        raise NotImplementedError


class TrainingConfig(LoopConfig):
    """What the verbs share whose steps are counted in tokens."""

    z_loss: float = identity(0.0, "weight of the squared log-partition in the loss", ge=0)
    batch_tokens: int = identity(16_384, "tokens per optimizer step, a multiple of sequence_length", ge=8)
    sample_prompts: list[str] = operational(PROMPTS, "prompts answered at each evaluation")

    @model_validator(mode="after")
    def _whole_sequences(self) -> Self:
        if self.batch_tokens % self.sequence_length:
            below = max(1, self.batch_tokens // self.sequence_length) * self.sequence_length
            found = f"batch_tokens {self.batch_tokens} is not a multiple of sequence_length {self.sequence_length}"
            raise ValueError(f"{found}; try {below}")
        return self

    @property
    def sequences_per_step(self) -> int:
        """Sequences of one optimizer step."""
        return self.batch_tokens // self.sequence_length


class ProcessKeys(Config):
    """Of the verbs whose work several processes may share."""

    nproc: int = operational(1, "processes on this machine that train together; each keeps a part of the model", ge=1)
    tensor_parallel: int = operational(1, "processes that split each layer's matrices, a divisor of nproc", ge=1)


def branch_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Keys of a branch with what follows from them: ``schedule`` wsd, and ``max_steps`` where no budget is given.

    Raises:
        ValueError: keys that do not go together.
    """
    found = re.fullmatch(r".+@([1-9]\d*)", str(values["branch"]))
    if found is None:
        raise ValueError("branch: give RUN@STEP, for example out/base@1000")
    step, budgeted = int(found[1]), any(values.get(name) for name in LoopConfig.fields_of_kind("budget"))
    if values.get("schedule", "wsd") != "wsd":
        raise ValueError("branch: its rate falls linearly to 0; leave schedule out")
    if budgeted and "decay" in values:
        raise ValueError("decay: the rate of a branch falls over all of its budget; give one of the two")
    if isinstance(values.get("max_steps"), int) and values["max_steps"] <= step:
        raise ValueError(f"max_steps: counts from the start of the run that is branched at {step}; give more")
    if not budgeted:
        decay = values.get("decay", LoopConfig.model_fields["decay"].default)
        if not isinstance(decay, float) or not 0 < decay < 1:
            raise ValueError("decay: of a branch, wants a share above 0 and below 1")
        values = {**values, "max_steps": max(step + 1, round(step / (1 - decay)))}
    return {**values, "schedule": "wsd"}


class ShardsConfig(TrainingConfig):
    """What the verbs share that learn from token shards."""

    data: Path = input_path(doc="token shards (hepta tokens build)")
    document_mask: bool = identity(True, "tokens see their own document only")


class PretrainConfig(ShardsConfig, ProcessKeys):
    """Train a language model from token shards."""

    objective: Literal["causal", "masked"] = identity(
        "causal", "predict the next token, or masked words from both sides (BERT)"
    )
    model: str = preset_or_path(
        "auto", doc="preset (nano … 7b, gpt2-nano, bert-nano) or directory to go on from; auto: nano or bert-nano"
    )
    branch: str | None = identity(
        None, "RUN@STEP: go on from that checkpoint of another run, the rate falling to 0 (schedule wsd)"
    )

    @model_validator(mode="before")
    @classmethod
    def _fall_from_the_branch(cls, values: Any) -> Any:
        return branch_keys(values) if isinstance(values, dict) and values.get("branch") is not None else values

    @property
    def branch_step(self) -> int:
        """Step at which the run leaves another one; 0 where it is a run of its own."""
        return int(self.branch.rpartition("@")[2]) if self.branch else 0


def _one_is_a_list(value: Any) -> Any:
    """A single path stands for a list of one."""
    return [value] if isinstance(value, str | Path) else value


class SftConfig(TrainingConfig, ProcessKeys):
    """Teach a language model to answer, from conversations."""

    model: str = input_path(doc="model directory or run to start from")
    data: list[str] = input_path(
        doc="conversations: files or folders of alpaca, ShareGPT, messages, prompt/completion rows"
    )
    method: Literal["full", "lora"] = identity("full", "train all weights, or low-rank adapters beside frozen ones")
    rank: int = identity(16, "lora: rank of the adapters", ge=1)
    alpha: float = identity(32.0, "lora: the update is scaled by alpha / rank", gt=0)
    targets: list[str] | Literal["all"] = identity("all", "lora: matrices adapted, for example [q_proj, v_proj]")
    dropout: float = identity(0.0, "lora: dropout before the adapters", ge=0, lt=1)
    packing: bool = identity(True, "several conversations per sequence, each seeing only itself")
    overlong: Literal["drop", "split", "keep-answer", "error"] = identity(
        "drop", "conversations longer than a sequence: drop, split at turns, keep-answer (cut the question), or error"
    )
    loss_on: Literal["all", "last"] = identity(
        "all", "answers supervised: all of a conversation, or the last one only"
    )
    bad_rows: Literal["drop", "error"] = identity("drop", "rows that are no conversation: drop and count, or stop")
    validation: float = identity(0.05, "share of conversations held out", ge=0, lt=0.5)

    _listed = field_validator("data", mode="before")(_one_is_a_list)


Targets = list[str] | Literal["all"]


class TuneConfig(LoopConfig):
    """Teach a model a task from a table of examples."""

    task: Literal["classify", "regress"] = identity(
        "classify", "classify: a class for each text; regress: a number; translate: keys in docs/translation.md"
    )
    model: str = preset_or_path(
        doc="preset with fresh weights (nano, bert-nano …), model directory, run or catalogue name"
    )
    data: list[str] = input_path(doc="CSV, TSV, JSON Lines or Parquet files, or folders of them")
    test_data: list[str] | None = input_path(None, "a test file of your own, instead of a tenth of the data")
    tokenizer: Path | None = input_path(
        None, "presets only: tokenizer directory; none given: one is trained on the training texts"
    )
    vocab_size: int = identity(8192, "presets only: tokens of the tokenizer trained on the training texts", ge=300)
    text: str | None = identity(None, "column that holds the text; none given: guessed from its name and shown")
    label: str | None = identity(None, "column that holds the class or number; none given: guessed and shown")
    bad_rows: Literal["drop", "error"] = identity("drop", "rows that are no example: drop and count, or stop")
    method: Literal["full", "lora"] = identity("full", "train all weights, or low-rank adapters beside frozen ones")
    rank: int = identity(16, "lora: rank of the adapters", ge=1)
    alpha: float = identity(32.0, "lora: the update is scaled by alpha / rank", gt=0)
    targets: Targets = identity("all", "lora: matrices adapted, for example [q_proj, v_proj]")
    rows: int = identity(32, "rows per optimizer step", ge=1)
    epochs: float | None = budget(4, "end after this many passes over the data; the budget reached first ends", gt=0)
    patience: int | None = identity(
        3, "end when this many epochs in a row have not lowered the held-out loss; the best epoch is kept", ge=1
    )
    sequence_length: int = identity(256, "tokens read of a text; longer ones are cut at their end and counted", ge=8)
    dropout: float = identity(
        0.1, "share of activations dropped while training: before the head and, if the family has it, in the body",
        ge=0, lt=1,
    )  # fmt: skip
    weight_decay: float = identity(0.01, "on matrices only; norms, biases and embeddings have none", ge=0)
    warmup: float = identity(0.1, "below 1: share of the run; else steps; at least one step", ge=0)
    compile: bool | Literal["auto"] = operational(
        False, "torch.compile the blocks; off, because texts of many lengths would be compiled many times"
    )
    l1: float = identity(0.0, "adds l1 · Σ|w| over the trained matrices to the loss", ge=0)
    l2: float = identity(0.0, "adds l2 · Σw² over them to the loss (weight_decay acts beside the loss)", ge=0)
    class_weights: Literal["none", "balanced"] | dict[str, float] = identity(
        "none", "weight of each class in the loss: balanced (rare classes count more), or {class: weight, …}"
    )
    label_smoothing: float = identity(0.0, "share of the target spread over all classes", ge=0, lt=1)
    augment: float = identity(0.0, "share of training rows with a changed copy beside them in each epoch", ge=0, le=4)

    @classmethod
    def alternatives(cls) -> dict[tuple[str, str], type[Config]]:
        """Translation has keys of its own."""
        return {("task", "translate"): TranslateConfig}

    @field_validator("task", mode="before")
    @classmethod
    def _known_task(cls, value: Any) -> Any:
        if value not in ("classify", "regress"):
            raise ValueError("choose classify, regress or translate")
        return value

    _listed = field_validator("data", "test_data", mode="before")(_one_is_a_list)

    @property
    def sequences_per_step(self) -> int:
        """Rows of one optimizer step."""
        return self.rows


class TranslateConfig(LoopConfig):
    """Teach a translator from sentence pairs."""

    task: Literal["translate"] = identity("translate", "translate: a sentence into another language")
    model: str = preset_or_path(
        "transformer-nano", doc="preset (transformer-nano, transformer-base) or a translator to go on from"
    )
    data: list[str] = input_path(doc="CSV, TSV, JSON Lines or Parquet files of sentence pairs, or folders of them")
    tokenizer: Path | None = input_path(
        None, "presets only: tokenizer directory; none given: one for both languages is trained on the training pairs"
    )
    vocab_size: int = identity(2048, "presets only: tokens of the tokenizer trained on the training pairs", ge=300)
    text: str | None = identity(None, "column that holds the source; none given: guessed from its name and shown")
    label: str | None = identity(None, "column that holds the translation; none given: guessed and shown")
    bad_rows: Literal["drop", "error"] = identity("drop", "rows that are no pair: drop and count, or stop")
    rows: int = identity(64, "pairs per optimizer step", ge=1)
    epochs: float | None = budget(50, "end after this many passes over the data; the budget reached first ends", gt=0)
    patience: int | None = identity(
        None, "end when this many evaluations in a row have not lowered the held-out loss; the best step is kept", ge=1
    )
    sequence_length: int = identity(128, "tokens of a sentence at most; longer pairs are dropped and counted", ge=8)
    dropout: float = identity(0.3, "share of each sub-layer's output dropped while training", ge=0, lt=1)
    label_smoothing: float = identity(0.1, "share of the target spread over the vocabulary", ge=0, lt=1)
    warmup: float = identity(0.1, "below 1: share of the run; else steps; at least one step", ge=0)
    beam: int = identity(4, "translations under way when the test pairs are judged; 1 is greedy", ge=1)
    compile: bool | Literal["auto"] = operational(False, "stays false: no two steps have sentences of the same lengths")

    _listed = field_validator("data", mode="before")(_one_is_a_list)

    @field_validator("compile")
    @classmethod
    def _never_compiled(cls, value: Any) -> Any:
        if value is True:
            raise ValueError("a translator is not compiled, each step would compile it anew; leave the key out")
        return False

    @property
    def sequences_per_step(self) -> int:
        """Pairs of one optimizer step."""
        return self.rows


class RunDoctorConfig(Config):
    """Look at a training run."""

    run: Path = input_path(doc="run directory, under way or not")
    step: int | None = operational(None, "name the documents of this step", ge=1)


class RunsConfig(StageConfig):
    """Say whether ways of training differ by more than noise."""

    runs: list[list[str]] = input_path(doc="sides: the first, then those to set beside it; each a run, or A1,A2,A3")
    output: Path | None = operational(None, "directory for the result and its page")  # pyright: ignore

    @field_validator("runs", mode="before")
    @classmethod
    def _sides(cls, value: Any) -> Any:
        sides = [word.split(",") if isinstance(word, str) else word for word in value or []]
        if len(sides) < 2:
            raise ValueError("compare needs two sides: RUN_A RUN_B, or with several seeds A1,A2 B1,B2")
        return sides
