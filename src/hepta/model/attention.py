"""Softmax attention, causal or not: which positions are seen, and the products, fast in training on a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 128  # queries whose scores are alive at once; 64 and 256 were slower (docs/model.md)
_recorders: list[Callable[[Tensor], None]] = []  # called with the weights of every ``attend``; none, as a rule


def visible(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """Who sees whom: causal, at most ``window`` back. query (…, T), key (…, S) indices → bool (…, T, S)."""
    distance = query[..., :, None] - key[..., None, :]
    return (distance >= 0) & (distance < window) if window else distance >= 0


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as what is added to scores: 0 where seen, −∞ where not."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def causal_bias(
    length: int,
    segment_ids: Tensor | None,
    positions: Tensor,
    cached: bool,
    window: int | None,
    dtype: torch.dtype,
) -> Tensor | None:
    """What is added to a causal model's scores (B or 1, 1, T, S), −∞ where not seen; None is plain causal.

    With a cache a key's slot is its position, so slots not yet written, or written by padding, lie in
    the future of every query and need no mask of their own. Without one, order in the row is time.
    """
    if cached:
        slots = torch.arange(int(positions.max()) + 1, device=positions.device)
        return as_bias(visible(positions, slots, window)[:, None], dtype)
    if segment_ids is None and (window is None or window >= length):
        return None
    index = torch.arange(length, device=positions.device)
    mask = visible(index, index, window)[None]
    if segment_ids is not None:
        mask = mask & (segment_ids[:, :, None] == segment_ids[:, None, :])
    return as_bias(mask[:, None], dtype)


def segment_bias(segment_ids: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores of a model that sees both sides (B, 1, T, T): −∞ between documents."""
    if segment_ids is None:
        return None
    return as_bias((segment_ids[:, :, None] == segment_ids[:, None, :])[:, None], dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool = True) -> Tensor:
    """Grouped-query softmax attention.

    Args:
        q: queries (B, H, T, K).
        k, v: keys and values (B, H / groups, S, K).
        bias: added to the scores (B or 1, 1, T or 1, S), −∞ where not seen; None hides nothing more than ``causal``.
        causal: query t sees keys up to t + S − T (in training T = S); with a bias, the bias must say so too.

    Returns:
        (B, H, T, K)
    """
    if _recorders:
        weights = attention_weights(q, k, bias, causal)
        for recorder in _recorders:
            recorder(weights)
    if q.device.type == "cpu":
        grad = torch.is_grad_enabled()
        return _BlockAttention.apply(q, k, v, bias, causal) if grad else _in_blocks(q, k, v, bias, causal)
    plain, shared = causal and bias is None, q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=plain, enable_gqa=shared)


@torch.no_grad()
def attention_weights(q: Tensor, k: Tensor, bias: Tensor | None, causal: bool = True) -> Tensor:
    """The probabilities by which ``attend`` weighs the values (B, H, T, S), in float32; arguments as there."""
    shared = q.float().unflatten(1, (k.shape[1], -1))  # (B, H / groups, groups, T, K)
    scores = (shared * q.shape[-1] ** -0.5 @ k.float()[:, :, None].transpose(-1, -2)).flatten(1, 2)
    _add_bias(scores, bias, 0, causal)
    return scores.softmax(-1)


@contextmanager
def record_attention(reduce: Callable[[Tensor], Any] | None = None) -> Iterator[list[Any]]:
    """Within the block, keep the probabilities of every ``attend``: those of layer 0 first.

    Args:
        reduce: makes what is kept of one call's probabilities (B, H, T, S) float32; None keeps them as they are, which
            for long texts is H · T² · 4 bytes a layer.

    Yields:
        a list that grows by one entry for each call of ``attend``.
    """
    kept: list[Any] = []

    def recorder(weights: Tensor) -> None:
        kept.append(weights if reduce is None else reduce(weights))

    _recorders.append(recorder)
    try:
        yield kept
    finally:
        _recorders.remove(recorder)


def _blocks(length: int, total: int, causal: bool) -> list[tuple[int, int, int]]:
    """(first query, end of queries, end of the keys they may see) of each block."""
    ends = [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
    return [(start, end, end + total - length if causal else total) for start, end in ends]


def _in_blocks(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, kept: list[Tensor] | None = None
) -> Tensor:
    """Attention over blocks of queries, each with the keys it may see.

    On a CPU this is 2 to 10 times faster than ``scaled_dot_product_attention``: of a causal square the later half
    of the keys is never touched, heads that share keys share one product, and a block's scores stay in cache from
    product to softmax to product.

    Args:
        q, k, v, bias, causal: as in ``attend``.
        kept: receives each block's probabilities, for the backward pass.
    """
    (batch, heads, length, width), (shared, total) = q.shape, k.shape[1:3]
    rows = batch * shared
    q = (q * width**-0.5).reshape(rows, heads // shared, length, width)
    k, v = k.reshape(rows, total, width), v.reshape(rows, total, width)
    parts = []
    for start, end, last in _blocks(length, total, causal):
        scores = torch.bmm(q[:, :, start:end].reshape(rows, -1, width), k[:, :last].transpose(1, 2))
        _add_bias(scores.view(batch, heads, end - start, last), bias, start, causal)
        torch.softmax(scores, -1, out=scores)
        parts.append(torch.bmm(scores, v[:, :last]).view(rows, heads // shared, -1, width))
        if kept is not None:
            kept.append(scores)
    return torch.cat(parts, 2).view(batch, heads, length, width)


def _add_bias(scores: Tensor, bias: Tensor | None, start: int, causal: bool) -> None:
    """Hide the unseen from one block's scores (B, H, queries, keys), in place."""
    size, last = scores.shape[2:]
    if bias is not None:
        scores += bias[..., :last] if bias.shape[2] == 1 else bias[:, :, start : start + size, :last]
    elif causal:  # only the square on the diagonal holds any future
        index = torch.arange(size, device=scores.device)
        scores[..., start:] += as_bias(visible(index, index, None), scores.dtype)


def _sum_prefixes(parts: list[Tensor]) -> Tensor:
    """Sum of tensors (R, n_i, K), n_i rising, each standing for the first n_i of the last's rows.

    Stretch by stretch, so that a compiler makes one pass of it; adding to slices in place would be a pass for each.
    """
    ends = sorted({part.shape[1] for part in parts})
    stretches = []
    for first, end in zip([0, *ends[:-1]], ends, strict=True):
        stretch, *more = (part[:, first:end] for part in parts if part.shape[1] >= end)
        for one in more:
            stretch = stretch + one
        stretches.append(stretch)
    return torch.cat(stretches, 1)


class _BlockAttention(torch.autograd.Function):
    """``_in_blocks`` with its gradient: probabilities are kept, not computed again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
        kept: list[Tensor] = []
        y = _in_blocks(q, k, v, bias, causal, kept)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.causal = causal
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *kept = ctx.saved_tensors
        (batch, heads, length, width), (shared, total) = q.shape, k.shape[1:3]
        rows, shape = batch * shared, (batch * shared, heads // shared, length, width)
        q, dy = (q * width**-0.5).reshape(shape), grads[0].reshape(shape)
        k, v = k.reshape(rows, total, width), v.reshape(rows, total, width)
        dq_parts, dk_parts, dv_parts = [], [], []
        for (start, end, last), p in zip(_blocks(length, total, ctx.causal), kept, strict=True):
            d = dy[:, :, start:end].reshape(rows, -1, width)
            dp = torch.bmm(d, v[:, :last].transpose(1, 2))
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
            dq_parts.append(torch.bmm(ds, k[:, :last]).view(rows, heads // shared, -1, width))
            dk_parts.append(torch.bmm(ds.transpose(1, 2), q[:, :, start:end].reshape(d.shape)))
            dv_parts.append(torch.bmm(p.transpose(1, 2), d))
        dk, dv = _sum_prefixes(dk_parts), _sum_prefixes(dv_parts)
        dq = torch.cat(dq_parts, 2).mul_(width**-0.5).view(batch, heads, length, width)
        return dq, dk.view(batch, shared, total, width), dv.view(batch, shared, total, width), None, None
