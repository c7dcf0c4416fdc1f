"""What a directory says of its tokenizer: files, special ids, chat template, and the digests all must agree on."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepta.config import HeptaError
from hepta.stage import digest_json, disk_errors, read_json, sha256_file, write_json
from hepta.tokenizer.encoding import is_structural

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>")
DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>")
MASK = "[MASK]"
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


@dataclass(frozen=True)
class Specials:
    """The special ids of a tokenizer directory.

    ``bos_id`` and ``eos_id`` stand around a document: BERT's [CLS] and [SEP] where there is no other; where there is
    no bos, it is eos, and so is pad. ``stop_ids`` end an answer, the end of a turn first. ``names`` are the special
    tokens by their key in ``tokenizer_config.json``.
    """

    size: int
    bos_id: int
    eos_id: int
    pad_id: int
    mask_id: int | None
    stop_ids: list[int]
    names: dict[str, str]
    template: str | None
    sha256: str

    def contract(self) -> dict[str, Any]:
        """What training, chat, serving and export must agree on, as ``hepta.json`` keeps it."""
        return {
            "size": self.size, "bos_id": self.bos_id, "eos_id": self.eos_id, "pad_id": self.pad_id,
            "mask_id": self.mask_id, "stop_ids": self.stop_ids,
            "template_sha256": digest_json(self.template), "tokenizer_sha256": self.sha256,
        }  # fmt: skip


def read_specials(directory: Path) -> Specials:
    """Read them from the files of a tokenizer or model directory.

    Raises:
        HeptaError: no readable tokenizer.json there, or one without a token that ends documents.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise HeptaError(f"{directory}: no tokenizer.json, so not a tokenizer directory")
    spec = read_json(file)
    if not isinstance(spec, dict) or "model" not in spec:
        raise HeptaError(f"{file}: not a tokenizer.json (no key 'model')")
    added = spec.get("added_tokens", [])
    structural = {token["content"]: token["id"] for token in added if is_structural(token)}
    ids = {**vocabulary(spec), **{token["content"]: token["id"] for token in added}}
    config_file = directory / "tokenizer_config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    names = {key: name for key in NAMES if (name := _content(config.get(key))) is not None}

    def special(*keys: str) -> int | None:
        return next((ids[names[key]] for key in keys if names.get(key) in ids), None)

    eos = special("eos_token", "sep_token")
    if eos is None:
        eos = next((structural[end] for end in DOCUMENT_ENDS if end in structural), None)
    if eos is None:
        known = ", ".join(DOCUMENT_ENDS)
        raise HeptaError(f'{config_file}: names no eos_token, and none of {known} exists; add "eos_token"')
    bos, pad = special("bos_token", "cls_token"), special("pad_token")
    template = _template(directory, config)
    turns = [structural[end] for end in TURN_ENDS if end in structural and end in (template or "")]
    return Specials(
        size=max(ids.values(), default=-1) + 1, bos_id=eos if bos is None else bos, eos_id=eos,
        pad_id=eos if pad is None else pad, mask_id=special("mask_token"),
        stop_ids=list(dict.fromkeys([*turns, *_generation_ends(directory), eos])), names=names, template=template,
        sha256=sha256_file(file),
    )  # fmt: skip


def vocabulary(spec: dict[str, Any]) -> dict[str, int]:
    """Token → id of a parsed ``tokenizer.json``, added tokens left out."""
    vocab = spec["model"].get("vocab", {})
    return vocab if isinstance(vocab, dict) else {token: i for i, (token, _) in enumerate(vocab)}


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files of one directory into another, made if needed."""
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (source / name).is_file() and (source / name).resolve() != (target / name).resolve():
                (target / name).unlink(missing_ok=True)  # it may be a hard link into another model
                shutil.copyfile(source / name, target / name)


def add_mask(source: Path, target: Path) -> None:
    """Copy a tokenizer and give it ``[MASK]``, with the next free id, as its mask token.

    Raises:
        HeptaError: it has a token of that name already, which is not its mask token.
    """
    specials = read_specials(source)
    copy_tokenizer(source, target)
    if specials.mask_id is not None:
        return
    spec, file = read_json(target / "tokenizer.json"), target / "tokenizer_config.json"
    if MASK in vocabulary(spec) or any(token["content"] == MASK for token in spec.get("added_tokens", [])):
        raise HeptaError(f"{source}: {MASK} is a token but not the mask token; name it mask_token in {file.name}")
    token = {"id": specials.size, "content": MASK, "special": True}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    spec["added_tokens"] = [*spec.get("added_tokens", []), {**token, **plain}]
    config = read_json(file) if file.is_file() else {}
    write_json(target / "tokenizer.json", spec)
    write_json(file, {**config, "mask_token": MASK})


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _template(directory: Path, config: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        return next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def _generation_ends(directory: Path) -> list[int]:
    file = directory / "generation_config.json"
    ends = read_json(file).get("eos_token_id") if file.is_file() else None
    return ends if isinstance(ends, list) else [] if ends is None else [ends]
