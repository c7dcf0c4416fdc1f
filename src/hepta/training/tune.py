"""``hepta tune``: teach a model a task; each task has a module of its own."""

import importlib
from typing import Any

from hepta.training.config import TranslateConfig, TuneConfig

TASKS = {  # task → module:function(config) → its result
    "classify": "hepta.training.classify:tune_classifier",
    "regress": "hepta.training.classify:tune_classifier",
    "translate": "hepta.training.translate:translate_task",
}


def tune(config: TuneConfig | TranslateConfig) -> Any:
    """Teach a model the task that ``config.task`` names; the same call goes on after a stop.

    Raises:
        HeptaError: no model, no usable rows, another run in the output.
        Interrupted: stopped by a signal, state saved.
    """
    module, _, name = TASKS[config.task].partition(":")
    return getattr(importlib.import_module(module), name)(config)
