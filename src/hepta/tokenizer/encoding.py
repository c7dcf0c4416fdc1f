"""Plain text to ids, never to special ones: through ``tiktoken`` where it is provably the same, else ``tokenizers``.

``tiktoken`` is several times faster. It is built from the same merges and must give the same ids on a
sample of many scripts and of the vocabulary itself before it is used.
"""

import copy
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import tiktoken
from tokenizers import Tokenizer as HfTokenizer

from hepta.tokenizer.pattern import byte_alphabet, byte_level_pattern

LONG_BLANK = 20_000  # whitespace characters in a row; fancy-regex overflows its stack somewhere above 100,000
_STRIDE = 1000  # a long blank covers this many samples in a row, which is far faster to look for
_SAMPLED_BLANK = re.compile(rf"\s{{{LONG_BLANK // _STRIDE}}}")
_NO_TOKEN = 2**32 - 1  # in place of the id of a byte that a vocabulary lacks (SmolLM2's lacks 21, all rare)
_BREAK = "<|hepta-document-break|>"  # between documents encoded in one call; its rank never leaves this file

SAMPLE = (
    "The cat sat on the mat; it's 12,345.67, isn't it?  Two  spaces\tand a tab.\r\n\r\n  f(x) {\n\treturn 1;\n}\n",
    "今天天气怎么样？我们去公园散步吧。二〇二四年，GDP增长5.2%，共1234567人。「引用」——……\u3000全角ＡＢＣ１２３",
    "繁體中文與日本語のかな混じり文、カタカナ。한국어 문장도 있다.",
    "Привет, мир! Γειά σου κόσμε. שלום עולם مرحبا بالعالم",
    "हिन्दी में एक वाक्य। ภาษาไทยไม่มีช่องว่าง 🙂👩‍👩‍👧‍👦🇨🇳 e\u0301 ñ ﬁ Å \u00a0NBSP\u200bzero \ue000 \U0010fffd",
    "<|endoftext|><|im_start|>user\nhi<|im_end|>\n<s></s>[INST] </think> '''DON'T'' \n \n\n \r\n x   ",
)


class Encoder(Protocol):
    """Turns plain text into ids; a text that spells a special token stays text."""

    def encode(self, text: str) -> np.ndarray:
        """Ids (n,) uint32 of ``text``."""
        ...

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """``encode`` of each text, in few calls."""
        ...


class SlowEncoder:
    """The ``tokenizers`` library with every structural token taken out, so that none can be spelt."""

    def __init__(self, spec: dict[str, Any]) -> None:
        plain = copy.copy(spec)
        plain["added_tokens"] = [t for t in spec.get("added_tokens", []) if not is_structural(t)]
        plain["post_processor"] = plain["truncation"] = plain["padding"] = None
        self._tokenizer = HfTokenizer.from_str(json.dumps(plain))

    def encode(self, text: str) -> np.ndarray:
        """Ids (n,) uint32 of ``text``."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of ``text``, and the characters [start, end) of it that each touches."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """``encode`` of each text, on all cores."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]


class FastEncoder:
    """``tiktoken`` over the same merges; ranks are the merge order, ids the file's."""

    def __init__(self, spec: dict[str, Any], slow: SlowEncoder) -> None:
        pattern = byte_level_pattern(spec)
        if pattern is None:
            raise ValueError("its splitting cannot be said in one pattern")
        self._nfc = (spec.get("normalizer") or {}).get("type") == "NFC"
        ranks, self._ids = _ranks(spec)
        self._lacks_bytes = self._ids is not None and bool((self._ids == _NO_TOKEN).any())
        self._encoding = tiktoken.Encoding(
            "hepta", pat_str=pattern, mergeable_ranks=ranks, special_tokens={_BREAK: len(ranks)}
        )
        self._slow, self._break_rank = slow, len(ranks)

    def encode(self, text: str) -> np.ndarray:
        """Ids (n,) uint32 of ``text``; releases the GIL while it works."""
        if _has_long_blank(text):
            return self._slow.encode(text)
        if self._nfc and not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
        try:
            ranks = self._encoding.encode_to_numpy(text, disallowed_special=())
        except BaseException as error:  # a Rust panic derives from BaseException, not from Exception
            if type(error).__name__ != "PanicException":
                raise
            return self._slow.encode(text)
        return self._ids_of(ranks, text)

    def _ids_of(self, ranks: np.ndarray, text: str) -> np.ndarray:
        if self._ids is None:
            return ranks
        ids = self._ids[ranks]
        return self._slow.encode(text) if self._lacks_bytes and (ids == _NO_TOKEN).any() else ids

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """``encode`` of each text, in one call that holds no lock, so that threads do not wait for each other.

        tiktoken encodes what lies between special tokens separately. So documents joined by a special of our own
        give the ids of each alone; a text that spells it is encoded by itself, and there it is plain text.
        """
        joined = _BREAK.join(texts)
        if joined.count(_BREAK) != len(texts) - 1 or self._nfc or _has_long_blank(joined):
            return [self.encode(text) for text in texts]
        ranks = self._encoding.encode_to_numpy(joined, allowed_special={_BREAK}, disallowed_special=())
        breaks = np.flatnonzero(ranks == self._break_rank)
        starts, ends = [0, *(breaks + 1).tolist()], [*breaks.tolist(), len(ranks)]
        parts = [ranks[start:end] for start, end in zip(starts, ends, strict=True)]
        return [self._ids_of(part, text) for part, text in zip(parts, texts, strict=True)]


def _has_long_blank(text: str) -> bool:
    """Whether more than ``LONG_BLANK`` blanks may stand in a row; seldom true without need, never false then."""
    return len(text) >= LONG_BLANK and bool(_SAMPLED_BLANK.search(text[::_STRIDE]))


def _ranks(spec: dict[str, Any]) -> tuple[dict[bytes, int], np.ndarray | None]:
    """Bytes → rank in merge order, and rank → id (None where they are the same; ``_NO_TOKEN`` for bytes it lacks)."""
    model = spec["model"]
    vocab: dict[str, int] = model["vocab"]
    to_byte = {character: byte for byte, character in byte_alphabet().items()}
    added = {token["content"] for token in spec.get("added_tokens", [])}
    singles = sorted((c for c in to_byte if c in vocab), key=lambda c: vocab[c])
    order = dict.fromkeys(singles)
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        order.setdefault(left + right)
    if model.get("ignore_merges"):  # whole pieces are looked up first, merges or not
        order.update(
            dict.fromkeys(sorted((t for t in vocab if t not in order and t not in added), key=lambda t: vocab[t]))
        )
    order.update(dict.fromkeys(c for c in to_byte if c not in vocab))  # tiktoken needs all 256
    ids = np.array([vocab.get(token, _NO_TOKEN) for token in order], dtype=np.uint32)
    ranks = {bytes(to_byte[c] for c in token): rank for rank, token in enumerate(order)}
    if len(ranks) != len(order):
        raise ValueError("two of its tokens spell the same bytes")
    return ranks, None if np.array_equal(ids, np.arange(len(ids))) else ids


def is_structural(added: dict[str, Any]) -> bool:
    """Whether an added token is structure (``<|im_end|>``, ``<think>``), which text must never produce."""
    content = added["content"]
    bracketed = len(content) > 2 and (content[0] + content[-1] in ("<>", "[]"))
    return bool(added.get("special")) or bracketed


def make_encoder(spec: dict[str, Any]) -> tuple[Encoder, str]:
    """The faster of the two encoders that is right for a ``tokenizer.json``.

    Returns:
        the encoder, and why it is the slow one ("" for the fast one).
    """
    slow = SlowEncoder(spec)
    reason = _unfit(spec)
    if reason:
        return slow, reason
    try:
        fast = FastEncoder(spec, slow)
    except (ValueError, KeyError) as error:
        return slow, str(error)
    different = first_difference(fast, slow, [*SAMPLE, *_vocabulary_sample(spec)])
    if different is not None:
        return slow, f"tiktoken cuts {different[:40]!r} in another way"
    return fast, ""


def first_difference(fast: Encoder, slow: Encoder, texts: Iterable[str]) -> str | None:
    """The first text that two encoders disagree on, or None."""
    for text in texts:
        if not np.array_equal(fast.encode(text), slow.encode(text)):
            return text
    return None


def _unfit(spec: dict[str, Any]) -> str:
    """Why a file is not a byte-level BPE that tiktoken could run, or ""."""
    model = spec.get("model", {})
    if model.get("type") != "BPE":
        return f"its model is {model.get('type')}, not byte-level BPE"
    normalizer = (spec.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):
        return f"its normaliser is {normalizer}"
    extras = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if any(model.get(key) for key in extras):
        return "its BPE has options tiktoken does not know"
    if any(not is_structural(token) for token in spec.get("added_tokens", [])):
        return "it has added tokens that plain text may spell"
    return ""


def _vocabulary_sample(spec: dict[str, Any], lines: int = 16) -> list[str]:
    """Text made of the vocabulary's own tokens, where a wrong merge order would show."""
    to_byte = {character: byte for byte, character in byte_alphabet().items()}
    tokens = list(spec["model"]["vocab"])
    step = max(1, len(tokens) // (lines * 64))
    texts = []
    for start in range(lines):
        picked = tokens[start * step :: step * lines]
        data = b"".join(bytes(to_byte[c] for c in token) for token in picked if all(c in to_byte for c in token))
        texts.append(data.decode("utf-8", "replace"))
    return texts
