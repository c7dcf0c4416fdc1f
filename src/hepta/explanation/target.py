"""What tokens are to account for: the next token, a whole answer, a masked word, a class, or a number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hepta.config import HeptaError, nearest
from hepta.explanation.gradients import Question
from hepta.explanation.reading import Piece, Reading, Subject
from hepta.model.classifier import Classifier
from hepta.model.network import Network, unembed
from hepta.model.ngram import NGram

BEST = 5  # answers shown
Task = Literal["next", "masked", "class", "number"]
Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Target:
    """One answer, and the score of it that tokens account for.

    Attributes:
        name: the token, words, class or what a number is called.
        unit: of the score: ``log-probability`` (nats), ``logit``, or ``value`` (in the target's own unit).
        probability: what the model gives it; None for a number.
    """

    name: str
    unit: Literal["log-probability", "logit", "value"]
    probability: float | None
    question: Question


@dataclass(frozen=True)
class Case:
    """A text as it is read, the targets, and the model's own answers with their probabilities, likeliest first."""

    task: Task
    places: list[int]
    targets: list[Target]
    answers: list[tuple[str, float]]


def find_targets(subject: Subject, reading: Reading, wanted: str | None) -> Case:
    """What is to be explained: the model's own answer, or the one ``wanted``; of classes the two likeliest.

    Raises:
        HeptaError: a translator, an answer that this model cannot give, not exactly one mask.
    """
    places = [place for place, piece in enumerate(reading.pieces) if piece.special is None]
    if not places:
        raise HeptaError("the text holds no tokens that could decide anything; write some words")
    if subject.classifier is not None:
        return _classes(subject.classifier, reading.ids, places, wanted)
    if subject.kind == "translation":
        raise HeptaError(
            f"{subject.directory}: is a translator; hepta explain attention shows which source words it looks at"
        )
    return (_masked if subject.kind == "masked" else _continuation)(subject, reading, places, wanted)


def embedding_of(network: Network) -> nn.Embedding | None:
    """What makes vectors of tokens; an n-gram has nothing of the kind."""
    return None if isinstance(network, NGram) else network.embedding


def read_chat(subject: Subject, text: str) -> Reading:
    """The text as a user's message in the model's chat template, up to where the answer begins.

    Raises:
        HeptaError: a classifier, no chat template, or one that changes the message.
    """
    if subject.classifier is not None:
        raise HeptaError(f"{subject.directory}: a classifier reads texts without a chat template; leave --chat away")
    ids = subject.tokenizer.render([{"role": "user", "content": text}], add_generation_prompt=True)
    said, spans = subject.tokenizer.encode_spans(text)
    starts = [i for i in range(len(ids) - len(said), -1, -1) if ids[i : i + len(said)] == said]
    if not said or not starts:
        raise HeptaError(f"{subject.directory}: its chat template changes the message's tokens; leave --chat away")
    pieces = [Piece(subject.tokenizer.decode([i], skip_special=False), special="special") for i in ids]
    pieces[starts[0] : starts[0] + len(said)] = [Piece(text[start:end], start, end) for start, end in spans]
    return Reading(text, ids, pieces)


def token_score(network: Network, places: Sequence[int], tokens: Sequence[int]) -> Score:
    """Σ log p of tokens (K,), each at its place (K,), as a function of ids (N, T) → (N,)."""
    wanted, where = torch.tensor(tokens), list(places)

    def head(hidden: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        chances = unembed(hidden[:, where], weight, bias).float().log_softmax(-1)  # (N, K, V)
        return chances.gather(-1, wanted.expand(len(hidden), -1)[..., None]).sum((1, 2))

    return lambda ids: network(ids, head=head)


@torch.no_grad()
def _chances(network: Network, ids: list[int], place: int) -> Tensor:
    """Probabilities of all tokens at one place (V,)."""
    logits = network(torch.tensor([ids]), head=lambda hidden, weight, bias: unembed(hidden[:, place], weight, bias))
    return logits[0].float().softmax(-1)


def _likeliest(subject: Subject, chances: Tensor, left_out: Sequence[int] = ()) -> list[tuple[int, float]]:
    known = chances[: subject.tokenizer.size].clone()
    known[list(left_out)] = -1
    values, tokens = known.topk(min(BEST, len(known)))
    return list(zip(tokens.tolist(), values.tolist(), strict=True))


def _named(subject: Subject, tokens: Sequence[int]) -> str:
    return subject.tokenizer.decode(tokens, skip_special=False)


def _spellings(subject: Subject, wanted: str, before: str) -> list[list[int]]:
    """Ids of what is wanted, as written and, where nothing parts it from the text, with a blank before it."""
    parted = wanted[:1].isspace() or before[-1:].isspace()
    forms = [wanted] if parted else [wanted, f" {wanted}"]
    return [ids for form in forms if (ids := subject.tokenizer.encode(form))]


def _continuation(subject: Subject, reading: Reading, places: list[int], wanted: str | None) -> Case:
    """What comes next: one token, or the words wanted, as likely as all their tokens together."""
    network, ids = subject.network, reading.ids
    best = _likeliest(subject, _chances(network, ids, -1))
    made = []
    for answer in [[best[0][0]]] if wanted is None else _spellings(subject, wanted, reading.text):
        read = [*ids, *answer[:-1]]
        longest = network.config.longest
        if longest is not None and len(read) > longest:
            raise HeptaError(f"text and answer have {len(read)} tokens, the model reads {longest}; shorten them")
        score = token_score(network, range(-len(answer), 0), answer)
        question = Question(torch.tensor(read), torch.tensor(places), score, embedding_of(network))
        with torch.no_grad():
            likely = float(score(question.ids[None]).exp())
        made.append(Target(_named(subject, answer), "log-probability", likely, question))
    if not made:
        raise HeptaError("--target is empty; name a word or an answer")
    target = max(made, key=lambda one: one.probability or 0.0)
    return Case("next", places, [target], [(_named(subject, [token]), chance) for token, chance in best])


def _masked(subject: Subject, reading: Reading, places: list[int], wanted: str | None) -> Case:
    """What a mask hides: one token."""
    masks = [place for place, piece in enumerate(reading.pieces) if piece.special == "mask"]
    if len(masks) != 1:
        raise HeptaError(f"the text has {len(masks)} [MASK]; write exactly one, where the word in question is hidden")
    chances = _chances(subject.network, reading.ids, masks[0])
    best = _likeliest(subject, chances, sorted(subject.tokenizer.special_ids))
    if wanted is None:
        token = best[0][0]
    else:
        single = [ids[0] for ids in _spellings(subject, wanted, "") if len(ids) == 1]
        if not single:
            raise HeptaError(f"--target {wanted!r} is more than one token, and [MASK] hides one; name a shorter word")
        token = max(single, key=lambda one: float(chances[one]))
    score = token_score(subject.network, masks, [token])
    question = Question(torch.tensor(reading.ids), torch.tensor(places), score, embedding_of(subject.network))
    target = Target(_named(subject, [token]), "log-probability", float(chances[token]), question)
    return Case("masked", places, [target], [(_named(subject, [i]), chance) for i, chance in best])


def _classes(classifier: Classifier, ids: list[int], places: list[int], wanted: str | None) -> Case:
    """The likeliest class and the next one, or the class wanted and the likeliest other; a number is one target."""
    task, length = classifier.task, torch.tensor([len(ids)])

    def scored(column: int) -> Score:
        def score(rows: Tensor) -> Tensor:
            logits = classifier(rows, length.expand(len(rows)))[:, column]
            return logits * task.std + task.mean if task.is_number else logits

        return score

    def question(column: int) -> Question:
        return Question(torch.tensor(ids), torch.tensor(places), scored(column), embedding_of(classifier.network))

    if task.is_number:
        if wanted is not None:
            raise HeptaError(f"--target {wanted!r}: this model tells a number, which has no classes; leave it out")
        return Case("number", places, [Target(task.labels[0], "value", None, question(0))], [])
    if wanted is not None and wanted not in task.labels:
        raise HeptaError(f"class {wanted!r} is unknown; {nearest(wanted, task.labels)}")
    with torch.no_grad():
        chances = classifier(torch.tensor([ids]), length)[0].softmax(-1).tolist()
    ranked = sorted(range(len(task.labels)), key=lambda column: -chances[column])
    first = ranked[0] if wanted is None else task.labels.index(wanted)
    chosen = [first, *(column for column in ranked if column != first)][:2]
    targets = [Target(task.labels[column], "logit", chances[column], question(column)) for column in chosen]
    return Case("class", places, targets, [(task.labels[column], chances[column]) for column in ranked[:BEST]])
