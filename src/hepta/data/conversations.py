"""Read conversations from the formats people have, and refuse rows that are none, by row number.

Known formats: ``messages`` (role, content), ShareGPT ``conversations`` (from, value), alpaca (instruction, input,
output, history, system) and prompt/completion. A row that is no conversation is dropped and counted, or ends
the reading, as the policy says; nothing is repaired silently.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import xxhash

from hepta.catalog.documents import language_by_script
from hepta.config import HeptaError, nearest
from hepta.console import warn
from hepta.data.files import JSON_SUFFIXES, Policy, RowError, RowFaults, broken_text, find_files, read_rows

ROLES = ("system", "user", "assistant", "tool")
ALIASES = {
    "human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "function_call": "assistant", "observation": "tool", "function": "tool", "developer": "system",
}  # fmt: skip
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
    faults, unused = RowFaults(policy), Counter[str]()
    kept: list[Conversation] = []
    read = 0
    for entry in entries:
        for file, source in find_files(entry, JSON_SUFFIXES, "conversations"):
            schema: str | None = None
            for row, value in read_rows(file, faults):
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
                unused.update(set(value) - COLUMNS[schema])
                text = "\n".join(m["content"] for m in messages if m["role"] in ("user", "assistant"))
                kept.append(Conversation(row, messages, language_by_script(text), source))
    if faults.counts:
        warn(faults.told(read))
    if not kept:
        raise HeptaError(f"{', '.join(map(str, entries))}: no conversation left of {read} rows; {faults.first}")
    return Conversations(kept, _report(kept, read, faults, unused))


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
    if broken_text(value):
        raise RowError(f"not UTF-8: {name} holds bytes that are no text")
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


def _report(kept: list[Conversation], read: int, faults: RowFaults, unused: Counter[str]) -> dict[str, Any]:
    return {
        "rows": read,
        "kept": len(kept),
        "dropped": dict(faults.counts),
        "examples": dict(faults.examples),
        "unused_columns": dict(unused),
        "sources": dict(Counter(c.source for c in kept)),
        "languages": dict(Counter(c.lang for c in kept)),
    }
