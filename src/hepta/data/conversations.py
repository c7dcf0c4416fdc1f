"""Read conversations from the formats people have, and refuse rows that are none, by row number.

Known formats: ``messages`` (role, content), ShareGPT ``conversations`` (from, value), alpaca (instruction, input,
output, history, system) and prompt/completion. A row that is no conversation is dropped and counted, or ends
the reading, as the policy says; nothing is repaired silently.
"""

import gzip
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import xxhash

from hepta.catalog.documents import language_by_script
from hepta.config import HeptaError, nearest
from hepta.console import warn
from hepta.stage import MANIFEST

Policy = Literal["drop", "error"]
ROLES = ("system", "user", "assistant", "tool")
ALIASES = {
    "human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "function_call": "assistant", "observation": "tool", "function": "tool", "developer": "system",
}  # fmt: skip
SUFFIXES = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")
EXAMPLE_ROWS = 5  # row numbers kept per reason in the report
EXPECTED = "messages (role, content) | conversations (from, value) | instruction, output | prompt, completion"


@dataclass(frozen=True)
class Conversation:
    """Messages in order, each ``{"role": …, "content": …}``, ending with an assistant's.

    Attributes:
        row: 1-based line (JSON Lines) or element (JSON array, Parquet) of the file.
        lang: by its script: zh, ja, en for Latin, und.
        source: the file's name, or the NAME of ``NAME=PATH``.
    """

    row: int
    messages: list[dict[str, str]]
    lang: str
    source: str = ""

    @property
    def first_prompt(self) -> str:
        """The first user message, blanks around it aside: what a conversation is split by."""
        return next(m["content"] for m in self.messages if m["role"] == "user").strip()


class Conversations(list[Conversation]):
    """A list of conversations that remembers what reading them dropped."""

    def __init__(self, items: Sequence[Conversation] = (), report: dict[str, Any] | None = None) -> None:
        super().__init__(items)
        self.report: dict[str, Any] = report or {}


class RowError(Exception):
    """A row that is no conversation; the message says why."""


@dataclass
class _Faults:
    """Counts of dropped rows by reason, with the first few of them."""

    policy: Policy
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    unused: Counter[str] = field(default_factory=Counter)

    def add(self, file: Path, row: int, reason: str) -> None:
        if self.policy == "error":
            raise HeptaError(f"{file}: row {row}: {reason}; mend the row or set bad_rows=drop")
        kind = reason.partition(":")[0]
        self.counts[kind] += 1
        if len(self.examples[kind]) < EXAMPLE_ROWS:
            self.examples[kind].append(f"{file.name} row {row}: {reason}")


def load_conversations(path: Path | str | Sequence[Path | str], policy: Policy = "error") -> Conversations:
    """Read conversations from files, folders of files, or ``NAME=PATH`` of either.

    Args:
        path: one or several; .jsonl, .json (an array) and .parquet, the first two also .gz or .zst.
        policy: ``error`` stops at the first bad row, ``drop`` leaves bad rows out and counts them.

    Returns:
        conversations with ``report``: rows read, kept, dropped by reason with example rows, columns not used,
        conversations by source and language.

    Raises:
        HeptaError: no files, a file that cannot be read, unknown columns, a bad row under ``error``, nothing left.
    """
    entries = [path] if isinstance(path, str | Path) else list(path)
    faults = _Faults(policy)
    kept: list[Conversation] = []
    read = 0
    for entry in entries:
        for file, source in _files(entry):
            schema: str | None = None
            for row, value in _rows(file, faults):
                read += 1
                if value is None:
                    continue
                schema = schema or _schema(value, file, row)
                try:
                    messages = _messages(value, schema)
                    _check(messages)
                except RowError as error:
                    faults.add(file, row, str(error))
                    continue
                faults.unused.update(set(value) - COLUMNS[schema])
                text = "\n".join(m["content"] for m in messages if m["role"] in ("user", "assistant"))
                kept.append(Conversation(row, messages, language_by_script(text), source))
    if faults.counts:
        warn(f"dropped {sum(faults.counts.values())} of {read} rows: {dict(faults.counts)}; examples: {_first(faults)}")
    if not kept:
        raise HeptaError(f"{', '.join(map(str, entries))}: no conversation left of {read} rows; {_first(faults)}")
    return Conversations(kept, _report(kept, read, faults))


def split_conversations(
    conversations: Sequence[Conversation], validation: float
) -> tuple[list[Conversation], list[Conversation]]:
    """Train and held-out conversations, by a hash of the first user message within each language.

    Equal first prompts fall on the same side, whatever follows them. Each language with two prompts or more
    has at least one held out when ``validation`` is above 0.
    """
    by_language: dict[str, set[str]] = defaultdict(set)
    for conversation in conversations:
        by_language[conversation.lang].add(conversation.first_prompt)
    held: set[str] = set()
    for prompts in by_language.values():
        chosen = {prompt for prompt in prompts if _place(prompt) < validation}
        if validation > 0 and not chosen and len(prompts) > 1:
            chosen = {min(prompts, key=_place)}
        held |= chosen
    train = [c for c in conversations if c.first_prompt not in held]
    return train, [c for c in conversations if c.first_prompt in held]


def held_out_prompts(conversations: Sequence[Conversation], validation: float) -> dict[str, Conversation]:
    """The first held-out conversation of each known language whose question is in that language too."""
    first: dict[str, Conversation] = {}
    for conversation in split_conversations(conversations, validation)[1]:
        if conversation.lang != "und" and language_by_script(conversation.first_prompt) == conversation.lang:
            first.setdefault(conversation.lang, conversation)
    return first


def _place(prompt: str) -> float:
    return xxhash.xxh3_64_intdigest(b"held-out:" + prompt.encode("utf-8", "replace")) / 2**64


def _files(entry: Path | str) -> list[tuple[Path, str]]:
    """(file, source name) of an entry."""
    name, equals, rest = str(entry).partition("=")
    named = bool(equals) and not Path(entry).exists()
    path = Path(rest if named else entry)
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = sorted(f for f in path.rglob("*") if _is_data(f, path))
    else:
        raise HeptaError(f"{path}: no such file or directory; give a .jsonl, .json or .parquet file of conversations")
    if not found:
        raise HeptaError(f"{path}: holds no {', '.join(SUFFIXES[:3])} file of conversations")
    return [(file, name if named else file.name.partition(".")[0]) for file in found]


def _is_data(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.is_file() and file.name.endswith(SUFFIXES) and not hidden and file.name not in (MANIFEST, "SOURCE.json")


def _rows(file: Path, faults: _Faults) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(row number, row) of a file; None for a row that was dropped already."""
    try:
        if file.name.endswith(".parquet"):
            import pyarrow.parquet as parquet

            values: Iterator[Any] = (
                row for batch in parquet.ParquetFile(file).iter_batches(1024) for row in batch.to_pylist()
            )
        else:
            with _open_text(file) as text:
                if ".jsonl" in file.name:
                    yield from _json_lines(text, file, faults)
                    return
                loaded = json.load(text)
            if not isinstance(loaded, list):
                raise HeptaError(f"{file}: expected a JSON array of rows, found a {type(loaded).__name__}")
            values = iter(loaded)
        for row, value in enumerate(values, 1):
            yield row, _as_object(value, file, row, faults)
    except (OSError, EOFError, ValueError, ImportError) as error:  # pyarrow's errors are OSError and ValueError
        raise HeptaError(f"{file}: cannot be read: {error}") from None


def _json_lines(text: io.TextIOBase, file: Path, faults: _Faults) -> Iterator[tuple[int, dict[str, Any] | None]]:
    for row, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            faults.add(file, row, f"not JSON: {error}")
            yield row, None
            continue
        yield row, _as_object(value, file, row, faults)


def _as_object(value: Any, file: Path, row: int, faults: _Faults) -> dict[str, Any] | None:
    if isinstance(value, dict):
        return value
    faults.add(file, row, f"not an object: found a {type(value).__name__}")
    return None


def _open_text(file: Path) -> io.TextIOBase:
    if file.name.endswith(".gz"):
        return io.TextIOWrapper(gzip.open(file), encoding="utf-8")
    if file.name.endswith(".zst"):
        import zstandard

        return io.TextIOWrapper(
            zstandard.ZstdDecompressor().stream_reader(file.open("rb"), closefd=True), encoding="utf-8"
        )
    return file.open(encoding="utf-8")


COLUMNS = {
    "messages": {"messages"},
    "conversations": {"conversations", "system"},
    "alpaca": {"instruction", "input", "output", "history", "system"},
    "prompt": {"prompt", "completion", "system"},
}


def _schema_of(row: dict[str, Any]) -> str | None:
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "conversations"
    if "instruction" in row and "output" in row:
        return "alpaca"
    return "prompt" if "prompt" in row and "completion" in row else None


def _schema(row: dict[str, Any], file: Path, number: int) -> str:
    """The format of a file, by its first row.

    Raises:
        HeptaError: none of the known ones; says which columns were seen.
    """
    schema = _schema_of(row)
    if schema is None:
        raise HeptaError(f"{file}: row {number}: columns {', '.join(map(repr, row)) or 'none'}; expected {EXPECTED}")
    return schema


def _messages(row: dict[str, Any], schema: str) -> list[dict[str, str]]:
    """A row as messages, roles in our words.

    Raises:
        RowError: the row has another format than the file, or content that is no text.
    """
    found = _schema_of(row)
    if found != schema:
        columns = ", ".join(map(repr, row))
        raise RowError(f"another format than the file's first row: expected {schema}, found columns {columns}")
    if schema == "messages":
        return [_message(m, "role", "content") for m in _list(row["messages"], "messages")]
    start = [{"role": "system", "content": _text(row["system"], "system")}] if row.get("system") else []
    if schema == "conversations":
        return start + [_message(m, "from", "value") for m in _list(row["conversations"], "conversations")]
    if schema == "alpaca":
        return start + _alpaca(row)
    if isinstance(row["prompt"], list) and isinstance(row["completion"], list):
        return start + [_message(m, "role", "content") for m in row["prompt"] + row["completion"]]
    return start + _exchange(_text(row["prompt"], "prompt"), _text(row["completion"], "completion"))


def _alpaca(row: dict[str, Any]) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    for pair in row.get("history") or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError("history is not a list of [question, answer]")
        messages += _exchange(_text(pair[0], "history"), _text(pair[1], "history"))
    instruction, output = _text(row["instruction"], "instruction"), _text(row["output"], "output")
    given = _text(row["input"], "input") if row.get("input") is not None else ""
    return messages + _exchange("\n".join(part for part in (instruction, given) if part.strip()), output)


def _exchange(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise RowError(f"{name} is no list of messages: found {type(value).__name__ if value else 'nothing'}")
    return value


def _message(value: Any, role_key: str, content_key: str) -> dict[str, str]:
    if not isinstance(value, dict) or role_key not in value or content_key not in value:
        keys = ", ".join(map(repr, value)) if isinstance(value, dict) else type(value).__name__
        raise RowError(f"a message without {role_key!r} and {content_key!r}: found {keys}")
    role = ALIASES.get(value[role_key], value[role_key]) if isinstance(value[role_key], str) else value[role_key]
    if role not in ROLES:
        raise RowError(f"unknown role: {value[role_key]!r}; {nearest(str(value[role_key]), [*ROLES, *ALIASES])}")
    return {"role": role, "content": _text(value[content_key], content_key)}


def _text(value: Any, name: str) -> str:
    if value is None:
        raise RowError(f"no content: {name} is null")
    if not isinstance(value, str):
        raise RowError(f"content is no text: {name} is a {type(value).__name__}")
    return value


def _check(messages: list[dict[str, str]]) -> None:
    """Refuse sequences of turns that cannot be trained on.

    Raises:
        RowError: says which rule and at which message.
    """
    turns = messages
    while turns and turns[0]["role"] == "system":
        turns = turns[1:]
    if not turns or turns[0]["role"] != "user":
        raise RowError(f"does not begin with the user: first turn is {turns[0]['role'] if turns else 'missing'}")
    if turns[-1]["role"] != "assistant":
        raise RowError(f"does not end with an answer: last turn is {turns[-1]['role']}")
    follows = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
    offset = len(messages) - len(turns)
    for number, message in enumerate(turns, 1 + offset):
        if not message["content"].strip():
            kind = "empty answer" if message["role"] == "assistant" else "empty turn"
            raise RowError(f"{kind}: message {number}")
    for number, (before, after) in enumerate(pairwise(turns), 2 + offset):
        if after["role"] not in follows[before["role"]]:
            raise RowError(f"turns out of order: message {number} is {after['role']} after {before['role']}")


def _report(kept: list[Conversation], read: int, faults: _Faults) -> dict[str, Any]:
    return {
        "rows": read,
        "kept": len(kept),
        "dropped": dict(faults.counts),
        "examples": dict(faults.examples),
        "unused_columns": dict(faults.unused),
        "sources": dict(Counter(c.source for c in kept)),
        "languages": dict(Counter(c.lang for c in kept)),
    }


def _first(faults: _Faults) -> str:
    return next((examples[0] for examples in faults.examples.values()), "the files are empty")
