"""Tiny models of every family in directories of their own, each with the tests' tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hepta.model.classifier import Task, build_classifier, save_classifier
from hepta.model.families import network_class, preset
from hepta.model.load import save_model
from hepta.tokenizer.contract import add_mask
from hepta.tokenizer.load import load_tokenizer

TINY: dict[str, dict[str, Any]] = {
    "nano": {
        "hidden_size": 32, "intermediate_size": 48, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8},
    "gpt2-nano": {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4},
    "bert-nano": {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4},
    "transformer-nano": {
        "hidden_size": 32, "intermediate_size": 48, "num_layers": 3, "encoder_layers": 2, "num_heads": 4},
    "lstm": {"hidden_size": 32},
    "feedforward": {},
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Callable[..., Path]:
    """``tiny("nano")`` is a directory with a random model of that preset; ``tiny("nano", classes)`` a classifier."""
    made: dict[tuple[str, tuple[str, ...]], Path] = {}

    def build(name: str, labels: tuple[str, ...] = ()) -> Path:
        if (name, labels) not in made:
            made[name, labels] = _build(tmp_path_factory.mktemp(name), name, labels, tokenizer_dir)
        return made[name, labels]

    return build


def _build(folder: Path, name: str, labels: tuple[str, ...], tokenizer: Path) -> Path:
    if name == "bert-nano":
        add_mask(tokenizer, folder / "tokenizer")
        tokenizer = folder / "tokenizer"
    loaded = load_tokenizer(tokenizer)
    specials = {"bos_token_id": loaded.bos_id, "eos_token_id": loaded.eos_id, "pad_token_id": loaded.pad_id}
    shape = preset(name, loaded.padded_size).replace(**TINY.get(name, {}), **specials)
    model = network_class(shape)(shape)
    model.init_weights(3)
    with torch.no_grad():  # sharp looks, so that heads differ
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    save_model(model, folder / "model", tokenizer)
    if not labels:
        return folder / "model"
    classifier = build_classifier(folder / "model", Task(labels, sequence_length=24))
    save_classifier(classifier, folder / "classifier", tokenizer)
    return folder / "classifier"
