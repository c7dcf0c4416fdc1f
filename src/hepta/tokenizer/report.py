"""What a tokenizer does to real text: bytes per token by language, longest tokens, a sentence cut up."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer as HfTokenizer

from hepta.catalog.documents import iter_documents
from hepta.config import HeptaError
from hepta.tokenizer.config import TokenizerReportConfig
from hepta.tokenizer.load import Tokenizer, load_tokenizer

SENTENCES = {
    "en": "The cat sat on the mat because 12345 dogs didn't.",
    "zh": "今天天气很好，曹操带着三万人马去了洛阳。",
}


@dataclass(frozen=True)
class Measure:
    """A tokenizer on the text of one language.

    Attributes:
        characters_reference: bytes per character of the same text: what one token per character would give.
        other_bytes_per_token: of the reference tokenizer, where one was given.
        unique_piece_ratio: distinct pieces / pieces that the split makes, before merging.
        tokens_used: share of the vocabulary seen at least once.
    """

    documents: int
    text_bytes: int
    tokens: int
    bytes_per_token: float
    characters_reference: float
    unique_piece_ratio: float
    tokens_used: float
    other_bytes_per_token: float | None = None


@dataclass(frozen=True)
class TokenizerReport:
    """What ``hepta tokenizer report`` prints."""

    tokenizer: str
    vocab_size: int
    padded_size: int
    sha256: str
    fast: bool
    languages: dict[str, Measure]
    longest_tokens: list[str]
    segmentation: dict[str, list[str]]


def report_tokenizer(config: TokenizerReportConfig) -> TokenizerReport:
    """Measure a tokenizer on text it was not trained on (by default the val split).

    Raises:
        HeptaError: no text there.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    other = load_tokenizer(config.reference) if config.reference else None
    texts: dict[str, list[str]] = defaultdict(list)
    read = 0
    for document in iter_documents(config.text, None if config.split == "all" else config.split):
        texts[document.lang].append(document.text)
        read += len(document.text.encode("utf-8", "replace"))
        if read >= config.max_bytes:
            break
    if not read:
        raise HeptaError(f"{config.text}: no text in split {config.split!r} to measure on; try split=train")
    return TokenizerReport(
        tokenizer=str(config.tokenizer),
        vocab_size=tokenizer.size,
        padded_size=tokenizer.padded_size,
        sha256=tokenizer.sha256,
        fast=not tokenizer.slow_reason,
        languages={lang: measure(tokenizer, group, other) for lang, group in sorted(texts.items())},
        longest_tokens=longest_tokens(tokenizer, 12),
        segmentation={lang: segment(tokenizer, sentence) for lang, sentence in SENTENCES.items()},
    )


def measure(tokenizer: Tokenizer, texts: Sequence[str], other: Tokenizer | None = None) -> Measure:
    """Count bytes, tokens and pieces of texts of one language."""
    splitter = HfTokenizer.from_file(str(tokenizer.path / "tokenizer.json")).pre_tokenizer
    size = characters = tokens = other_tokens = pieces = 0
    used: set[int] = set()
    distinct: set[str] = set()
    for text in texts:
        ids = tokenizer.encode(text)
        used.update(ids)
        tokens += len(ids)
        size += len(text.encode("utf-8", "replace"))
        characters += len(text)
        other_tokens += len(other.encode(text)) if other else 0
        if splitter is not None:
            found = [piece for piece, _ in splitter.pre_tokenize_str(text)]
            pieces += len(found)
            distinct.update(found)
    return Measure(
        documents=len(texts),
        text_bytes=size,
        tokens=tokens,
        bytes_per_token=round(size / max(tokens, 1), 4),
        characters_reference=round(size / max(characters, 1), 4),
        unique_piece_ratio=round(len(distinct) / max(pieces, 1), 4),
        tokens_used=round(len(used) / tokenizer.size, 4),
        other_bytes_per_token=round(size / other_tokens, 4) if other_tokens else None,
    )


def longest_tokens(tokenizer: Tokenizer, count: int) -> list[str]:
    """The longest tokens in bytes, special ones left out."""
    ordinary = [tokenizer.token_bytes(i) for i in range(tokenizer.size) if i not in tokenizer.special_ids]
    return [token.decode("utf-8", "replace") for token in sorted(ordinary, key=lambda t: (-len(t), t))[:count]]


def segment(tokenizer: Tokenizer, text: str) -> list[str]:
    """The tokens of a sentence as text; bytes that are no whole character as ``<E4>``."""
    shown = []
    for token in tokenizer.encode(text):
        data = tokenizer.token_bytes(token)
        try:
            shown.append(data.decode("utf-8"))
        except UnicodeDecodeError:
            shown.append("".join(f"<{byte:02X}>" for byte in data))
    return shown


def show_report(report: TokenizerReport) -> str:
    """The report as text for people."""
    lines = [
        f"{report.tokenizer}: {report.vocab_size} tokens (model vocabulary {report.padded_size}), "
        f"{'tiktoken' if report.fast else 'tokenizers'} encoding, sha256 {report.sha256[:12]}…",
        "",
        f"{'language':<9}{'documents':>10}{'bytes':>13}{'bytes/token':>13}"
        f"{'one per char':>14}{'reference':>11}{'unique pieces':>15}{'vocabulary used':>17}",
    ]
    for lang, m in report.languages.items():
        other = f"{m.other_bytes_per_token:.3f}" if m.other_bytes_per_token else "-"
        lines.append(
            f"{lang:<9}{m.documents:>10,}{m.text_bytes:>13,}{m.bytes_per_token:>13.3f}{m.characters_reference:>14.3f}{other:>11}"
            f"{m.unique_piece_ratio:>15.1%}{m.tokens_used:>17.1%}"
        )
    lines += ["", "longest tokens: " + " ".join(repr(token) for token in report.longest_tokens)]
    lines += [f"{lang}: {'|'.join(pieces)}" for lang, pieces in report.segmentation.items()]
    return "\n".join(lines)
