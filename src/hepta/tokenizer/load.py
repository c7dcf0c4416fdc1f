"""Load a tokenizer directory (ours or any Hugging Face one) and turn text and conversations into ids."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as HfTokenizer

from hepta.catalog.models import model_path
from hepta.config import HeptaError
from hepta.console import say
from hepta.stage import digest_json, read_json
from hepta.tokenizer.contract import copy_tokenizer, read_specials, vocabulary
from hepta.tokenizer.encoding import SlowEncoder, is_structural, make_encoder
from hepta.tokenizer.pattern import byte_alphabet
from hepta.tokenizer.template import ChatTemplate, HistoryChanged, Message

MOST_SPARE_ROWS = 1024  # models round their vocabulary up; the largest padding seen in the wild is some 400 rows


class Tokenizer:
    """Byte-level BPE (or what ``tokenizers`` can run) with its special tokens and chat template.

    Attributes:
        path: the directory it was loaded from.
        size: real ids; ``padded_size`` is the next multiple of 64, which is a model's vocabulary.
        bos_id, eos_id, pad_id: document ends and padding; where a foreign tokenizer has no BOS, bos is eos.
        mask_id: of the token that stands for a hidden one; None where there is none.
        stop_ids: ids that end an answer, the end of a turn first.
        special_ids: ids that no plain text gives.
        sha256: of ``tokenizer.json``.
        slow_reason: why text is encoded by the slower library; "" when it is not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._specials = read_specials(path)
        spec = read_json(path / "tokenizer.json")
        added = spec.get("added_tokens", [])
        self._structural = {token["content"]: token["id"] for token in added if is_structural(token)}
        self._tokens = {i: token for token, i in vocabulary(spec).items()} | {t["id"]: t["content"] for t in added}
        self._added_ids = {token["id"] for token in added}
        self.sha256, self.size = self._specials.sha256, self._specials.size
        self.bos_id, self.eos_id, self.pad_id = self._specials.bos_id, self._specials.eos_id, self._specials.pad_id
        self.mask_id, self.stop_ids = self._specials.mask_id, self._specials.stop_ids
        self.special_ids = {token["id"] for token in added if token.get("special")}
        self.special_ids |= {self.bos_id, self.eos_id, self.pad_id}
        self.padded_size = -(-self.size // 64) * 64
        self.template_source = self._specials.template
        self._byte_level = "ByteLevel" in str(spec.get("decoder")) or "ByteLevel" in str(spec.get("pre_tokenizer"))
        self._word_pieces = spec["model"].get("type") == "WordPiece"
        self._encoder, self.slow_reason = make_encoder(spec)

    @cached_property
    def encoding_sha256(self) -> str:
        """Of what decides the ids of plain text: equal for tokenizers that differ in specials only."""
        spec = read_json(self.path / "tokenizer.json")
        return digest_json({key: spec.get(key) for key in ("normalizer", "pre_tokenizer", "model")})

    @cached_property
    def _template(self) -> ChatTemplate:
        if not self.template_source:
            raise HeptaError(
                f"{self.path}: has no chat template, so it cannot render conversations; use a chat model's tokenizer"
            )
        return ChatTemplate(self.template_source, self._structural, self.stop_ids, self._specials.names, str(self.path))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; text that spells a special token stays text, and nothing is put before or after it."""
        return self.encode_array(text).tolist()

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """``encode``, and for each id the characters [start, end) of ``text`` that it touches.

        Neighbours share a character whose bytes lie in several tokens. Lone surrogates become U+FFFD.
        """
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._slow_encoder.encode_spans(clean)

    @cached_property
    def _slow_encoder(self) -> SlowEncoder:
        return SlowEncoder(read_json(self.path / "tokenizer.json"))

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
            elif i not in self._added_ids and self._word_pieces:  # BERT's: a piece inside a word begins with ##
                table.append(name[2:].encode() if name.startswith("##") else f" {name}".encode())
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
        return self._specials.contract()

    def copy_to(self, directory: Path) -> None:
        """Copy the tokenizer's files into a model directory."""
        copy_tokenizer(self.path, directory)


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

