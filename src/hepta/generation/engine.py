"""The batched KV-cache engine: prompts in, completions out, greedy or sampled."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from hepta.config import HeptaError
from hepta.generation.sampling import Sampling, draw, penalize, probabilities
from hepta.generation.text import TextStream
from hepta.model.network import Cache, Network, unembed

FinishReason = Literal["stop", "length"]


OTHER_VERBS = {
    "masked": "a masked model does not continue text; fill its masks with hepta generate --fill",
    "translation": "a translator does not continue text; translate with hepta predict",
}


class Vocabulary(Protocol):
    """What the engine needs of a tokenizer."""

    size: int
    special_ids: set[int]
    stop_ids: list[int]

    def token_bytes(self, token: int) -> bytes: ...


@dataclass
class Completion:
    """What followed one prompt.

    Attributes:
        ids: generated ids, without the stop id.
        text: of ``ids``, up to the first stop string.
        finish_reason: ``stop`` (a stop id or stop string) or ``length`` (max_new_tokens reached).
        logprobs: natural log-probability of each id under the model itself: temperature 1, nothing cut.
    """

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason = "length"
    logprobs: list[float] = field(default_factory=list)


@dataclass
class _Request:
    """A prompt on its way: its completion so far, its text stream, its own random numbers."""

    prompt: list[int]
    limit: int  # most ids generated
    text: TextStream
    generator: torch.Generator
    done: bool = False
    piece: str = ""  # text that became certain in the last step
    completion: Completion = field(default_factory=Completion)

    def take(self, token: int, logprob: float, stop_ids: set[int]) -> None:
        """Add a token, and finish at a stop id, a stop string or the length."""
        completion = self.completion
        self.piece = ""
        if token in stop_ids:
            self.done, completion.finish_reason = True, "stop"
        else:
            completion.ids.append(token)
            completion.logprobs.append(logprob)
            self.piece = self.text.push(token)
            if self.text.stopped:
                self.done, completion.finish_reason = True, "stop"
            elif len(completion.ids) >= self.limit:
                self.done = True
        if self.done:
            self.piece += self.text.finish()
        completion.text += self.piece


class Engine:
    """Generates from a decoder, many prompts at a time.

    A request's result depends on its prompt, options and seed, not on what else is in the batch (up to
    the last bits of float32 products, whose order of summation may differ with the number of rows).

    Args:
        model: computes in its weights' dtype while generating.
        tokenizer: a ``hepta.tokenizer.load.Tokenizer``.
        batch_size: most prompts computed together; the cache grows with it.
    """

    def __init__(self, model: Network, tokenizer: Vocabulary, batch_size: int = 32) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        if model.config.kind != "causal":
            raise HeptaError(OTHER_VERBS[model.config.kind])
        if tokenizer.size > model.config.vocab_size:
            raise HeptaError(
                f"the tokenizer has {tokenizer.size} ids, the model {model.config.vocab_size} rows; "
                "use the tokenizer that belongs to the model"
            )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] | None = None,
        stop: Sequence[str] = (),
    ) -> list[Completion]:
        """Continue every prompt.

        Args:
            prompts: token ids, of any lengths.
            max_new_tokens: most ids generated for each.
            temperature, top_k, top_p, min_p, repetition_penalty: see ``Sampling``.
            seed: one for all (equal prompts then give equal texts), or one for each prompt.
            stop_ids: ids that end a completion; None: the tokenizer's. Other special ids and padded rows of
                the vocabulary are never chosen.
            stop: strings that end it; neither they nor what follows is in the text.

        Returns:
            completions in the order of the prompts.

        Raises:
            HeptaError: an empty prompt, an id outside the vocabulary, an option out of range.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        requests = self._requests(prompts, max_new_tokens, seed, stop)
        by_length = sorted(requests, key=lambda request: len(request.prompt))  # little padding in each batch
        for start in range(0, len(requests), self.batch_size):
            for _ in self._run(by_length[start : start + self.batch_size], sampling, max_new_tokens, stop_ids):
                pass
        return [request.completion for request in requests]

    def stream(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop_ids: Sequence[int] | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Continue one prompt, giving text as soon as it is certain: whole characters, no stop string.

        The pieces joined are ``generate``'s text. Arguments and errors are those of ``generate``.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        requests = self._requests([prompt_ids], max_new_tokens, seed, stop)
        for _ in self._run(list(requests), sampling, max_new_tokens, stop_ids):
            if requests[0].piece:
                yield requests[0].piece

    def _requests(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, seed: int | Sequence[int], stop: Sequence[str]
    ) -> list[_Request]:
        if max_new_tokens < 1:
            raise HeptaError(f"max_new_tokens: must be at least 1, found {max_new_tokens}")
        seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(prompts):
            raise HeptaError(f"seed: {len(seeds)} seeds for {len(prompts)} prompts; give one, or one for each")
        requests = []
        for number, (prompt, own) in enumerate(zip(prompts, seeds, strict=True), 1):
            ids = [int(i) for i in prompt]
            if not ids:
                raise HeptaError(f"prompt {number}: is empty; begin with the tokenizer's bos id at least")
            if wrong := [i for i in ids if not 0 <= i < self.model.config.vocab_size]:
                raise HeptaError(f"prompt {number}: id {wrong[0]} is outside the vocabulary of {self.tokenizer.size}")
            generator = torch.Generator().manual_seed(own)
            longest = self.model.config.longest
            if longest is not None and len(ids) >= longest:
                raise HeptaError(f"prompt {number}: has {len(ids)} tokens, the model reads {longest}; shorten it")
            limit = max_new_tokens if longest is None else min(max_new_tokens, longest - len(ids))
            requests.append(_Request(ids, limit, TextStream(self.tokenizer.token_bytes, stop), generator))
        return requests

    def _run(
        self, live: list[_Request], sampling: Sampling, max_new_tokens: int, stop_ids: Sequence[int] | None
    ) -> Iterator[None]:
        """Generate for a batch, one token a step; yields after each, results stand in the requests."""
        stops = set(self.tokenizer.stop_ids if stop_ids is None else stop_ids)
        weight = self.model.output_weight
        capacity = max(len(request.prompt) for request in live) + max_new_tokens
        cache = self.model.make_cache(len(live), capacity, weight.dtype, weight.device)
        banned = torch.zeros(weight.shape[0], dtype=torch.bool, device=weight.device)
        banned[self.tokenizer.size :] = True
        banned[[i for i in self.tokenizer.special_ids if i not in stops]] = True
        ids, positions = [r.prompt for r in live], [list(range(len(r.prompt))) for r in live]
        while True:
            with evaluating(self.model):
                logits = self._logits(ids, positions, cache)
                tokens, logprobs = _choose(logits, live, sampling, banned)
            for request, token, logprob in zip(live, tokens, logprobs, strict=True):
                request.take(token, logprob, stops)
            yield
            for row in reversed([i for i, request in enumerate(live) if request.done]):
                cache.drop(row)
                live[row] = live[-1]
                live.pop()
            if not live:
                return
            ids = [[r.completion.ids[-1]] for r in live]
            positions = [[len(r.prompt) + len(r.completion.ids) - 1] for r in live]

    def _logits(self, ids: list[list[int]], positions: list[list[int]], cache: Cache) -> Tensor:
        """Logits (B, V) float32 after each row's last id; rows are padded on the right."""
        device = self.model.output_weight.device
        longest = max(map(len, ids))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=device)
        where = torch.tensor([row + list(range(len(row), longest)) for row in positions], device=device)
        last = torch.tensor([len(row) - 1 for row in ids], device=device)

        def head(hidden: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:  # of the last position only
            rows = hidden[torch.arange(len(ids), device=device), last]
            return unembed(rows, weight, bias)

        return self.model(padded, positions=where, cache=cache, head=head).float()


def _choose(
    logits: Tensor, live: Sequence[_Request], sampling: Sampling, banned: Tensor
) -> tuple[list[int], list[float]]:
    """The next token of each request and its log-probability under the model itself."""
    model_logprobs = logits.log_softmax(-1)
    if sampling.repetition_penalty != 1:
        seen = torch.zeros_like(logits, dtype=torch.bool)
        for row, request in enumerate(live):
            seen[row, request.prompt + request.completion.ids] = True
        logits = penalize(logits, seen, sampling.repetition_penalty)
    logits.masked_fill_(banned, float("-inf"))
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        uniform = [torch.rand((), generator=r.generator, dtype=torch.float64) for r in live]
        tokens = draw(probabilities(logits, sampling), torch.stack(uniform).to(logits.device))
    return tokens.tolist(), model_logprobs.gather(-1, tokens[:, None]).squeeze(-1).tolist()


@contextmanager
def evaluating(model: Network) -> Iterator[None]:
    """No gradients, no dropout, products in the weights' own dtype; the model is put back as it was.

    During training the weights are float32 masters: casting all of them for every token would cost more
    than the products, and this way a sample is what the saved model would say.
    """
    training, dtype = model.training, model.compute_dtype
    if training:  # a walk over all modules: as long as a step of a small model
        model.eval()
    model.compute_dtype = None
    try:
        sharded = hasattr(model, "unshard")  # whose buffers, made in inference mode, could not be used in training
        with torch.no_grad() if sharded else torch.inference_mode():
            yield
    finally:
        if training:
            model.train()
        model.compute_dtype = dtype
