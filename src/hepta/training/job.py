"""What a verb hands to the loop, where a run stands, and what a finished one leaves."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hepta.data.around import Ranges
from hepta.model.fresh import check_finite
from hepta.objectives.causal import Causal
from hepta.training.guard import Guard
from hepta.training.resolve import Resolved
from hepta.training.samples import Prompt


@dataclass
class Job:
    """Model, data, objective and how to save: all that differs between one training verb and another."""

    verb: str
    model: Any  # a ``Network``, or a module with its ``config``, ``compute_dtype`` and ``blocks``
    tokenizer: Any  # a hepta.tokenizer.load.Tokenizer
    train: Any  # a hepta.data.order.Order
    held_out: Any | None  # another, or None where nothing is held out
    prompts: list[Prompt]
    lr: float  # what ``lr: auto`` means here
    save: Callable[[Path, torch.dtype | None], None]  # writes the model or adapter directory
    restore: Callable[[Path], None]  # reads the weights back in place
    answer_ends: tuple[int, ...] = ()  # stop tokens whose probability is watched where answers end
    whole_model: bool = True  # what is saved needs no base beside it
    objective: Any = field(default_factory=Causal)  # weight(batch), and (model, batch) → LossSum
    evaluate: Callable[[int | None], dict[str, Any]] | None = None  # None: a language model's scores on ``held_out``
    answer: Callable[[Sequence[Prompt]], list[str]] | None = None  # None: greedy continuations
    patience: int | None = None  # evaluations without a lower val_loss that end the run; the best weights are kept
    by_epoch: bool = False  # evaluate where epochs end, unless ``eval.every`` says otherwise
    begun_at: int = 0  # step of another run's checkpoint from which this one goes on, its rate falling
    draw: Callable[[], None] | None = None  # fills fresh weights where no checkpoint does; None: they are there
    describe: Callable[[dict[str, Any]], str] | None = None  # an evaluation row as one line; None: a language model's

    def prepare_weights(self, precision: str, fresh: bool) -> None:
        """Give the weights their dtype, and fill and check them where no checkpoint will."""
        if precision == "bf16-pure":
            self.model.to(torch.bfloat16)
        if fresh:
            if self.draw is not None:
                self.draw()
            check_finite(self.model)


@dataclass
class State:
    """Where a run stands; saved in every checkpoint."""

    guard: Guard
    step: int = 0  # optimizer steps done, skipped ones included
    tokens: int = 0  # real tokens read
    positions: int = 0  # read, padding included
    seconds: float = 0.0  # spent in steps
    phases: dict[str, float] = field(default_factory=dict)  # seconds by phase, see ``Clock``
    memory: dict[str, int] = field(default_factory=dict)  # bytes by class, see ``MemoryMeter``
    epoch_loss: float = 0.0  # summed nats of the epoch under way
    epoch_weight: int = 0
    left_out: Ranges = field(default_factory=list)  # sequences that rollbacks took out of the data
    rollbacks: list[int] = field(default_factory=list)  # the step each went back to
    val_loss: float | None = None  # of this very step's evaluation, None where there was none
    best_loss: float | None = None  # the lowest val_loss so far
    since_best: int = 0  # evaluations since then

    def saved(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "guard": self.guard.state()}

    @classmethod
    def read(cls, saved: dict[str, Any], spike: float) -> "State":
        """From the JSON of a checkpoint."""
        values = {key: saved[key] for key in cls.__dataclass_fields__ if key != "guard" and key in saved}
        return cls(Guard(spike, **saved["guard"]), **values)


@dataclass
class Outcome:
    """A finished run."""

    state: State
    resolved: Resolved
    before: dict[str, Any]  # the evaluation rows before the first step and after the last
    final: dict[str, Any]
    train_loss: float  # mean of the last steps
    weights_sha256: str
