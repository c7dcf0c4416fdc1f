"""Train a byte-level BPE tokenizer and write it as a Hugging Face directory."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HfTokenizer

from hepta.catalog.documents import Document, iter_documents
from hepta.config import HeptaError
from hepta.console import say
from hepta.stage import claim, sha256_file, write_atomic, write_json
from hepta.tokenizer.config import TokenizerConfig
from hepta.tokenizer.encoding import SlowEncoder, first_difference, make_encoder
from hepta.tokenizer.load import load_tokenizer
from hepta.tokenizer.pattern import split_pattern
from hepta.tokenizer.report import Measure, longest_tokens, measure
from hepta.tokenizer.template import CHATML

VERSION = 1
END, PAD, TURN_START, TURN_END = SPECIALS = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
COUNTER_LIMIT = 2**31 - 1  # the trainer counts pairs in signed 32 bits; beyond that counts wrap and merges go wrong
CHECK_BYTES = 1_000_000  # training text per language on which both encoders must agree before the tokenizer is written


@dataclass(frozen=True)
class TokenizerResult:
    """What a training left.

    Attributes:
        vocab_size: tokens in all; ``padded_size`` is the model's vocabulary.
        bytes_per_token: on training text, by language.
        unique_piece_ratio: distinct pieces / pieces, by language; near 1 means that the split makes slogans.
        longest_tokens: the longest ones, as text.
        documents, text_bytes: what was read.
    """

    output: str
    vocab_size: int
    padded_size: int
    sha256: str
    bytes_per_token: dict[str, float]
    unique_piece_ratio: dict[str, float]
    longest_tokens: list[str]
    documents: int
    text_bytes: int


def train_tokenizer(config: TokenizerConfig) -> TokenizerResult:
    """Train on the train split of ``config.input`` and write ``tokenizer.json`` and ``tokenizer_config.json``.

    Raises:
        HeptaError: no text, more text than the trainer can count, too little text for the vocabulary.
    """
    stage = claim(config, "tokenizer", VERSION)
    if stage.manifest is not None and stage.state == "done":
        say(f"{config.output}: tokenizer already done")
        return TokenizerResult(**{**stage.manifest["facts"], "output": str(config.output)})
    reader = _Counted(_documents(config.input, config.sample_bytes), str(config.input))
    say(f"tokenizer: training {config.vocab_size} tokens on {config.input}")
    tokenizer = train_bpe(reader.texts(), config.vocab_size, config.han_run, config.min_frequency, config.workers)
    if tokenizer.get_vocab_size() < config.vocab_size:
        found = tokenizer.get_vocab_size()
        say(f"warning: the text gave {found} tokens only, not {config.vocab_size}; it holds no more repeated pairs")
    text = tokenizer.to_str(pretty=True)
    _prove(json.loads(text), reader.kept)
    write_atomic(config.output / "tokenizer.json", text)
    write_json(config.output / "tokenizer_config.json", tokenizer_config())
    result = _result(config.output, reader)
    stage.finish(result.sha256, asdict(result))
    return result


def train_bpe(
    texts: Iterable[str], vocab_size: int, han_run: int, min_frequency: int = 2, workers: int | None = None
) -> HfTokenizer:
    """Train byte-level BPE with the Han-aware split; specials get the last ids.

    Args:
        texts: training text; each piece of it may be any length.
        vocab_size: bytes, merges and specials together.
        han_run: Han characters in a piece at most.
        min_frequency: pairs rarer than this are not merged.
        workers: threads; None for all cores.
    """
    tokenizer = HfTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([  # type: ignore[assignment]
        pre_tokenizers.Split(Regex(split_pattern(han_run)), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIALS), min_frequency=min_frequency, show_progress=False,
        special_tokens=[], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    before = os.environ.get("RAYON_NUM_THREADS")
    if workers and before is None:
        os.environ["RAYON_NUM_THREADS"] = str(workers)  # read once, when the trainer first starts threads
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return tokenizer


def tokenizer_config() -> dict[str, Any]:
    """``tokenizer_config.json``: what transformers reads beside ``tokenizer.json``."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END, "eos_token": END, "pad_token": PAD, "additional_special_tokens": [TURN_START, TURN_END],
        "add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000, "chat_template": CHATML,
    }  # fmt: skip


class _Counted:
    """Passes texts on to the trainer while it counts them, and keeps the first few for the checks after."""

    def __init__(self, documents: Iterable[Document], where: str) -> None:
        self._documents, self._where = documents, where
        self.documents = self.bytes = 0
        self.kept: list[str] = []
        self._measured: dict[str, list[str]] = defaultdict(list)
        self._kept_bytes: Counter[str] = Counter()

    def texts(self) -> Iterator[str]:
        """The texts; stops with an error where counting further would overflow (trap K8)."""
        for document in self._documents:
            size = len(document.text.encode("utf-8", "replace"))
            self.documents += 1
            self.bytes += size
            if self.bytes > COUNTER_LIMIT:
                raise HeptaError(
                    f"{self._where}: holds more than {COUNTER_LIMIT:,} bytes, beyond which the trainer's "
                    f"32-bit pair counts may wrap; give sample_bytes={COUNTER_LIMIT // 2}"
                )
            if self._kept_bytes[document.lang] < CHECK_BYTES:
                self._kept_bytes[document.lang] += size
                self.kept.append(document.text)
                self._measured[document.lang].append(document.text)
            yield document.text
        if not self.bytes:
            raise HeptaError(f"{self._where}: no text in its train split to learn a tokenizer from")

    def by_language(self) -> dict[str, list[str]]:
        """About ``CHECK_BYTES`` of text for each language."""
        return dict(self._measured)


def _documents(path: Path, sample_bytes: int | None) -> Iterator[Document]:
    """The train split, or about ``sample_bytes`` of it: the documents whose hashed id is lowest."""
    if sample_bytes is None:
        yield from iter_documents(path, "train")
        return
    sizes = sorted((_rank(d), len(d.text.encode("utf-8", "replace"))) for d in iter_documents(path, "train"))
    total, highest = 0, ""
    for rank, size in sizes:
        total, highest = total + size, rank
        if total >= sample_bytes:
            break
    yield from (document for document in iter_documents(path, "train") if _rank(document) <= highest)


def _rank(document: Document) -> str:
    return xxhash.xxh3_64_hexdigest(b"sample:" + document.doc_id.encode())


def _prove(spec: dict[str, Any], texts: list[str]) -> None:
    """Both encoders must give the same ids on training text and on each token itself, and text must come back.

    Raises:
        HeptaError: they do not; the tokenizer would be unsafe, so it is not written.
    """
    encoder, reason = make_encoder(spec)
    if reason:
        raise HeptaError(f"the new tokenizer cannot be encoded with tiktoken: {reason}; another vocab_size may help")
    slow = SlowEncoder(spec)
    decoder = decoders.ByteLevel()
    names = {i: token for token, i in spec["model"]["vocab"].items()}
    tokens = [decoder.decode([name]) for name in names.values()]
    different = first_difference(encoder, slow, (*texts, *tokens))
    if different is not None:
        raise HeptaError(f"tiktoken and tokenizers disagree on {different[:60]!r}; another vocab_size may help")
    for text in texts:
        if decoder.decode([names[int(i)] for i in encoder.encode(text)]) != text:
            raise HeptaError(f"round trip failed on {text[:60]!r}: the new tokenizer is not used")


def _result(output: Path, reader: _Counted) -> TokenizerResult:
    tokenizer = load_tokenizer(output)
    measures: dict[str, Measure] = {
        lang: measure(tokenizer, texts) for lang, texts in sorted(reader.by_language().items())
    }
    return TokenizerResult(
        output=str(output), vocab_size=tokenizer.size, padded_size=tokenizer.padded_size,
        sha256=sha256_file(output / "tokenizer.json"),
        bytes_per_token={lang: m.bytes_per_token for lang, m in measures.items()},
        unique_piece_ratio={lang: m.unique_piece_ratio for lang, m in measures.items()},
        longest_tokens=longest_tokens(tokenizer, 12), documents=reader.documents, text_bytes=reader.bytes,
    )  # fmt: skip
