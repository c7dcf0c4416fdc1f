"""What a model directory says about its tokenizer: files, special ids, chat template, stop ids."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

from hepta.config import HeptaError
from hepta.stage import disk_errors, read_json, sha256_file

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")  # ChatML, Llama 3, Gemma


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files of one directory beside a model's weights."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and (source / name).resolve() != (target / name).resolve():
            with disk_errors(target / name):
                (target / name).unlink(missing_ok=True)  # it may be a hard link into another model
                shutil.copyfile(source / name, target / name)


def read_template(directory: Path) -> str | None:
    """The chat template of a tokenizer or model directory, None where there is none."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = directory / "tokenizer_config.json"
    template = read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(template, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template


def template_contract(directory: Path) -> dict[str, Any]:
    """The special ids and digests that training, chat, serving and export must agree on.

    Returns:
        ``size`` (real ids), ``bos_id``, ``eos_id``, ``pad_id``, ``stop_ids`` (end of turn, end of text),
        ``template_sha256``, ``tokenizer_sha256``; None where the tokenizer has no such thing.

    Raises:
        HeptaError: no readable tokenizer.json there.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise HeptaError(f"{directory}: no tokenizer.json, so not a tokenizer directory")
    tokenizer = read_json(file)
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    ids = {**tokenizer.get("model", {}).get("vocab", {}), **added}
    config_file = directory / "tokenizer_config.json"
    config = read_json(config_file) if config_file.is_file() else {}

    def special(key: str) -> int | None:
        token = config.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        return ids.get(text)

    template = read_template(directory)
    stops = [added[end] for end in TURN_ENDS if template and end in template and end in added]
    eos = special("eos_token")
    if eos is not None and eos not in stops:
        stops.append(eos)
    return {
        "size": max(ids.values(), default=-1) + 1,
        "bos_id": special("bos_token"),
        "eos_id": eos,
        "pad_id": special("pad_token"),
        "stop_ids": stops,
        "template_sha256": hashlib.sha256(template.encode()).hexdigest() if template else None,
        "tokenizer_sha256": sha256_file(file),
    }
