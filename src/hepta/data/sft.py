"""Conversations as training sequences: rendered, masked, packed, and read by number.

Several conversations share a sequence of T tokens, each a segment that sees only itself; which ones is decided
once (the longest first, each into the fullest sequence that still has room), and the order of sequences is a
keyed bijection per epoch. A stop token is never cut off: what does not fit is handled by ``overlong`` and counted.
"""

import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xxhash

from hepta.config import HeptaError
from hepta.console import warn
from hepta.data.conversations import Conversation, held_out_prompts, split_conversations
from hepta.data.order import IGNORE, Packed, Segmented, restarted_positions, stack
from hepta.data.permutation import key_of, mix, permute
from hepta.stage import digest_json
from hepta.tokenizer.load import Tokenizer

VERSION = 1
EXAMPLE_ROWS = 5
Overlong = Literal["drop", "split", "keep-answer", "error"]
LossOn = Literal["all", "last"]


@dataclass(frozen=True)
class Example:
    """One rendered conversation (or one answer of it): ids (L,), and which of them are supervised (L,) bool."""

    ids: np.ndarray
    mask: np.ndarray
    lang: str
    name: str


class SftOrder(Segmented):
    """Packed conversations, in the order a run reads them. The same interface as ``TokenOrder``.

    Args:
        conversations: from ``load_conversations``.
        tokenizer: with a chat template.
        sequence_length: T.
        seed: of the order.
        packing: several conversations per sequence; else one each, padded.
        overlong: what to do with conversations longer than T: ``drop``; ``split`` at turns; ``keep-answer`` leaves
            out the oldest turns, then the beginning of the last question, never the answer; ``error``.
        split: ``train``, or ``val`` for the conversations held out.
        validation: share held out, by a hash of the first user message.
        loss_on: ``all`` assistant turns, or the ``last`` one only.

    Attributes:
        report: what was read, dropped, cut and packed, for the run's report.

    Raises:
        HeptaError: nothing fits, an overlong conversation under ``error``, an empty split.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        tokenizer: Tokenizer,
        sequence_length: int = 512,
        seed: int = 0,
        packing: bool = True,
        overlong: Overlong = "drop",
        split: Literal["train", "val"] = "train",
        validation: float = 0.05,
        loss_on: LossOn = "all",
    ) -> None:
        self.T, self.seed, self.pad_id = sequence_length, seed, tokenizer.pad_id
        self.conversations, self.validation = conversations, validation
        chosen = split_conversations(conversations, validation)[0 if split == "train" else 1]
        renderer = _Renderer(tokenizer, sequence_length, overlong, loss_on)
        self.examples = [example for conversation in chosen for example in renderer.examples(conversation)]
        if not self.examples:
            raise HeptaError(
                f"split {split!r}: none of {len(chosen)} conversations fits {sequence_length} tokens; "
                "raise sequence_length, or validation if nothing was held out"
            )
        lengths = [len(example.ids) for example in self.examples]
        self._bins = pack(lengths, sequence_length) if packing else [[i] for i in range(len(lengths))]
        self.sequences_per_epoch = len(self._bins)
        self.source_names = sorted({_source(example) for example in self.examples})
        self.report = self._summary(len(chosen), renderer, getattr(conversations, "report", {}))
        content = [
            (xxhash.xxh3_64_hexdigest(e.ids.tobytes()), xxhash.xxh3_64_hexdigest(e.mask.tobytes()))
            for e in self.examples
        ]
        self.digest = digest_json([VERSION, tokenizer.contract, self.T, seed, self._bins, content])

    def get(self, n: int) -> Packed:
        """The n-th sequence."""
        ids = np.full(self.T, self.pad_id, np.int64)
        labels = np.full(self.T, IGNORE, np.int64)
        segments = np.zeros(self.T, np.int64)
        members = self._members(n)
        start = 0
        for segment, member in enumerate(members):
            example = self.examples[member]
            stop = start + len(example.ids)
            ids[start:stop] = example.ids
            labels[start : stop - 1] = np.where(
                example.mask[1:], example.ids[1:], IGNORE
            )  # never the next segment's first
            segments[start:stop] = segment
            start = stop
        segments[start:] = len(members)
        return Packed(ids, labels, segments, restarted_positions(segments))

    def batch(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Sequences [start, start + count): input_ids, labels, segment_ids, positions, each (count, T)."""
        return stack([self.get(n) for n in range(start, start + count)])

    def where(self, n: int) -> list[str]:
        """``source row N`` of each conversation in the n-th sequence."""
        return [self.examples[member].name for member in self._members(n)]

    def languages(self, n: int) -> list[str]:
        """Language of each segment of the n-th sequence."""
        return [self.examples[member].lang for member in self._members(n)]

    def sources(self, n: int) -> list[str]:
        """Source of each conversation in the n-th sequence."""
        return [_source(self.examples[member]) for member in self._members(n)]

    def held_out(self) -> list[Conversation]:
        """The conversations that training never reads."""
        return split_conversations(self.conversations, self.validation)[1]

    def held_out_prompts(self) -> dict[str, Conversation]:
        """See ``conversations.held_out_prompts``."""
        return held_out_prompts(self.conversations, self.validation)

    def _members(self, n: int) -> list[int]:
        epoch, place = divmod(n, self.sequences_per_epoch)
        return self._bins[permute(place, self.sequences_per_epoch, key_of("sft", self.seed, epoch))]

    def _summary(self, chosen: int, renderer: "_Renderer", loading: dict[str, Any]) -> dict[str, Any]:
        tokens = sum(len(example.ids) for example in self.examples)
        return {
            "loading": loading,
            "conversations": chosen,
            "examples": len(self.examples),
            "languages": dict(Counter(example.lang for example in self.examples)),
            "overlong": dict(renderer.counts),
            "overlong_examples": renderer.names,
            "tokens": tokens,
            "supervised_tokens": int(sum(example.mask[1:].sum() for example in self.examples)),
            "sequences": self.sequences_per_epoch,
            "filled": round(tokens / (self.sequences_per_epoch * self.T), 4),
        }


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items into as few bins as best-fit decreasing finds; the same lengths give the same bins.

    Args:
        lengths: each at most ``capacity``.
        capacity: of a bin.

    Returns:
        the items of each bin, by number.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (space left, bin), sorted
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], mix(i))):  # not by row: neighbours are alike
        place = bisect.bisect_left(room, (lengths[item], -1))
        if place < len(room):
            space, chosen = room.pop(place)
            bins[chosen].append(item)
        else:
            space, chosen = capacity, len(bins)
            bins.append([item])
        if space > lengths[item]:
            bisect.insort(room, (space - lengths[item], chosen))
    return bins


def _source(example: Example) -> str:
    return example.name.rpartition(" row ")[0]


class _Renderer:
    """Renders conversations within T tokens and counts what did not fit."""

    def __init__(self, tokenizer: Tokenizer, limit: int, overlong: Overlong, loss_on: LossOn) -> None:
        self.tokenizer, self.limit, self.overlong, self.loss_on = tokenizer, limit, overlong, loss_on
        self.counts: Counter[str] = Counter()
        self.names: list[str] = []

    def examples(self, conversation: Conversation) -> list[Example]:
        """What one conversation trains: one example, several, or none."""
        name = f"{conversation.source} row {conversation.row}"
        made = self._render(conversation.messages, conversation.lang, name)
        if all(len(example.ids) <= self.limit for example in made):
            return made
        if self.overlong == "error":
            longest = max(len(example.ids) for example in made)
            raise HeptaError(
                f"{name}: {longest} tokens, sequence_length is {self.limit}; raise it or set overlong=drop"
            )
        if self.overlong == "split":
            kept = self._split(conversation, name)
            outcome = "split" if kept else "dropped"
        elif self.overlong == "keep-answer":
            kept = self._shorten(conversation, name)
            outcome = "cut" if kept else "dropped"
        else:
            kept = [example for example in made if len(example.ids) <= self.limit]
            outcome = "dropped"
        self.counts[outcome] += 1
        if len(self.names) < EXAMPLE_ROWS:
            self.names.append(f"{name}: {outcome}")
        if outcome == "dropped":
            warn(f"conversations longer than {self.limit} tokens are dropped; the run's report counts them")
        return kept

    def _render(self, messages: list[dict[str, str]], lang: str, name: str) -> list[Example]:
        if self.loss_on == "last":
            rendered = [self.tokenizer.render_supervised(messages, last_only=True)]
        else:
            rendered = self.tokenizer.render_turns(messages)
        examples = []
        for ids, mask in rendered:
            end = len(mask) - mask[::-1].index(True)  # what follows the last stop token teaches nothing
            examples.append(Example(np.array(ids[:end], np.int64), np.array(mask[:end], bool), lang, name))
        return examples

    def _split(self, conversation: Conversation, name: str) -> list[Example]:
        """As many following turns per example as fit, each example with the system prompt."""
        system, exchanges = _exchanges(conversation.messages)
        kept: list[Example] = []
        current: list[dict[str, str]] = []
        for exchange in exchanges:
            if current and not self._fits(system + current + exchange):
                kept += self._render(system + current, conversation.lang, name)
                current = []
            if self._fits(system + current + exchange):
                current = current + exchange
            else:
                self.counts["exchanges dropped"] += 1
        return kept + (self._render(system + current, conversation.lang, name) if current else [])

    def _shorten(self, conversation: Conversation, name: str) -> list[Example]:
        """Leave out the oldest exchanges, then the beginning of the last question; the answer stays whole."""
        system, exchanges = _exchanges(conversation.messages)
        for first in range(1, len(exchanges)):
            rest = [message for exchange in exchanges[first:] for message in exchange]
            if self._fits(system + rest):
                return self._render(system + rest, conversation.lang, name)
        question, *answer = exchanges[-1]

        def with_tail(characters: int) -> list[dict[str, str]]:
            content = question["content"]
            return [*system, {"role": "user", "content": content[len(content) - characters :]}, *answer]

        low, high = 0, len(question["content"])  # fits with low characters of the question, not with high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(with_tail(middle)) else (low, middle)
        return self._render(with_tail(low), conversation.lang, name) if low else []

    def _fits(self, messages: list[dict[str, str]]) -> bool:
        return all(len(example.ids) <= self.limit for example in self._render(messages, "", ""))


def _exchanges(messages: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[list[dict[str, str]]]]:
    """System messages, and the turns grouped from each user message to the next."""
    system = [message for message in messages if message["role"] == "system"]
    exchanges: list[list[dict[str, str]]] = []
    for message in messages:
        if message["role"] == "user":
            exchanges.append([message])
        elif message["role"] != "system":
            exchanges[-1].append(message)
    return system, exchanges
