"""``hepta compare ORIGINAL SMALL…``: what each model costs beside the original, and what it saves."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hepta.catalog.documents import Document, iter_documents
from hepta.config import HeptaError
from hepta.console import progress, say
from hepta.evaluation.agreement import Agreement, agreement, bits_interval, summed
from hepta.evaluation.choices import answer_questions, load_questions
from hepta.evaluation.classification import mcnemar, wilson
from hepta.evaluation.config import CompareConfig
from hepta.evaluation.footprint import Footprint, footprints
from hepta.stage import read_json

PREDICTIONS = "predictions.jsonl"  # a tuned run's test rows


@dataclass(frozen=True)
class TaskScore:
    """Right answers on rows with known ones; ``p_value`` is of the difference from the original (McNemar)."""

    rows: int
    accuracy: float
    interval: tuple[float, float]  # Wilson, 95 %
    same: float  # share answered like the original
    p_value: float | None
    by_byte: float | None = None  # multiple choice: accuracy where choices count by log-probability per byte


@dataclass(frozen=True)
class Compared:
    """One model. What needs text is None without, what needs the original is None for the original itself.

    Attributes:
        bytes: of its weight files.
        bits_per_byte: of the text; ``delta_bits`` the difference from the original and its 95 % interval (paired
            bootstrap over documents; None of one document).
        divergence: mean KL(original ‖ this) of the next token, nats; ``worst_divergence`` the largest of a token.
        same_choice: share of tokens where the most probable next token is the original's.
        accuracy: share of tokens where it is the one that followed.
        best_trade: no other model has both fewer bytes and fewer bits per byte (or more right answers).
    """

    name: str
    bytes: int
    parameters: int
    footprint: Footprint | None = None
    bits_per_byte: float | None = None
    delta_bits: float | None = None
    delta_interval: tuple[float, float] | None = None
    divergence: float | None = None
    worst_divergence: float | None = None
    same_choice: float | None = None
    accuracy: float | None = None
    task: TaskScore | None = None
    best_trade: bool = False


@dataclass
class CompareResult:
    """All models, the original first."""

    models: list[Compared]
    kind: str  # causal or classifier
    text: str | None
    documents: int
    tokens: int
    data: str | None
    precision: str  # when quality was judged
    speed_precision: str
    threads: int
    notes: list[str] = field(default_factory=list)
    output: str | None = None


def compare(config: CompareConfig) -> CompareResult:
    """Measure models beside the first of them; writes nothing.

    Raises:
        HeptaError: models of different kinds or vocabularies, nothing to read or to answer.
        MachineError: a process that measured speed ended.
    """
    import torch

    from hepta.model.classifier import is_classifier
    from hepta.model.load import resolve_model

    places = [resolve_model(name) for name in config.models]
    kinds = {is_classifier(place) for place in places}
    if len(kinds) > 1:
        raise HeptaError(f"{' and '.join(config.models)}: a classifier and a language model have nothing to compare")
    measured = _classifiers(config, places) if kinds.pop() else _language_models(config, places)
    took: list[Footprint | None] = [None] * len(places)
    if config.speed:
        took = list(footprints(places, config.speed_precision, config.rounds, config.threads))
    found = [
        {"name": name, "bytes": weight_bytes(place), **row, "footprint": print_}
        for name, place, row, print_ in zip(config.models, places, measured.rows, took, strict=True)
    ]
    best = _best_trades(found)
    return CompareResult(
        models=[Compared(**row, best_trade=good) for row, good in zip(found, best, strict=True)],
        kind=measured.kind, text=str(config.text) if config.text else None, documents=measured.documents,
        tokens=measured.tokens, data=measured.data, precision=config.precision,
        speed_precision=config.speed_precision, threads=config.threads or torch.get_num_threads(), notes=measured.notes,
    )  # fmt: skip


def weight_bytes(directory: Path) -> int:
    """Bytes of a (resolved) directory's weight files; an adapter's base is counted with it."""
    from hepta.model.adapters import ADAPTER_WEIGHTS, find_base
    from hepta.model.load import ADAPTER, weight_files

    if (directory / ADAPTER).is_file():
        base = find_base(directory, read_json(directory / ADAPTER))
        return weight_bytes(base) + (directory / ADAPTER_WEIGHTS).stat().st_size
    return sum(file.stat().st_size for file in weight_files(directory))


def _best_trades(rows: Sequence[dict[str, Any]]) -> list[bool]:
    """Which models no other one beats in both size and quality (Pareto)."""

    def loss(row: dict[str, Any]) -> float:
        if row.get("bits_per_byte") is not None:
            return row["bits_per_byte"]
        return -row["task"].accuracy if row.get("task") else 0.0

    points = [(row["bytes"], loss(row)) for row in rows]
    return [not any(a[0] <= b[0] and a[1] <= b[1] and a != b for a in points) for b in points]


@dataclass
class _Measured:
    kind: str
    rows: list[dict[str, Any]]
    documents: int = 0
    tokens: int = 0
    data: str | None = None
    notes: list[str] = field(default_factory=list)


def _language_models(config: CompareConfig, places: Sequence[Path]) -> _Measured:
    from hepta.evaluation.text import load_pair

    if config.text is None and config.data is None:
        raise HeptaError("compare: no text; give --text CORPUS_OR_FILE, or --data FILE of questions with choices")
    original, tokenizer, trained = load_pair(config.models[0], None, config.precision, "cpu")
    if original.config.kind != "causal":
        raise HeptaError(f"{places[0]}: a {original.config.kind} model; compare reads causal models and classifiers")
    documents = _documents(config)
    questions = load_questions(config.data, config.max_rows) if config.data else []
    rows: list[dict[str, Any]] = [{"parameters": original.config.num_parameters}]
    first: np.ndarray | None = None
    if questions:
        rows[0]["task"], first = _ask(original.eval(), tokenizer, questions, None)
    changed = list(zip(places, config.models, strict=True))[1:]
    others = [_other(place, name, config, tokenizer, places[0]) for place, name in changed]
    for model in others:
        rows.append({"parameters": model.config.num_parameters})
        if questions:
            rows[-1]["task"], _ = _ask(model, tokenizer, questions, first)
    tokens, notes = 0, []
    if documents:
        read = agreement(original.eval(), others, tokenizer, documents, config.sequence_length or trained)
        tokens = _agree(read, rows, len(documents))
        notes += ["one document is no sample: no intervals"] if len(documents) == 1 else []
    data = str(config.data) if config.data else None
    return _Measured("causal", rows, len(documents), tokens, data, notes)


def _other(place: Path, name: str, config: CompareConfig, tokenizer: Any, original: Path) -> Any:
    """One of the models that are compared with the original."""
    from hepta.evaluation.text import load_pair

    model, words, _ = load_pair(name, None, config.precision, "cpu")
    if model.config.kind != "causal":
        raise HeptaError(f"{place}: a {model.config.kind} model; compare reads causal models and classifiers")
    if _vocabulary(words) != _vocabulary(tokenizer):
        raise HeptaError(f"{place}: has another tokenizer than {original}; score each with hepta eval instead")
    return model.eval()


def _agree(read: Iterable[list[Agreement]], rows: list[dict[str, Any]], documents: int) -> int:
    """Put what the models say of a text into their rows, the original's first; gives the tokens read."""
    found: list[list[Agreement]] = []
    with progress("compare", documents, "documents") as bar:
        for parts in read:
            found.append(parts)
            bar.advance(1)
    whole = Agreement()
    for row, parts in zip(rows[1:], zip(*found, strict=True), strict=True):
        whole = summed(parts)
        row |= _agreed(list(parts), whole)
    rows[0]["bits_per_byte"] = whole.nats_original / math.log(2) / whole.bytes
    rows[0]["accuracy"] = whole.right_original / whole.tokens
    return whole.tokens


def _vocabulary(tokenizer: Any) -> list[bytes]:
    return [tokenizer.token_bytes(i) for i in range(tokenizer.size)]


def _documents(config: CompareConfig) -> list[Document]:
    if config.text is None:
        return []
    found = [d for d in islice(iter_documents(config.text, config.split), config.max_documents) if d.text]
    if not found:
        raise HeptaError(f"{config.text}: no documents in split {config.split!r}; nothing to read")
    return found


def _agreed(found: list[Agreement], whole: Agreement) -> dict[str, Any]:
    more = (whole.nats_changed - whole.nats_original) / math.log(2) / whole.bytes
    return {
        "bits_per_byte": whole.nats_changed / math.log(2) / whole.bytes, "delta_bits": more,
        "delta_interval": bits_interval(found), "divergence": whole.divergence / whole.tokens,
        "worst_divergence": whole.worst, "same_choice": whole.same_choice / whole.tokens,
        "accuracy": whole.right_changed / whole.tokens,
    }  # fmt: skip


def _ask(
    model: Any, tokenizer: Any, questions: Sequence[Any], first: np.ndarray | None
) -> tuple[TaskScore, np.ndarray]:
    choices = sum(len(question.choices) for question in questions)
    with progress("questions", choices, "choices") as bar:
        chosen, by_byte = answer_questions(model, tokenizer, questions, done=bar.advance)
    truth = np.array([question.answer for question in questions])
    return _task_score(truth, chosen, first, float((by_byte == truth).mean())), chosen


def _task_score(
    truth: np.ndarray, chosen: np.ndarray, first: np.ndarray | None, by_byte: float | None = None
) -> TaskScore:
    right, rows = int((chosen == truth).sum()), len(truth)
    same = 1.0 if first is None else float((chosen == first).mean())
    chance = None if first is None else mcnemar(truth, first, chosen)
    return TaskScore(rows, right / rows, wilson(right, rows), same, chance, by_byte)


def _classifiers(config: CompareConfig, places: Sequence[Path]) -> _Measured:
    from hepta.data.rows import TextEncoder
    from hepta.evaluation.predict import logits_of, probabilities
    from hepta.model.classifier import load_classifier
    from hepta.tokenizer.load import load_tokenizer

    if config.text is not None:
        raise HeptaError(f"{places[0]}: a classifier does not continue --text; give --data, or neither")
    texts, names, data, notes = _rows_with_labels(config, places[0])
    rows: list[dict[str, Any]] = []
    first: np.ndarray | None = None
    belief: np.ndarray | None = None
    truth = np.zeros(0)
    for place in places:
        model = load_classifier(place)
        if model.task.is_number:
            raise HeptaError(f"{place}: tells numbers; compare reads classifiers and language models")
        if unknown := [name for name in names if name not in model.task.labels]:
            raise HeptaError(f"{place}: has no class {unknown[0]!r}; its classes are {', '.join(model.task.labels)}")
        found = np.array([model.task.labels.index(name) for name in names])
        if rows and not np.array_equal(found, truth):
            raise HeptaError(f"{place}: names its classes in another order than {places[0]}; it is another classifier")
        truth = found
        encoder = TextEncoder(load_tokenizer(place), model.task.sequence_length)
        with progress(f"compare {place.parent.name}", len(texts), "texts") as bar:
            chances = probabilities(logits_of(model, encoder.many(texts), done=bar.advance))
        row: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
        chosen = chances.argmax(1)
        if belief is not None:
            gap = (belief * (np.log(np.maximum(belief, 1e-300)) - np.log(np.maximum(chances, 1e-300)))).sum(1)
            row |= {"divergence": float(gap.mean()), "worst_divergence": float(gap.max())}
            row["same_choice"] = float((chosen == first).mean())
        row["task"] = _task_score(truth, chosen, first)
        if belief is None:
            first, belief = chosen, chances
        rows.append(row)
    return _Measured("classifier", rows, data=data, notes=notes)


def _rows_with_labels(config: CompareConfig, original: Path) -> tuple[list[str], list[str], str, list[str]]:
    """Texts, their classes, and where they come from: the data given, else the test rows of the original's run."""
    from hepta.data.tables import load_labelled

    known = original.parent / PREDICTIONS
    if config.data is None and not known.is_file():
        raise HeptaError(f"{original}: no test rows beside it ({PREDICTIONS}); give --data FILE of texts and labels")
    if config.data is not None:
        examples, _ = load_labelled(config.data, "classify", None, None, "error")
        note = "rows of --data that a model was trained on flatter it"
    else:
        examples, _ = load_labelled(known, "classify", "text", "truth", "error")
        note = "the test rows of the original's run, which training did not see"
    say(note)
    examples = examples[: config.max_rows]
    return [e.text for e in examples], [str(e.label) for e in examples], str(config.data or known), [note]
