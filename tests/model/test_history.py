"""The models before attention: segments apart, gradients right, directories whole."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hepta.config import HeptaError
from hepta.model.families import network_class, preset
from hepta.model.feedforward import FeedForward
from hepta.model.history import FeedForwardShape, LSTMShape
from hepta.model.load import load_model, save_model
from hepta.model.lstm import LSTM, _Recurrence
from hepta.model.ngram import NGram, count_ngrams

V = 96
SHAPES = {
    "lstm": LSTMShape(vocab_size=V, hidden_size=24, num_layers=2, dropout=0.3),
    "lstm untied": LSTMShape(vocab_size=V, hidden_size=16, num_layers=1, tied=False),
    "feedforward": FeedForwardShape(vocab_size=V, hidden_size=16, intermediate_size=40, context=4),
    "feedforward untied": FeedForwardShape(vocab_size=V, hidden_size=16, intermediate_size=24, context=2, tied=False),
}


def noisy(shape: Any, scale: float = 0.4) -> Any:
    """Random weights large enough that every detail shows."""
    model, generator = network_class(shape)(shape), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def counted(order: int = 3) -> NGram:
    draw = np.random.default_rng(2)
    docs = [[0, *draw.zipf(1.4, n).clip(1, V - 2), 0] for n in draw.integers(2, 40, 80)]
    return NGram.of(count_ngrams(np.concatenate(docs), np.cumsum([len(d) for d in docs]), V, order))


MODELS = {**{name: lambda shape=shape: noisy(shape) for name, shape in SHAPES.items()}, "ngram": counted}


@pytest.mark.parametrize("name", MODELS)
def test_each_packed_segment_is_as_if_alone(name: str) -> None:
    """Trap S10: without the segments the logits differ by far more than rounding."""
    model, lengths = MODELS[name](), [3, 1, 30, 17, 2, 9]
    edges = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    ids = torch.from_numpy(np.random.default_rng(0).zipf(1.4, (2, edges[-1])).clip(1, V - 2))  # as was counted
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1)
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1)
    with torch.no_grad():
        packed = model(ids, segment_ids=segments, positions=positions)
        for start, end in pairwise(edges):
            torch.testing.assert_close(packed[:, start:end], model(ids[:, start:end]), rtol=0, atol=1e-5)
        assert (model(ids)[:, edges[1] :] - packed[:, edges[1] :]).abs().max() > 0.1


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_of_packed_segments_add_up(name: str) -> None:
    model, lengths = noisy(SHAPES[name]), [20, 5, 31]
    ids = torch.randint(0, V, (1, sum(lengths)), generator=torch.Generator().manual_seed(1))
    segments = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    labels = torch.randint(0, V, ids.shape, generator=torch.Generator().manual_seed(4))
    F.cross_entropy(model(ids, segments)[0], labels[0], reduction="sum").backward()
    packed = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    for piece, wanted in zip(ids.split(lengths, 1), labels.split(lengths, 1), strict=True):
        F.cross_entropy(model(piece)[0], wanted[0], reduction="sum").backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(packed[key], parameter.grad, rtol=1e-4, atol=1e-4)


def test_the_lstm_is_torchs_lstm() -> None:
    """Hidden states and every gradient, to 1e-5; gates are stored in another order."""
    model = noisy(SHAPES["lstm"])
    theirs = nn.LSTM(24, 24, 2, batch_first=True)

    def reordered(value: Tensor) -> Tensor:
        i, f, o, u = value.chunk(4)
        return torch.cat((i, f, u, o))

    names = {"weight_ih_l": "input.weight", "weight_hh_l": "recurrent.weight", "bias_ih_l": "input.bias"}
    with torch.no_grad():
        for layer in range(2):
            getattr(theirs, f"bias_hh_l{layer}").zero_()
            for name, ours in names.items():
                value = model.get_parameter(f"layers.{layer}.{ours}")
                getattr(theirs, f"{name}{layer}").copy_(reordered(value))
    ids = torch.randint(0, V, (3, 19), generator=torch.Generator().manual_seed(5))
    ours, expected = model.body(ids), theirs(model.embed_tokens(ids).detach() * 24**0.5)[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(6))
    (ours * weight).sum().backward()
    (expected * weight).sum().backward()
    for layer in range(2):
        for name, key in names.items():
            found = reordered(model.get_parameter(f"layers.{layer}.{key}").grad)
            torch.testing.assert_close(found, getattr(theirs, f"{name}{layer}").grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("resets", [False, True])
def test_the_gradient_in_time_is_the_numerical_one(resets: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    gates, weight, state = (
        torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((2, 6, 12), (12, 3), (2, 3))
    )
    keep = (torch.rand(6, 2, 1, generator=draw) > 0.4).double() if resets else None

    def run(gates: Tensor, weight: Tensor) -> Tensor:
        return _Recurrence.apply(gates, weight, keep, state, state)[0]  # pyright: ignore

    assert torch.autograd.gradcheck(run, (gates.requires_grad_(), weight.requires_grad_()))


def test_the_feed_forward_model_is_bengios_formula() -> None:
    model = noisy(SHAPES["feedforward"])
    ids = torch.randint(0, V, (11,), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        got, table = model(ids[None])[0], model.embed_tokens.weight
        for t in range(11):
            rows = [table[ids[t - back]] if t >= back else torch.zeros(16) for back in range(4)]
            x = 16**0.5 * torch.cat(rows)
            inner = torch.tanh(model.hidden.weight @ x + model.hidden.bias)
            y = model.output.weight @ inner + model.direct.weight @ x
            torch.testing.assert_close(got[t], table @ y, rtol=1e-5, atol=1e-5)


def test_dropout_acts_between_layers_in_training_only() -> None:
    model = noisy(SHAPES["lstm"])
    ids = torch.randint(0, V, (2, 9))
    torch.testing.assert_close(model(ids), model(ids))
    model.train()
    torch.manual_seed(1)
    first = model(ids)
    assert not torch.equal(first, model(ids))
    torch.manual_seed(1)
    torch.testing.assert_close(model(ids), first)


@pytest.mark.parametrize("name", MODELS)
def test_a_directory_gives_the_model_back(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert model.config.num_parameters == sum(
        p.numel() for key, p in model.named_parameters() if name != "ngram" or key.endswith("counts")
    )
    for (key, a), (_, b) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert a.dtype == b.dtype, key
        assert torch.equal(a, b)
    ids = torch.randint(0, V, (2, 13))
    torch.testing.assert_close(loaded(ids), model(ids), rtol=0, atol=0)


def test_ngrams_give_log_probabilities_to_a_head(tmp_path: Path) -> None:
    model, seen = counted(), []
    ids = torch.randint(0, V, (2, 7))
    logits = model(ids)
    model(ids, head=lambda rows, weight, bias: seen.append((rows, weight, bias)))
    assert seen[0][1:] == (None, None)
    torch.testing.assert_close(seen[0][0], logits)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(2, 7), rtol=0, atol=1e-5)
    expected = model.table.probabilities(np.array([[-1, int(ids[0, 0])], [int(ids[0, 3]), int(ids[0, 4])]]))
    np.testing.assert_allclose(logits[0, [0, 4]].double().exp(), expected, rtol=1e-5)
    save_model(model, tmp_path)
    torch.testing.assert_close(load_model(tmp_path, torch.bfloat16)(ids), logits)  # counts are never rounded


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(HeptaError, match="counted, not drawn"):
        network_class(preset("ngram"))(preset("ngram"))
    with pytest.raises(HeptaError, match="unknown; "):
        preset("ngram-8")
    assert preset("ngram").order == 5
    assert preset("ngram-2").order == 2


@pytest.mark.parametrize("name", ["lstm", "feedforward"])
def test_presets_are_as_large_as_nano(name: str) -> None:
    assert preset(name).num_parameters == pytest.approx(preset("nano").num_parameters, rel=0.03)
    assert type(network_class(preset(name))(preset(name))) in (LSTM, FeedForward)
