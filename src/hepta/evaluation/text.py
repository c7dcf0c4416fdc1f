"""``hepta eval --text``: how well a model predicts text, every definition from one pass, xz beside it."""

import lzma
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from hepta.catalog.documents import Document, iter_documents
from hepta.config import HeptaError, read_yaml
from hepta.console import progress, say
from hepta.evaluation.config import EvalConfig
from hepta.evaluation.masked import only_masked, score_masked
from hepta.evaluation.perplexity import Scores, Totals, score_documents, scores
from hepta.stage import claim, digest_json, read_json, write_json

VERSION = 1
LONGEST_DEFAULT = 2048
MASKED_NOTE = "tokens, nats and top-1 are of masked words, 15 % of the text, seen from both sides: no bits per byte"


@dataclass
class EvalResult:
    """Scores over all, per language, and per language and source. Nats, bits and perplexities as named."""

    model: str
    text: str
    split: str | None
    parameters: int
    vocabulary: int
    sequence_length: int
    precision: str
    uniform_loss: float  # ln V: what guessing every token alike would cost, in nats per token
    total: Scores
    by_language: dict[str, Scores]
    by_source: dict[str, Scores]
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    output: str | None = None


class XzMeter:
    """The size of a text under ``xz -9``, one bounded piece at a time."""

    def __init__(self) -> None:
        self._compressor = lzma.LZMACompressor(preset=9)
        self.bytes = self._compressed = 0

    def add(self, text: str) -> None:
        """Append a document; a line feed stands between documents and is not counted as text."""
        data = text.encode("utf-8", "surrogatepass")
        self.bytes += len(data)
        self._compressed += len(self._compressor.compress(data + b"\n"))

    def finish(self) -> int:
        """End the stream; its size in bits."""
        self._compressed += len(self._compressor.flush())
        return 8 * self._compressed


def _metered(documents: Iterable[Document], meters: dict[str, XzMeter], bar: Any) -> Iterator[Document]:
    for document in documents:
        meters[document.lang].add(document.text)
        bar.advance(1)
        yield document


def _tokenizer_directory(model: Path, given: Path | None) -> Path:
    """Where the tokenizer of a (resolved) model directory lies: given, beside it, or with an adapter's base."""
    if given is not None:
        return given
    if not (model / "tokenizer.json").is_file() and (model / "adapter_config.json").is_file():
        from hepta.model.load import resolve_model

        return resolve_model(str(read_json(model / "adapter_config.json").get("base_model_name_or_path")))
    return model


def load_pair(model: str, tokenizer: Path | None, precision: str, device: str) -> tuple[Any, Any, int]:
    """A model, the tokenizer that belongs to it, and the sequence length it was trained on.

    Raises:
        HeptaError: an unreadable model directory; a tokenizer that does not belong to the model.
    """
    import torch

    from hepta.model.load import load_model, read_hepta_json, refuse_translator, resolve_model
    from hepta.tokenizer.load import check_matches, load_tokenizer

    directory = resolve_model(model)
    refuse_translator(directory)
    place = _tokenizer_directory(directory, tokenizer)
    words = load_tokenizer(place)
    decoder = load_model(directory, torch.bfloat16 if precision == "bf16" else torch.float32, device)
    known = read_hepta_json(directory)
    check_matches(words, decoder.config.vocab_size, known.get("template"))
    if decoder.config.kind == "translation":
        raise HeptaError(f"{model}: is a translator; hepta tune scored it on held-out pairs, hepta predict translates")
    if decoder.config.kind == "masked" and words.mask_id is None:
        raise HeptaError(f"{place}: names no mask_token, so the model cannot be asked about masked words")
    length = trained_length(directory, known) or min(decoder.config.max_positions, LONGEST_DEFAULT)
    return decoder, words, length


def trained_length(directory: Path, known: dict[str, Any]) -> int | None:
    """Tokens per sequence in training: what ``hepta.json`` says, else the recipe of the run around the model.

    A model is no good at positions that it never met, so ``max_positions`` alone would score it unfairly.
    """
    length = (known.get("provenance") or {}).get("sequence_length")
    recipe = directory.parent / "recipe.yaml"
    if length is None and recipe.is_file():
        length = read_yaml(recipe).get("sequence_length")
    return length if isinstance(length, int) else None


def _count(config: EvalConfig) -> int:
    """Documents to score, so that the progress line has an end; also finds a broken row before any work."""
    count = sum(1 for _ in islice(iter_documents(config.text, config.split), config.max_documents))
    if not count:
        where = f" in split {config.split!r}" if config.split else ""
        raise HeptaError(f"{config.text}: no documents{where}; nothing to score")
    return count


def measure(config: EvalConfig) -> EvalResult:
    """Score a model on text; writes nothing."""
    started = time.monotonic()
    decoder, tokenizer, trained = load_pair(config.model, config.tokenizer, config.precision, config.device)
    length, masked = config.sequence_length or trained, decoder.config.kind == "masked"
    if decoder.config.longest is not None and length > decoder.config.longest:
        raise HeptaError(f"sequence_length {length}: {config.model} reads at most {decoder.config.longest} tokens")
    count = _count(config)
    meters: dict[str, XzMeter] = defaultdict(XzMeter)
    with progress("eval", count, "documents") as bar:
        documents = islice(iter_documents(config.text, config.split), config.max_documents)
        score = score_masked if masked else score_documents
        found = score(decoder, tokenizer, _metered(documents, meters, bar), length, config.batch_tokens)
    languages: dict[str, Totals] = defaultdict(Totals)
    whole = Totals()
    for (lang, _), totals in sorted(found.items()):
        languages[lang].add(totals)
        whole.add(totals)
    bits = {lang: meter.finish() for lang, meter in meters.items()}
    shape = decoder.config

    def named(totals: Totals, xz_bits: float | None = None) -> Scores:
        found = scores(totals, xz_bits / totals.bytes if xz_bits and totals.bytes else None)
        return only_masked(found) if masked else found

    return EvalResult(
        model=config.model, text=str(config.text), split=config.split, parameters=shape.num_parameters,
        vocabulary=shape.vocab_size, sequence_length=length if masked else length - length % 2,
        precision=config.precision, uniform_loss=math.log(shape.vocab_size),
        total=named(whole, sum(bits.values())), by_language={k: named(v, bits[k]) for k, v in languages.items()},
        by_source={f"{lang}/{source}": named(totals) for (lang, source), totals in sorted(found.items())},
        notes=[MASKED_NOTE, *_notes(whole, 0)] if masked else _notes(whole, length),
        seconds=round(time.monotonic() - started, 2),
    )  # fmt: skip


def _notes(whole: Totals, length: int) -> list[str]:
    notes = []
    if whole.empty:
        notes.append(f"{whole.empty} documents without text were not scored")
    if length % 2:
        notes.append(f"windows of {length - 1} tokens: an odd sequence length is rounded down")
    return notes


def evaluate_text(config: EvalConfig) -> EvalResult:
    """Score a model on text: the library function behind ``hepta eval``.

    Writes ``eval.json`` and a stage manifest when ``output`` is given, and nothing otherwise.

    Raises:
        HeptaError: no such model or text, a tokenizer that does not belong, nothing to score.
    """
    if config.output is None:
        return measure(config)
    stage = claim(config, "eval", VERSION)
    if stage.state == "done" and stage.manifest is not None:
        say(f"{config.output}: already done")
        return read_result(stage.manifest["facts"])
    result = measure(config)
    result.output = str(config.output)
    facts = asdict(result)
    write_json(config.output / "eval.json", facts)
    stage.finish(digest_json({**facts, "seconds": 0, "output": ""}), facts)
    return result


def read_result(facts: dict[str, Any]) -> EvalResult:
    """An ``EvalResult`` from a manifest's facts."""
    groups = {key: {k: Scores(**v) for k, v in facts[key].items()} for key in ("by_language", "by_source")}
    return EvalResult(**{**facts, "total": Scores(**facts["total"]), **groups})


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


COLUMNS: list[tuple[str, str, str]] = [
    ("documents", "documents", ","), ("tokens", "tokens", ","), ("bits/byte", "bits_per_byte", ".4f"),
    ("sliding", "bits_per_byte_sliding", ".4f"), ("xz -9", "xz_bits_per_byte", ".4f"),
    ("nats/token", "nats_per_token", ".4f"), ("ppl/token", "perplexity_per_token", ".4g"),
    ("ppl/word", "perplexity_per_word", ".4g"), ("ppl/document", "perplexity_per_document", ".4g"),
    ("top-1", "accuracy", ".1%"),
]  # fmt: skip


def show_scores(result: EvalResult) -> str:
    """The result as a table for people."""
    where = f", split {result.split}" if result.split else ""
    rows = [["", *(title for title, _, _ in COLUMNS)]]
    for name, found in {**result.by_language, **result.by_source, "all": result.total}.items():
        rows.append([name, *(_cell(getattr(found, key), form) for _, key, form in COLUMNS)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        f"{result.model} on {result.text}{where}",
        f"{result.parameters:,} parameters, windows of {result.sequence_length} tokens, {result.precision};"
        f" uniform loss ln {result.vocabulary} = {result.uniform_loss:.4f} nats/token",
        "",
    ]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    lines += ["", "ppl/word: a word is what white space separates; in Chinese and Japanese, a character", *result.notes]
    return "\n".join(lines)
