"""``hepta chat``: talk to a chat model, a message at a time."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from hepta.config import HeptaError
from hepta.console import say
from hepta.generation.config import ChatConfig
from hepta.generation.opening import Opened, open_model

HELP = "/reset forgets the conversation, /quit (or end of input) ends"


@dataclass
class ChatResult:
    """The conversation as it stood at the end, and the last answer."""

    model: str
    messages: list[dict[str, str]]
    answer: str
    printed: bool  # answers were written as they came


class Conversation:
    """Messages so far and the model that answers them."""

    def __init__(self, opened: Opened, config: ChatConfig) -> None:
        self._opened, self._config = opened, config
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        system = self._config.system
        self.messages = [{"role": "system", "content": system}] if system is not None else []

    def answer(self, message: str) -> Iterator[str]:
        """Say ``message``; gives the answer in pieces and keeps both in the conversation."""
        self.messages.append({"role": "user", "content": message})
        prompt = self._prompt()
        pieces = []
        for piece in self._opened.engine.stream(prompt, **self._config.options()):
            pieces.append(piece)
            yield piece
        self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def _prompt(self) -> list[int]:
        """Ids of the conversation; the oldest exchanges are left out, and said so, when it grows too long."""
        reach = self._opened.engine.model.config.max_positions
        room = reach - self._config.max_new_tokens
        while len(ids := self._opened.tokenizer.render(self.messages, add_generation_prompt=True)) > room:
            first = 1 if self.messages[0]["role"] == "system" else 0
            if len(self.messages) - first < 3:
                if len(ids) < reach:
                    return ids  # the question is whole; a long answer would run beyond what was trained
                self.messages.pop()
                raise HeptaError(f"the message has {len(ids)} tokens, the model reads {reach}; say it shorter")
            del self.messages[first : first + 2]
            say("(the conversation is longer than the model reads: the oldest exchange was left out)")
        return ids


def chat(config: ChatConfig, source: TextIO | None = None, sink: TextIO | None = None) -> ChatResult:
    """Answer ``config.message``, or every line of ``source`` until it ends.

    Args:
        config: the model and how it samples.
        source: lines of the user; stdin when not given. On a terminal a prompt is shown on stderr.
        sink: where answers appear as they come; stdout when not given. With ``message`` or ``live`` false
            nothing is written there.

    Raises:
        HeptaError: no model there, no chat template or stop token, a message longer than the model reads.
    """
    lines: TextIO = source or sys.stdin
    out: TextIO = sink or sys.stdout
    opened = open_model(config, chat=True)
    conversation = Conversation(opened, config)
    answer = ""
    if config.message is not None:
        answer = "".join(conversation.answer(config.message))
        return ChatResult(str(opened.directory), conversation.messages, answer, printed=False)
    by_hand = lines.isatty()
    if by_hand:
        say(f"{opened.directory}: {HELP}")
    for line in _lines(lines, by_hand):
        if line == "/reset":
            conversation.reset()
            say("(forgotten)")
            continue
        answer = ""
        for piece in conversation.answer(line):
            answer += piece
            if config.live:
                print(piece, end="", file=out, flush=True)
        if config.live:
            print(file=out, flush=True)
    return ChatResult(str(opened.directory), conversation.messages, answer, printed=config.live)


def _lines(source: TextIO, by_hand: bool) -> Iterator[str]:
    """The user's lines until /quit or the end of input; blank ones are skipped."""
    while True:
        if by_hand:
            print("> ", end="", file=sys.stderr, flush=True)
        line = source.readline()
        if not line or line.strip() == "/quit":
            return
        if line.strip():
            yield line.strip()
