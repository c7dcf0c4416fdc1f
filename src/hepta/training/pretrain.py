"""``hepta pretrain``: a language model from token shards."""

from pathlib import Path
from typing import Any

import torch

from hepta.config import HeptaError
from hepta.console import warn
from hepta.data.order import TokenOrder
from hepta.data.shards import read_tokens_manifest
from hepta.model.families import PRESETS
from hepta.model.history import NGRAM_PRESETS
from hepta.model.load import build_model, draw_weights, read_hepta_json, read_tensors, resolve_model, save_model
from hepta.model.network import Network
from hepta.model.whole import fill
from hepta.objectives.causal import Causal
from hepta.planning.plan import read_shape
from hepta.planning.rates import automatic_lr
from hepta.stage import withdraw_if_refused
from hepta.tokenizer.contract import add_mask
from hepta.tokenizer.load import Tokenizer, check_matches, load_tokenizer
from hepta.training.branch import begin_branch
from hepta.training.config import LoopConfig, PretrainConfig, ShardsConfig
from hepta.training.counting import count
from hepta.training.job import Job
from hepta.training.loop import train
from hepta.training.masked import mask
from hepta.training.processes import in_processes
from hepta.training.result import TrainingResult, already_done, finish
from hepta.training.samples import completion_prompts
from hepta.training.together import claim_together
from hepta.training.world import world

VERSION = 1


def restore_weights(model: Network, directory: Path) -> None:
    """Copy a checkpoint's weights into a model of the same shape, in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for stored_name, stored in read_tensors(directory):
            found = model.from_disk(stored_name, stored)
            if found is not None:
                fill(parameters[found[0]], found[1])


@in_processes
def pretrain(config: PretrainConfig) -> TrainingResult:
    """Train a language model from token shards; the same call goes on after a stop.

    Raises:
        HeptaError: no token shards, a model that does not fit their tokenizer, another run in the output.
        Interrupted: stopped by a signal, state saved.
    """
    manifest = read_tokens_manifest(config.data)
    if config.model in NGRAM_PRESETS:
        return count(config, manifest, VERSION)
    stage = claim_together(config, "pretrain", VERSION)
    if stage.state == "done":
        return already_done(stage, config)
    with withdraw_if_refused(stage):
        world().lead(lambda: begin_branch(config, stage))
        job, order = _prepare(config, manifest)
    outcome = train(config, stage, job)
    return finish(stage, job, outcome, {"sequences_per_epoch": order.sequences_per_epoch, "waste": order.waste})


def _prepare(config: PretrainConfig, manifest: dict[str, Any]) -> tuple[Job, TokenOrder]:
    tokenizer_dir, masked = config.data / "tokenizer", config.objective == "masked"
    name = config.model if config.model != "auto" else "bert-nano" if masked else "nano"
    _check_shape(config, name)
    if masked:
        tokenizer_dir = _masked_tokenizer(config, name)
    tokenizer = load_tokenizer(tokenizer_dir)
    dtype = torch.bfloat16 if config.precision == "bf16-pure" else torch.float32
    model = build_model(name, tokenizer.padded_size, None, dtype)  # drawn when no checkpoint is found
    _check_tokenizer(config, name, model, tokenizer)
    train_order, held_out = token_orders(config, manifest)
    provenance = {
        "verb": "pretrain", "objective": config.objective, "model": name, "data": manifest["digest"],
        "seed": config.seed, "sequence_length": config.sequence_length,
    } | ({"branch": config.branch} if config.branch else {})  # fmt: skip
    job = Job(
        verb="pretrain", model=model, tokenizer=tokenizer, train=train_order, held_out=held_out,
        prompts=[] if masked else completion_prompts(config.sample_prompts, tokenizer),
        lr=automatic_lr(model.config) * (1.0 if name in PRESETS else 0.2),
        save=lambda place, dtype: save_model(model, place, tokenizer_dir, dtype, provenance),
        restore=lambda place: restore_weights(model, place), objective=Causal(config.z_loss),
        begun_at=config.branch_step,
        draw=(lambda: draw_weights(model, config.seed)) if name in PRESETS else None,
    )  # fmt: skip
    if masked:
        mask(job, config.seed, config.sample_prompts)
    return job, train_order


def _masked_tokenizer(config: PretrainConfig, name: str) -> Path:
    """The directory of the tokens' tokenizer with a mask token: a model's own, or made in the run."""
    if name not in PRESETS:
        return resolve_model(name)
    target = config.output / "tokenizer"
    world().lead(lambda: add_mask(config.data / "tokenizer", target))
    return target


def _check_shape(config: PretrainConfig, name: str) -> None:
    """Refuse a model that predicts something else or reads shorter texts."""
    refuse_layer_decay(config, name)
    shape = read_shape(name if name in PRESETS else str(resolve_model(name)))
    kind, length, longest = shape.kind, config.sequence_length, shape.longest
    if kind == "translation":
        raise HeptaError(f"model {name}: is a translator, which learns from pairs; use hepta tune --task translate")
    if kind != config.objective:
        raise HeptaError(f"model {name}: is {kind}; pretrain it with --objective {kind}, or choose another model")
    if longest is not None and length > longest:
        raise HeptaError(f"model {name}: reads at most {longest} tokens, sequence_length is {length}; lower it")


def refuse_layer_decay(config: LoopConfig, name: str) -> None:
    """Refuse rates by layer for fresh weights, of which none knows anything worth keeping."""
    if name in PRESETS and config.layer_decay != 1.0:
        raise HeptaError(f"layer_decay: {name} has fresh weights, and all layers learn alike; leave the key out")


def _check_tokenizer(config: PretrainConfig, name: str, model: Any, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that is not the model's, or tokens that were made with another."""
    if name not in PRESETS:
        known = read_hepta_json(resolve_model(name))
        check_matches(tokenizer, model.config.vocab_size, known.get("template"))
    place = config.data / "tokenizer"
    if tokenizer.path != place and load_tokenizer(place).encoding_sha256 != tokenizer.encoding_sha256:
        raise HeptaError(f"{config.data}: made with another tokenizer than the model's; build the tokens with {name}")


def token_orders(config: ShardsConfig, manifest: dict[str, Any]) -> tuple[TokenOrder, TokenOrder | None]:
    """The training split in a run's order, and the held-out one; None, with a warning, where nothing is held out."""
    T, seed, mask = config.sequence_length, config.seed, config.document_mask
    order = TokenOrder(config.data, "train", T, seed, document_mask=mask)
    if manifest["facts"]["splits"].get("val", {}).get("tokens", 0):
        return order, TokenOrder(config.data, "val", T, seed, document_mask=mask)
    warn(f"{config.data}: nothing is held out (split val is empty), so this run has no validation loss")
    return order, None
