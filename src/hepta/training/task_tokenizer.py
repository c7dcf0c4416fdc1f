"""The tokenizer of a tuning run: the model's own, one that is given, or one trained on the training texts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hepta.config import HeptaError
from hepta.console import say
from hepta.model.classifier import read_body_shape
from hepta.model.families import PRESETS, preset
from hepta.model.load import resolve_model
from hepta.stage import atomic_directory, write_json
from hepta.tokenizer.contract import copy_tokenizer, read_specials
from hepta.tokenizer.train import tokenizer_config, train_bpe
from hepta.training.config import TuneConfig

HAN_RUN = 4  # Han characters in a piece at most, as hepta tokenizer train has it


def task_tokenizer(config: TuneConfig, texts: Sequence[str]) -> Path:
    """Make ``RUN/tokenizer`` and give its directory; what lies there from before is used again.

    Args:
        config: the run's keys.
        texts: of the training split.

    Raises:
        HeptaError: no tokenizer where one was named.
    """
    target = config.output / "tokenizer"
    if (target / "tokenizer.json").is_file():
        return target
    fresh = config.model in PRESETS
    source = config.tokenizer if fresh else resolve_model(config.model)
    if source is not None and not (source / "tokenizer.json").is_file():
        source = source / "model" if (source / "model" / "tokenizer.json").is_file() else source
        if not (source / "tokenizer.json").is_file():
            raise HeptaError(f"{source}: no tokenizer.json there; give tokenizer= a directory that has one")
    kind = preset(config.model).kind if fresh else read_body_shape(resolve_model(config.model)).kind
    with atomic_directory(target) as folder:
        if source is not None:
            copy_tokenizer(source, folder)
        else:
            say(f"tokenizer: training {config.vocab_size} tokens on {len(texts):,} training texts")
            (folder / "tokenizer.json").write_text(train_bpe(texts, config.vocab_size, HAN_RUN).to_str(), "utf-8")
            write_json(folder / "tokenizer_config.json", tokenizer_config())
        if kind == "masked":
            _frame(folder)
    return target


def _frame(folder: Path) -> None:
    """Have a tokenizer begin each text with its bos where it puts nothing there: BERT's head reads the first token.

    It is written into ``tokenizer.json``, so that transformers does the same.
    """
    file = folder / "tokenizer.json"
    spec: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if (spec.get("post_processor") or {}).get("type") in ("TemplateProcessing", "BertProcessing", "RobertaProcessing"):
        return
    first = read_specials(folder).bos_id
    name = next(token["content"] for token in spec["added_tokens"] if token["id"] == first)
    special, text = {"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    spec["post_processor"] = {
        "type": "TemplateProcessing", "single": [special, text], "pair": [special, text, second],
        "special_tokens": {name: {"id": name, "ids": [first], "tokens": [name]}},
    }  # fmt: skip
    file.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
