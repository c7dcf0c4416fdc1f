"""Which documents a step of a run read: its order of data made again from the run's own keys."""

from pathlib import Path
from typing import Any

from hepta.config import HeptaError
from hepta.data.around import Around
from hepta.data.order import TokenOrder
from hepta.training.checkpoint import latest_checkpoint
from hepta.training.metrics import JOURNAL, read_rows


def documents_of_step(run: Path, recipe: dict[str, Any], step: int) -> tuple[int, int, list[str]]:
    """The sequences [first, end) that a step (from 1) read, in the order's own numbers, and their documents' names.

    Raises:
        HeptaError: the data is gone or another, or the verb's order of data cannot be made from the run alone.
    """
    order = run_order(recipe)
    started = [row for row in read_rows(run / JOURNAL) if row.get("event") == "start"]
    if not started:
        raise HeptaError(f"{run / JOURNAL}: names no start; the run took no step")
    if recipe.get("objective") != "masked" and started[-1]["data"] != order.digest:
        raise HeptaError(f"{recipe.get('data')}: is not the data that {run} read; put that back to name documents")
    saved = latest_checkpoint(run)
    reading = Around(order, saved.state.get("left_out", []) if saved else [])
    per_step = started[-1]["sequences_per_step"]
    first = reading.place((step - 1) * per_step)
    names = sorted({name for n in range(first, first + per_step) for name in order.where(n)})
    return first, first + per_step, names


def run_order(recipe: dict[str, Any]) -> Any:
    """The order of a run's training data."""
    if recipe["verb"] in ("pretrain", "distill", "prune"):
        T, seed, mask = recipe["sequence_length"], recipe["seed"], recipe["document_mask"]
        return TokenOrder(Path(recipe["data"]), "train", T, seed, document_mask=mask)
    if recipe["verb"] == "sft":
        from hepta.config import build
        from hepta.model.load import resolve_model
        from hepta.tokenizer.load import load_tokenizer
        from hepta.training.config import SftConfig
        from hepta.training.sft import conversation_orders

        values = {key: value for key, value in recipe.items() if key not in ("verb", "resolved")}
        config = build(SftConfig, values)
        return conversation_orders(config, load_tokenizer(resolve_model(config.model)))[0]
    raise HeptaError(f"--step: sequences of {recipe['verb']} are not made from the run alone; {JOURNAL} has skips")
