"""What a model directory keeps of its tokenizer: the files, and the ids and digests all must agree on."""

import shutil
from pathlib import Path
from typing import Any

from hepta.config import HeptaError
from hepta.stage import digest_json, disk_errors, read_json, sha256_file

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>")
DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files of one directory beside a model's weights."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and (source / name).resolve() != (target / name).resolve():
            with disk_errors(target / name):
                (target / name).unlink(missing_ok=True)  # it may be a hard link into another model
                shutil.copyfile(source / name, target / name)


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        return next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def template_contract(directory: Path) -> dict[str, Any]:
    """The special ids and digests that training, chat, serving and export must agree on.

    The rules are those of ``hepta.tokenizer.load.Tokenizer.contract``, read from the files alone because
    a model must be saved by a room that stands beside the tokenizer's; a test holds the two equal.

    Returns:
        ``size`` (real ids), ``bos_id``, ``eos_id``, ``pad_id``, ``stop_ids`` (end of turn first),
        ``template_sha256``, ``tokenizer_sha256``.

    Raises:
        HeptaError: no readable tokenizer.json there, or one without a token that ends documents.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise HeptaError(f"{directory}: no tokenizer.json, so not a tokenizer directory")
    tokenizer = read_json(file)
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    vocab = tokenizer.get("model", {}).get("vocab", {})
    ids = {**(vocab if isinstance(vocab, dict) else {token: i for i, (token, _) in enumerate(vocab)}), **added}
    config_file = directory / "tokenizer_config.json"
    config = read_json(config_file) if config_file.is_file() else {}

    def special(key: str) -> int | None:
        token = config.get(key)
        return ids.get(token.get("content") if isinstance(token, dict) else token)

    template = _chat_template(directory, config)
    eos = special("eos_token")
    if eos is None:
        eos = next((added[end] for end in DOCUMENT_ENDS if end in added), special("sep_token"))  # BERT's ends
    if eos is None:
        raise HeptaError(f"{config_file}: names no eos_token that exists; add one")
    bos, pad = special("bos_token"), special("pad_token")
    bos = special("cls_token") if bos is None else bos
    turns = [added[end] for end in TURN_ENDS if end in added and end in (template or "")]
    return {
        "size": max(ids.values(), default=-1) + 1,
        "bos_id": eos if bos is None else bos,
        "eos_id": eos,
        "pad_id": eos if pad is None else pad,
        "stop_ids": list(dict.fromkeys([*turns, *_generation_ends(directory), eos])),
        "template_sha256": digest_json(template),
        "tokenizer_sha256": sha256_file(file),
    }


def _generation_ends(directory: Path) -> list[int]:
    file = directory / "generation_config.json"
    ends = read_json(file).get("eos_token_id") if file.is_file() else None
    return ends if isinstance(ends, list) else [] if ends is None else [ends]
