"""Sampling against a slow, obvious reference on fixed logits (trap G11)."""

import math

import pytest
import torch
import transformers
from torch import Tensor

from hepta.config import HeptaError
from hepta.generation.sampling import Sampling, draw, penalize, probabilities

LOGITS = [2.0, 1.0, 0.5, 0.49, 0.0, -1.0, -1.5, -30.0]
CASES = [
    Sampling(1.0), Sampling(0.3), Sampling(2.5), Sampling(1.0, top_k=1), Sampling(1.0, top_k=3),
    Sampling(1.0, top_k=99), Sampling(1.0, top_p=0.001), Sampling(1.0, top_p=0.6),
    Sampling(0.7, top_p=0.95), Sampling(1.0, min_p=0.2),
    Sampling(1.0, min_p=0.999), Sampling(1.3, top_k=5, top_p=0.8, min_p=0.15),
]  # fmt: skip


def brute_force(logits: list[float], sampling: Sampling) -> list[float]:
    """The definitions, one token at a time, in Python's floats."""

    def softmax(values: list[float]) -> list[float]:
        weights = [math.exp(value) for value in values]
        return [w / sum(weights) for w in weights]

    values = [value / sampling.temperature for value in logits]
    order = sorted(range(len(values)), key=lambda i: -values[i])
    if sampling.top_k:
        for i in order[sampling.top_k :]:
            values[i] = -math.inf
    p, total = softmax(values), 0.0
    for i in order:
        if total >= sampling.top_p:  # the likelier ones reach it already
            values[i] = -math.inf
        total += p[i]
    p = softmax(values)
    p = [x if x >= sampling.min_p * max(p) else 0.0 for x in p]
    return [x / sum(p) for x in p]


@pytest.mark.parametrize("sampling", CASES)
def test_distribution_equals_the_definition(sampling: Sampling) -> None:
    shuffled = torch.randperm(len(LOGITS), generator=torch.Generator().manual_seed(1)).tolist()
    rows = [LOGITS, [LOGITS[i] for i in shuffled]]
    got = probabilities(torch.tensor(rows), sampling)
    expected = torch.tensor([brute_force(row, sampling) for row in rows])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampling", CASES)
def test_distribution_equals_transformers(sampling: Sampling) -> None:
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(2)) * 2
    expected: Tensor = scores
    steps = [transformers.TemperatureLogitsWarper(sampling.temperature)]
    steps += [transformers.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    steps += [transformers.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    steps += [transformers.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    for step in steps:
        expected = step(torch.zeros(4, 1, dtype=torch.long), expected)
    torch.testing.assert_close(probabilities(scores, sampling), expected.softmax(-1), rtol=0, atol=1e-6)


def test_repetition_penalty_equals_transformers() -> None:
    scores, ids = torch.tensor([LOGITS, LOGITS]), torch.tensor([[0, 5, 5], [1, 1, 7]])
    seen = torch.zeros(2, len(LOGITS), dtype=torch.bool).scatter(1, ids, True)
    expected = transformers.RepetitionPenaltyLogitsProcessor(1.3)(ids, scores.clone())
    torch.testing.assert_close(penalize(scores, seen, 1.3), expected)


def test_draws_follow_the_distribution_and_never_take_probability_zero() -> None:
    p = torch.tensor([[0.0, 0.5, 0.0, 0.2, 0.3, 0.0]])
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    counts = draw(p.expand(10_000, -1), uniform).bincount(minlength=6)
    assert (counts - torch.tensor([0, 5000, 0, 2000, 3000, 0])).abs().max() <= 1
    edges = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert draw(p.expand(2, -1), edges).tolist() == [1, 4]


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"temperature": math.nan}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1},
              {"min_p": 1.0}, {"repetition_penalty": 0.0}],
)  # fmt: skip
def test_options_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(HeptaError, match=f"{next(iter(wrong))}: must be"):
        Sampling(**wrong)  # pyright: ignore[reportArgumentType]
