"""Load a tokenizer directory (ours or any Hugging Face one) and turn text and conversations into ids."""

import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as HfTokenizer

from hepta.catalog.models import model_path
from hepta.config import HeptaError
from hepta.console import say
from hepta.stage import digest_json, disk_errors, read_json, sha256_file
from hepta.tokenizer.encoding import is_structural, make_encoder
from hepta.tokenizer.pattern import byte_alphabet
from hepta.tokenizer.template import ChatTemplate, HistoryChanged, Message

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>")
DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>")
MOST_SPARE_ROWS = 1024  # models round their vocabulary up; the largest padding seen in the wild is some 400 rows


class Tokenizer:
    """Byte-level BPE (or what ``tokenizers`` can run) with its special tokens and chat template.

    Attributes:
        path: the directory it was loaded from.
        size: real ids; ``padded_size`` is the next multiple of 64, which is a model's vocabulary.
        bos_id, eos_id, pad_id: document ends and padding; where a foreign tokenizer has no BOS, bos is eos.
        stop_ids: ids that end an answer, the end of a turn first.
        special_ids: ids that no plain text gives.
        sha256: of ``tokenizer.json``.
        slow_reason: why text is encoded by the slower library; "" when it is not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = path / "tokenizer.json"
        spec = read_json(file)
        if not isinstance(spec, dict) or "model" not in spec:
            raise HeptaError(f"{file}: not a tokenizer.json (no key 'model')")
        self.sha256 = sha256_file(file)
        added = spec.get("added_tokens", [])
        self._specials = {token["content"]: token["id"] for token in added if is_structural(token)}
        self.special_ids = {token["id"] for token in added if token.get("special")}
        vocab = spec["model"].get("vocab", {})
        entries = vocab.items() if isinstance(vocab, dict) else ((token, i) for i, (token, _) in enumerate(vocab))
        self._tokens = {i: token for token, i in entries} | {token["id"]: token["content"] for token in added}
        self._added_ids = {token["id"] for token in added}
        self.size = max(self._tokens) + 1
        self.padded_size = -(-self.size // 64) * 64
        self._byte_level = "ByteLevel" in str(spec.get("decoder")) or "ByteLevel" in str(spec.get("pre_tokenizer"))
        self._encoder, self.slow_reason = make_encoder(spec)
        self._read_config()

    def _read_config(self) -> None:
        file = self.path / "tokenizer_config.json"
        config = read_json(file) if file.is_file() else {}
        keys = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token")
        names = {key: _content(config.get(key)) for key in keys}
        ends = [name for name in DOCUMENT_ENDS if name in self._specials]
        eos = self._id(names["eos_token"]) if names["eos_token"] else (self._specials[ends[0]] if ends else None)
        eos = self._id(names["sep_token"]) if eos is None else eos  # BERT's ends
        if eos is None:
            raise HeptaError(
                f'{file}: names no eos_token, and none of {", ".join(DOCUMENT_ENDS)} exists; add "eos_token"'
            )
        self.eos_id: int = eos
        bos, pad = self._id(names["bos_token"] or names["cls_token"]), self._id(names["pad_token"])
        self.bos_id: int = eos if bos is None else bos
        self.pad_id: int = eos if pad is None else pad
        self.special_ids |= {self.bos_id, self.eos_id, self.pad_id}
        self.template_source = _template_source(self.path, config)
        template = self.template_source or ""
        ends_of_turn = [self._specials[name] for name in TURN_ENDS if name in self._specials and name in template]
        self.stop_ids: list[int] = list(dict.fromkeys([*ends_of_turn, *_generation_ends(self.path), self.eos_id]))
        self._variables = {key: name for key, name in names.items() if name}

    def _id(self, token: str | None) -> int | None:
        if token is None:
            return None
        by_name = self._specials.get(token)
        return by_name if by_name is not None else self._id_of_token.get(token)

    @cached_property
    def _id_of_token(self) -> dict[str, int]:
        return {token: i for i, token in self._tokens.items()}

    @cached_property
    def _template(self) -> ChatTemplate:
        if not self.template_source:
            raise HeptaError(
                f"{self.path}: has no chat template, so it cannot render conversations; use a chat model's tokenizer"
            )
        return ChatTemplate(self.template_source, self._specials, self.stop_ids, self._variables, str(self.path))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; text that spells a special token stays text, and nothing is put before or after it."""
        return self.encode_array(text).tolist()

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """What ``tokenizer.json`` itself puts before and after a text, such as BERT's [CLS] and [SEP]."""
        whole = HfTokenizer.from_file(str(self.path / "tokenizer.json"))
        plain = whole.encode("a", add_special_tokens=False).ids
        framed = whole.encode("a").ids
        start = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
        return framed[:start], framed[start + len(plain) :]

    def encode_array(self, text: str) -> np.ndarray:
        """``encode`` as (n,) uint32, without the trip through a list. Lone surrogates become U+FFFD."""
        try:
            return self._encoder.encode(text)
        except (UnicodeEncodeError, TypeError):
            return self._encoder.encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """``encode_array`` of each text; a batch of many short texts is faster than one call each."""
        try:
            return self._encoder.encode_many(texts) if texts else []
        except (UnicodeEncodeError, TypeError):
            return [self.encode_array(text) for text in texts]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text."""
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD, special tokens are left out unless asked for."""
        kept = [int(i) for i in ids if not (skip_special and int(i) in self.special_ids)]
        text = b"".join(self.token_bytes(i) for i in kept).decode("utf-8", "replace")
        return text if self._byte_level else text.removeprefix(" ")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one id stands for; a special token's are its name, an unknown id's U+FFFD."""
        return self._bytes[token] if 0 <= token < self.size else "\ufffd".encode()

    @cached_property
    def _bytes(self) -> list[bytes]:
        to_byte = {character: byte for byte, character in byte_alphabet().items()}
        table = []
        for i in range(self.size):
            name = self._tokens.get(i, "\ufffd")
            if i not in self._added_ids and self._byte_level and all(c in to_byte for c in name):
                table.append(bytes(to_byte[c] for c in name))
            elif i not in self._added_ids and len(name) == 6 and name.startswith("<0x"):  # SentencePiece's byte tokens
                table.append(bytes([int(name[3:5], 16)]))
            else:
                table.append(name.replace("\u2581", " ").encode() if i not in self._added_ids else name.encode())
        return table

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> list[int]:
        """Ids of a conversation by the chat template: what the model reads.

        Args:
            messages: ``{"role": "user", "content": "…"}``, roles system, user, assistant, tool.
            add_generation_prompt: end with the opening of an assistant turn.

        Raises:
            HeptaError: no chat template, a wrong message, a conversation that the template refuses.
        """
        return self._template.render(messages, add_generation_prompt, self.encode)

    def render_supervised(self, messages: Sequence[Message], last_only: bool = False) -> tuple[list[int], list[bool]]:
        """``render`` and a mask of the same length: true on assistant content and its stop token.

        Args:
            messages: a whole conversation.
            last_only: supervise the last answer only; earlier stop tokens are masked too.

        Raises:
            HistoryChanged: the template writes earlier turns differently once later ones follow; use ``render_turns``.
        """
        return self._template.render_supervised(messages, self.encode, last_only)

    def render_turns(self, messages: Sequence[Message]) -> list[tuple[list[int], list[bool]]]:
        """``render_supervised`` as one sequence, or one for each answer where the template rewrites history."""
        try:
            return [self.render_supervised(messages)]
        except HistoryChanged:
            answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
            return [self._template.render_last(messages[: i + 1], self.encode) for i in answers]

    @property
    def contract(self) -> dict[str, Any]:
        """What training, chat and serving must agree on; the key of every cache of encoded conversations."""
        return {
            "tokenizer_sha256": self.sha256,
            "template_sha256": digest_json(self.template_source),
            "bos_id": self.bos_id, "eos_id": self.eos_id, "pad_id": self.pad_id, "stop_ids": self.stop_ids,
        }  # fmt: skip

    def copy_to(self, directory: Path) -> None:
        """Copy the tokenizer's files into a model directory."""
        with disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                if (self.path / name).is_file() and (self.path / name).resolve() != (directory / name).resolve():
                    shutil.copyfile(self.path / name, directory / name)


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load the tokenizer of a tokenizer, model or run directory, or of a model by its catalogue name or ``hf:…``.

    Raises:
        HeptaError: no ``tokenizer.json`` there, or one that cannot be used.
    """
    path = Path(path)
    if not path.exists():
        path = model_path(str(path)) or path
    for place in (path, path / "model"):
        if (place / "tokenizer.json").is_file():
            tokenizer = Tokenizer(place)
            if tokenizer.slow_reason:
                say(f"{place}: encodes through the tokenizers library (slower), because {tokenizer.slow_reason}")
            return tokenizer
    if not path.is_dir():
        raise HeptaError(f"{path}: no such directory; give one made by hepta tokenizer train, or a model directory")
    raise HeptaError(
        f"{path}: no tokenizer.json there; give a directory made by hepta tokenizer train, or a model directory"
    )


def check_matches(tokenizer: Tokenizer, vocab_size: int, provenance: dict[str, Any] | None = None) -> None:
    """Refuse a tokenizer that does not belong to a model.

    Args:
        tokenizer: the tokenizer given.
        vocab_size: rows of the model's embedding.
        provenance: the model's ``hepta.json`` or a tokens manifest; its ``tokenizer_sha256``, at the top or under
            ``contract``, decides where there is one.

    Raises:
        HeptaError: another tokenizer, too few rows, or far more rows than its size needs.
    """
    known = provenance or {}
    wanted = known.get("tokenizer_sha256") or (known.get("contract") or {}).get("tokenizer_sha256")
    if wanted and wanted != tokenizer.sha256:
        raise HeptaError(
            f"{tokenizer.path}: is not the tokenizer this was made with "
            f"(sha256 {tokenizer.sha256[:12]}…, expected {wanted[:12]}…); use the one that belongs to it"
        )
    spare = vocab_size - tokenizer.size
    if spare < 0 or (spare > MOST_SPARE_ROWS and not wanted):
        raise HeptaError(
            f"{tokenizer.path}: has {tokenizer.size} tokens, the model {vocab_size} rows; "
            "this tokenizer does not belong to the model"
        )


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _template_source(path: Path, config: dict[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        return next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def _generation_ends(path: Path) -> list[int]:
    file = path / "generation_config.json"
    ends = read_json(file).get("eos_token_id") if file.is_file() else None
    return ends if isinstance(ends, list) else [] if ends is None else [ends]
