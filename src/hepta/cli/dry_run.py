"""What ``--dry-run`` prints: what a verb would do, and what it would need."""

import dataclasses
import importlib
import json
from typing import Any

from hepta.config import Config
from hepta.console import say


def print_dry_run(config: Config, as_json: bool) -> None:
    """Say what a verb would do: its resolved keys, what it reads, what it writes."""
    values = config.model_dump(mode="json")
    reads, rehearsed = {key: values[key] for key in config.fields_of_kind("input")}, _rehearsed(config)
    if as_json:
        told = {"config": values, "reads": reads, "writes": values.get("output")}
        told |= {"rehearsal": dataclasses.asdict(rehearsed)} if rehearsed else {}
        print(json.dumps(told, ensure_ascii=False))
        return
    for key, value in values.items():
        print(f"{key}: {json.dumps(value, ensure_ascii=False)}")
    for key, value in reads.items():
        if value is not None:
            say(f"would read {key}: {value}")
    if "output" in values:
        say(f"would write: {values['output']}")
    if rehearsed:
        print(rehearsed)


def _rehearsed(config: Config) -> Any:
    """What one of several processes would hold and send; None where there is one."""
    if getattr(config, "nproc", 1) == 1:
        return None
    return importlib.import_module("hepta.training.rehearsal").rehearse(config)
