"""``tracker=wandb``: a run's numbers go to Weights & Biases as well, where that was asked for and never otherwise.

Only the numbers of ``metrics.jsonl`` and the verb's name are handed over: no text, no paths, no code, no name of the
machine. The package itself adds its version, Python's, and a word like linux-x86_64. ``WANDB_MODE=offline`` keeps even
those on the disk, in ``RUN/wandb``.
"""

import importlib.util
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hepta.config import HeptaError
from hepta.stage import read_json, write_json

STATE = "wandb.json"  # the run's name there, so that a run which goes on goes on there too


class WandbTracker:
    """One run at Weights & Biases.

    Raises:
        HeptaError: the package is not installed, or will not begin (no login, no network).
    """

    def __init__(self, run: Path, verb: str) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise HeptaError("tracker wandb: the package is not installed; pip install wandb, or leave tracker out")
        import wandb  # pyright: ignore[reportMissingImports]

        known = run / STATE
        if not known.is_file():
            write_json(known, {"id": uuid.uuid4().hex[:12]})
        quiet = wandb.Settings(
            console="off", silent=True, disable_git=True, save_code=False, disable_job_creation=True,
            x_disable_meta=True, x_disable_stats=True, x_save_requirements=False, x_disable_machine_info=True,
            host="",
        )  # fmt: skip
        try:
            self._run: Any = wandb.init(
                project="hepta", id=read_json(known)["id"], name=verb, dir=str(run), resume="allow", settings=quiet
            )
        except wandb.errors.Error as error:
            first = str(error).splitlines()[0]
            raise HeptaError(f"tracker wandb: {first}; log in, set WANDB_MODE=offline, or leave tracker out") from None
        self._run.define_metric("*", step_metric="step")  # a run that goes back logs steps again

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of one row."""
        self._run.log({"step": step, **numbers})

    def close(self) -> None:
        """End the run there."""
        self._run.finish()


def open_tracker(kind: str, run: Path, verb: str) -> WandbTracker | None:
    """The tracker that the key ``tracker`` names; None for ``none``."""
    return WandbTracker(run, verb) if kind == "wandb" else None
