"""Conversations to ids by a chat template, with content that can never spell structure.

The template is rendered as it stands (in Jinja's immutable sandbox), but every special token that the
*content* spells is broken by a marker character first. So each special token in the rendered text was put
there by the template; the text between them, marker removed, is encoded as plain text. Without specials in
the content the ids are those of ``apply_chat_template``; with them, ours stay text.

The text is also cut where an assistant's answer begins, as it is when the model answers for real, so
the ids of a prompt are always a prefix of the ids of the whole conversation, whatever merges would do.
"""

import datetime
import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hepta.config import HeptaError, nearest

ROLES = ("system", "developer", "user", "assistant", "tool")
Message = dict[str, Any]

CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + (message['content'] | trim) + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)  # blanks around a turn are trimmed: a turn that began with a newline would merge with the one before it


class HistoryChanged(HeptaError):
    """A template writes an earlier turn differently once later ones follow (trap S16)."""


class _Generation(Extension):
    """``{% generation %} … {% endgeneration %}`` of Hugging Face templates: the body, as it is."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


class ChatTemplate:
    """A compiled chat template and the special tokens it may write.

    Args:
        source: the Jinja text.
        specials: special token → id, everything that text must not be able to spell.
        stop_ids: ids that may end an assistant's turn.
        variables: ``bos_token``, ``eos_token`` … as the template knows them.
        where: directory, for messages.
    """

    def __init__(
        self, source: str, specials: dict[str, int], stop_ids: Sequence[int], variables: dict[str, str], where: str
    ) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self.where = where
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise HeptaError(f"{where}: its chat template is not valid Jinja: {error}") from None
        self._specials, self._stops, self._variables = specials, set(stop_ids), variables
        longest_first = sorted(specials, key=len, reverse=True)
        self._find = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool, encode: Callable[[str], list[int]]
    ) -> list[int]:
        """Ids of a conversation; ``encode`` turns plain text into ids. See ``Tokenizer.render``."""
        marker, safe = self._protect(messages)
        whole = self._write(safe, add_generation_prompt)
        prompts = [self._write(safe[:i], True) for i, message in enumerate(safe) if message["role"] == "assistant"]
        cuts = [len(prompt) for prompt in prompts if whole.startswith(prompt)]
        return [i for _, _, ids in self._pieces(whole, marker, cuts, encode) for i in ids]

    def render_supervised(
        self, messages: Sequence[Message], encode: Callable[[str], list[int]], last_only: bool = False
    ) -> tuple[list[int], list[bool]]:
        """Ids, and a mask that is true on assistant content and its stop token. See ``Tokenizer.render_supervised``."""
        marker, safe = self._protect(messages)
        whole = self._write(safe, False)
        spans = []
        for index, message in enumerate(safe):
            if message["role"] == "assistant":
                start, end = self._answer_span(safe[: index + 1])
                if whole[:end] != self._write(safe[: index + 1], False)[:end]:
                    raise HistoryChanged(
                        f"{self.where}: its chat template rewrites turn {index + 1} once later turns follow, so one "
                        "text cannot train all answers; render_turns gives one sequence for each answer"
                    )
                spans.append((start, end))
        pieces = self._pieces(whole, marker, [start for start, _ in spans], encode)
        return _masked(pieces, spans[-1:] if last_only else spans)

    def render_last(
        self, messages: Sequence[Message], encode: Callable[[str], list[int]]
    ) -> tuple[list[int], list[bool]]:
        """Ids and mask of a conversation whose last answer alone is supervised, however history is written."""
        marker, safe = self._protect(messages)
        span = self._answer_span(safe)
        return _masked(self._pieces(self._write(safe, False), marker, [span[0]], encode), [span])

    def _answer_span(self, messages: Sequence[Message]) -> tuple[int, int]:
        """Where in the text of ``messages`` its last answer begins, and where its stop token ends."""
        prompt, text = self._write(messages[:-1], True), self._write(messages, False)
        if not text.startswith(prompt):
            raise HistoryChanged(
                f"{self.where}: its chat template writes the prompt of turn {len(messages)} differently "
                "once the answer is there; such a model cannot be tuned on what it will be asked"
            )
        stops = [
            match.end()
            for match in self._find.finditer(text, len(prompt))
            if self._specials[match.group()] in self._stops
        ]
        if not stops:
            raise HeptaError(
                f"{self.where}: its chat template ends an assistant turn without a stop token; "
                "the model would never learn to stop"
            )
        return len(prompt), stops[-1]

    def _protect(self, messages: Sequence[Message]) -> tuple[str, list[Message]]:
        """Messages whose strings spell no special token any more, and the marker that breaks them."""
        check_messages(messages)
        everything = json.dumps(messages, ensure_ascii=False, default=str)
        marker = next(c for c in map(chr, range(0xFDD0, 0xFDF0)) if c not in everything)  # Unicode noncharacters

        def broken(value: Any) -> Any:
            if isinstance(value, str):
                while match := self._find.search(value):
                    value = value[: match.start() + 1] + marker + value[match.start() + 1 :]
                return value
            if isinstance(value, dict):
                return {broken(key): broken(item) for key, item in value.items()}
            return [broken(item) for item in value] if isinstance(value, list | tuple) else value

        return marker, [broken(dict(message)) for message in messages]

    def _write(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **self._variables
            )
        except (TemplateError, TypeError) as error:
            raise HeptaError(f"{self.where}: its chat template refuses this conversation: {error}") from None

    def _pieces(
        self, text: str, marker: str, cuts: Sequence[int], encode: Callable[[str], list[int]]
    ) -> list[tuple[int, int, list[int]]]:
        """(start, end, ids) of each special token and each stretch of plain text, cut at ``cuts`` too."""
        edges = {0, len(text), *cuts}
        special_at = {}
        for match in self._find.finditer(text):
            special_at[match.start()] = self._specials[match.group()]
            edges |= {match.start(), match.end()}
        places = sorted(edges)
        pieces = []
        for start, end in pairwise(places):
            ids = [special_at[start]] if start in special_at else encode(text[start:end].replace(marker, ""))
            pieces.append((start, end, ids))
        return pieces


def _masked(
    pieces: Sequence[tuple[int, int, list[int]]], spans: Sequence[tuple[int, int]]
) -> tuple[list[int], list[bool]]:
    """Ids of all pieces, and for each id whether its piece lies in one of ``spans``."""
    ids: list[int] = []
    mask: list[bool] = []
    for start, end, piece in pieces:
        ids += piece
        mask += [any(first <= start and end <= last for first, last in spans)] * len(piece)
    return ids, mask


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse what is no conversation, naming the message.

    Raises:
        HeptaError: no messages, an unknown role, content that is not text.
    """
    if not messages:
        raise HeptaError("a conversation needs at least one message, for example {'role': 'user', 'content': 'Hello'}")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise HeptaError(
                f"message {number}: expected {{'role': …, 'content': …}}, found a {type(message).__name__}"
            )
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise HeptaError(f"message {number}: role {role!r} is unknown; {nearest(str(role), ROLES)}")
        if not isinstance(content, str):
            raise HeptaError(f"message {number}: content must be text, found {type(content).__name__}")
