"""``hepta pretrain``: a language model from token shards."""

from pathlib import Path
from typing import Any

import torch

from hepta.config import HeptaError
from hepta.console import warn
from hepta.data.order import TokenOrder
from hepta.model.families import PRESETS
from hepta.model.history import NGRAM_PRESETS
from hepta.model.load import build_model, read_hepta_json, read_tensors, resolve_model, save_model
from hepta.model.network import Network
from hepta.objectives.causal import Causal
from hepta.stage import claim, read_manifest
from hepta.tokenizer.load import check_matches, load_tokenizer
from hepta.training.config import PretrainConfig
from hepta.training.counting import count
from hepta.training.job import Job, withdraw_if_refused
from hepta.training.loop import train
from hepta.training.resolve import automatic_lr
from hepta.training.result import TrainingResult, already_done, finish
from hepta.training.samples import completion_prompts

VERSION = 1


def restore_weights(model: Network, directory: Path) -> None:
    """Copy a checkpoint's weights into a model of the same shape, in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for stored_name, stored in read_tensors(directory):
            found = model.from_disk(stored_name, stored)
            if found is not None:
                parameters[found[0]].copy_(found[1])


def pretrain(config: PretrainConfig) -> TrainingResult:
    """Train a language model from token shards; the same call goes on after a stop.

    Raises:
        HeptaError: no token shards, a model that does not fit their tokenizer, another run in the output.
        Interrupted: stopped by a signal, state saved.
    """
    manifest = read_manifest(config.data) if config.data.is_dir() else None
    if manifest is None or manifest.get("verb") != "tokens":
        raise HeptaError(
            f"{config.data}: no finished token shards here; make them with hepta tokens build --output {config.data}"
        )
    if config.model in NGRAM_PRESETS:
        return count(config, manifest, VERSION)
    stage = claim(config, "pretrain", VERSION)
    if stage.state == "done":
        return already_done(stage, config)
    with withdraw_if_refused(stage):
        job, order = _prepare(config, manifest)
    outcome = train(config, stage, job)
    return finish(stage, job, outcome, {"sequences_per_epoch": order.sequences_per_epoch, "waste": order.waste})


def _prepare(config: PretrainConfig, manifest: dict[str, Any]) -> tuple[Job, TokenOrder]:
    tokenizer_dir = config.data / "tokenizer"
    tokenizer = load_tokenizer(tokenizer_dir)
    T, seed, mask = config.sequence_length, config.seed, config.document_mask
    order = TokenOrder(config.data, "train", T, seed, document_mask=mask)
    some = manifest["facts"]["splits"].get("val", {}).get("tokens", 0) > 0
    held_out = TokenOrder(config.data, "val", T, seed, document_mask=mask) if some else None
    if held_out is None:
        warn(f"{config.data}: nothing is held out (split val is empty), so this run has no validation loss")
    fresh = config.model in PRESETS
    model = build_model(config.model, tokenizer.padded_size, config.seed)
    if not fresh:
        known = read_hepta_json(resolve_model(config.model))
        check_matches(tokenizer, model.config.vocab_size, known.get("template"))
    provenance = {
        "verb": "pretrain", "model": config.model, "data": manifest["digest"], "seed": seed, "sequence_length": T,
    }  # fmt: skip
    job = Job(
        verb="pretrain", model=model, tokenizer=tokenizer, train=order, held_out=held_out,
        prompts=completion_prompts(config.sample_prompts, tokenizer),
        lr=automatic_lr(model.config) * (1.0 if fresh else 0.2),
        save=lambda place, dtype: save_model(model, place, tokenizer_dir, dtype, provenance),
        restore=lambda place: restore_weights(model, place), objective=Causal(config.z_loss),
    )  # fmt: skip
    return job, order
