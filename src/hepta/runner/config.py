"""What a recipe file and the ``run`` verb accept."""

from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from hepta.config import Config, operational


class StageEntry(Config):
    """One stage of a recipe: its id, its verb, and the verb's own keys beside them."""

    model_config = ConfigDict(extra="allow", protected_namespaces=(), frozen=True)

    id: str = operational(doc="name of the stage; ${id} elsewhere is its output directory", pattern=r"^[A-Za-z0-9_-]+$")
    verb: str = operational(doc="fetch, corpus, tokenizer, tokens, pretrain, sft or eval")

    @property
    def keys(self) -> dict[str, Any]:
        """The verb's own keys."""
        return dict(self.model_extra or {})


class Recipe(Config):
    """Ordered stages from raw text to a model."""

    name: str = operational(doc="the run's name; outputs go to out/<name>/<id>", pattern=r"^[A-Za-z0-9_.-]+$")
    seed: int = operational(0, doc="seed of every stage that has one and does not set its own")
    output: Path | None = operational(None, doc="directory of all outputs, instead of out/<name>")
    prompts: list[str] = operational([], doc="prompts answered before and after each training stage")
    devices: str | None = operational(None, doc="machine for which a dry run prices training, for example 8xH100")
    note: str = operational("", doc="what people should know before they wait; printed first")
    stages: list[StageEntry] = operational(doc="the stages, in order", min_length=1)


class RunConfig(Config):
    """Keys of ``hepta run``."""

    recipe: Path = operational(doc="recipe file (YAML)")
    overrides: list[str] = operational([], doc="id.key=value, or name=, seed=, output=")
    fresh: bool = operational(False, doc="move existing outputs aside and make every stage anew")
    fresh_from: str | None = operational(None, doc="the same, from this stage on")
    until: str | None = operational(None, doc="stop after this stage")
    dry_run: bool = operational(False, doc="print the resolved stages and do nothing")
