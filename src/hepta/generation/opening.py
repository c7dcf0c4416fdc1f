"""A model directory with its tokenizer, checked to belong together."""

from dataclasses import dataclass
from pathlib import Path

import torch

from hepta.config import HeptaError
from hepta.console import warn
from hepta.generation.config import SamplingConfig
from hepta.generation.engine import Engine
from hepta.model.load import load_model, read_hepta_json, refuse_translator, resolve_model
from hepta.model.network import Network
from hepta.tokenizer.load import Tokenizer, check_matches, load_tokenizer

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Opened:
    """An engine, its tokenizer, and where they came from."""

    engine: Engine
    tokenizer: Tokenizer
    directory: Path


def open_model(config: SamplingConfig, batch_size: int = 32, chat: bool = False) -> Opened:
    """Load a model that continues text, and its tokenizer.

    Args:
        config: names the directory and the precision.
        batch_size: of the engine.
        chat: the directory must have a chat template that ends turns, the one the model was trained with.

    Raises:
        HeptaError: no model there, a tokenizer that is not its own, or no way to chat with it.
    """
    directory = resolve_model(config.model)
    refuse_translator(directory)
    tokenizer = load_tokenizer(directory)
    known = read_hepta_json(directory)
    trained = known.get("template") or {}
    if chat:
        _check_chat(directory, tokenizer, trained, known.get("provenance") or {})
    network = open_network(config, directory, tokenizer)
    return Opened(Engine(network, tokenizer, batch_size), tokenizer, directory)


def open_network(config: SamplingConfig, directory: Path, tokenizer: Tokenizer) -> Network:
    """Load a model and check that the tokenizer is its own.

    Raises:
        HeptaError: an unreadable model, a tokenizer that does not belong to it.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    network = load_model(directory, PRECISIONS[config.precision] if config.precision else None)
    check_matches(tokenizer, network.config.vocab_size, read_hepta_json(directory).get("template"))
    return network


def _check_chat(
    directory: Path, tokenizer: Tokenizer, trained: dict[str, object], provenance: dict[str, object]
) -> None:
    """Chat renders by the template the model was trained with, or not at all (trap S7); a base model is told so."""
    if not tokenizer.template_source:
        raise HeptaError(f"{directory}: has no chat template, so it cannot chat; use hepta generate")
    if not tokenizer.stop_ids:
        raise HeptaError(f"{directory}: its tokenizer has no stop token, answers would never end; use hepta generate")
    if provenance.get("verb") == "pretrain":
        warn(f"{directory}: its last training (pretrain) was to continue text, not to answer; hepta sft teaches that")
    now = tokenizer.contract
    for key in ("template_sha256", "stop_ids"):
        if trained.get(key) is not None and trained[key] != now[key]:
            raise HeptaError(
                f"{directory}: {key} differs from what the model was trained with (hepta.json); "
                "restore the tokenizer files the model came with"
            )
