"""Attention in blocks, packed segments, padding and windows: who sees whom, and nothing else."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hepta.model.attention import BLOCK, as_bias, attend, visible
from hepta.model.config import ModelConfig
from hepta.model.decoder import Decoder

SHAPES = {
    "grouped": ModelConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16),
    "window": ModelConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_kv_heads=2,
        head_dim=16, family="mistral", sliding_window=9),
    "qk norm": ModelConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_kv_heads=1,
        head_dim=32, family="qwen3", qk_norm=True),
    "biases, windows in some layers": ModelConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_kv_heads=4,
        head_dim=16, family="qwen2", attention_bias=True, sliding_window=7,
        window_layers=(False, True, True), rope_scaling={"rope_type": "linear", "factor": 2.0}),
}  # fmt: skip


def noisy(config: ModelConfig) -> Decoder:
    model = Decoder(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 if parameter.ndim > 1 else 1 + noise * 0.2)
    return model


@pytest.mark.parametrize("length", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 17])
@pytest.mark.parametrize("masked", [False, True])
def test_block_attention_equals_softmax_attention(length: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(length)

    def draw(heads: int) -> Tensor:
        return torch.randn(2, heads, length, 16, generator=generator, dtype=torch.float64).requires_grad_()

    q, k, v = draw(6), draw(2), draw(2)
    segments = torch.arange(length) // 7
    seen = visible(torch.arange(length), torch.arange(length), None)
    if masked:
        seen = seen & (segments[:, None] == segments)
    ours = attend(q, k, v, as_bias(seen[None, None], q.dtype) if masked else None)
    wide_k, wide_v = k.repeat_interleave(3, 1), v.repeat_interleave(3, 1)
    scores = (q @ wide_k.transpose(-1, -2) / 4).masked_fill(~seen, float("-inf"))
    expected = scores.softmax(-1) @ wide_v
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    weight = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    for got, want in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("training", [False, True])
def test_each_packed_segment_is_as_if_alone(name: str, training: bool) -> None:
    """Trap S10: without the segments' mask this differs by far more than rounding."""
    model = noisy(SHAPES[name])
    lengths = [3, 1, 60, 17, 70, 9]
    edges = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    ids = torch.randint(0, 96, (2, edges[-1]), generator=torch.Generator().manual_seed(0))
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1)
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1)
    with torch.set_grad_enabled(training):
        packed = model(ids, segment_ids=segments, positions=positions)
        for start, end in pairwise(edges):
            alone = model(ids[:, start:end])
            torch.testing.assert_close(packed[:, start:end], alone, rtol=0, atol=1e-5)
        unmasked = model(ids, positions=positions)
    assert (unmasked[:, edges[2] :] - packed[:, edges[2] :]).abs().max() > 0.1


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_of_packed_segments_add_up(name: str) -> None:
    model, lengths = noisy(SHAPES[name]), [30, 5, 41]
    ids = torch.randint(0, 96, (1, sum(lengths)), generator=torch.Generator().manual_seed(1))
    segments = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), torch.arange(logits.shape[1]) % 96, reduction="sum")

    labels_restart = torch.cat([torch.arange(n) for n in lengths]) % 96
    F.cross_entropy(model(ids, segments, positions)[0], labels_restart, reduction="sum").backward()
    packed = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for piece in ids.split(lengths, dim=1):
        loss(model(piece)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(packed[key], parameter.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_left_padded_rows_are_as_if_alone(name: str) -> None:
    """Trap G1: padding in front is another segment, and positions count from the first real token."""
    model, pad = noisy(SHAPES[name]), 13
    ids = torch.randint(0, 96, (1, 40), generator=torch.Generator().manual_seed(2))
    row = torch.cat((torch.zeros(1, pad, dtype=torch.long), ids), dim=1)
    real = (torch.arange(40 + pad) >= pad)[None]
    positions = (torch.arange(40 + pad) - pad).clamp(min=0)[None]
    with torch.no_grad():
        padded = model(row, segment_ids=real.long(), positions=positions)[:, pad:]
        torch.testing.assert_close(padded, model(ids), rtol=0, atol=1e-5)


def test_the_head_callable_replaces_the_logits() -> None:
    model = noisy(SHAPES["grouped"])
    ids = torch.randint(0, 96, (2, 11))
    seen: list[tuple[int, ...]] = []

    def head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.extend((tuple(hidden.shape), tuple(weight.shape)))
        assert bias is None
        return F.linear(hidden, weight).sum()

    torch.testing.assert_close(model(ids, head=head), model(ids).sum())
    assert seen == [(2, 11, 64), (96, 64)]
