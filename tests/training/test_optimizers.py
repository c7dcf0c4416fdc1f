"""Promises of the optimizers: each against its formula, resumed bit for bit, as large as planned."""

import gc
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import SHAPE, Stopped, crash_at, losses, tiny_job, tiny_run
from torch import Tensor

from hepta.config import HeptaError, build, parse_overrides
from hepta.model.decoder import Decoder
from hepta.model.families import network_class
from hepta.model.history import LSTMShape
from hepta.model.learned import BertShape, GPT2Shape
from hepta.model.network import Network
from hepta.planning.memory import Setting, memory
from hepta.planning.rates import rate_factor
from hepta.training import muon
from hepta.training.adamw8bit import BLOCK, POWERS, AdamW8bit, decode, decoding_table, encode
from hepta.training.config import PretrainConfig, TrainingConfig
from hepta.training.muon import TOGETHER, MuonMatrices
from hepta.training.optimizer import (
    EMBEDDINGS,
    layer_shares,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
)  # fmt: skip
from hepta.training.pretrain import refuse_layer_decay

NAMES = ("adamw", "muon", "adafactor", "sgd", "adamw8bit")
BOUND = 2 ** (1 / 16) - 1  # relative error of a code


def fresh(tied: bool = True) -> Decoder:
    model = Decoder(SHAPE.replace(tied=tied))
    model.init_weights(5)
    return model


def give_gradients(model: Decoder, seed: int, scale: float = 1e-3) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def stepped(name: str, steps: int, lr: float, decay: float = 0.0) -> tuple[Decoder, list[dict[str, Tensor]]]:
    """A model after some steps, and the float64 gradients that it was given."""
    model, given = fresh(tied=False), []
    optimizer = make_optimizer(model, decay, name)
    set_learning_rate(optimizer, lr)
    for step in range(steps):
        give_gradients(model, step)
        given.append({key: p.grad.double() for key, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
    return model, given


def followed(update: Callable[[Tensor, list[Tensor]], Tensor], steps: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What a formula makes of the fresh weights, in float64; it is given all gradients so far."""
    weights = {name: p.detach().double() for name, p in fresh(tied=False).named_parameters()}
    for last in range(1, len(steps) + 1):
        for name, weight in weights.items():
            weights[name] = update(weight, [given[name] for given in steps[:last]])
    return weights


def average(values: list[Tensor], beta: float) -> Tensor:
    """The exponential average of values, its start from zero put right."""
    t = len(values)
    return sum((1 - beta) * beta ** (t - 1 - i) * v for i, v in enumerate(values)) / (1 - beta**t)  # type: ignore


def adamw_formula(weight: Tensor, given: list[Tensor]) -> Tensor:
    m, v = average(given, 0.9), average([g * g for g in given], 0.95)
    decay = 0.1 if weight.ndim == 2 and weight.shape[0] != SHAPE.vocab_size else 0.0
    return weight * (1 - 1e-2 * decay) - 1e-2 * m / (v.sqrt() + 1e-8)


def sgd_formula(weight: Tensor, given: list[Tensor]) -> Tensor:
    """Nesterov momentum, its buffer started at the first gradient."""
    buffer = torch.zeros_like(weight)
    for g in given:
        buffer = 0.9 * buffer + g
    return weight - 1e-2 * (given[-1] + 0.9 * buffer)


def adafactor_formula(weight: Tensor, given: list[Tensor]) -> Tensor:
    """Shazeer & Stern 2018, algorithms 4 and 5, β₂ = 1 − t^−0.8, relative steps of at most the rate."""
    v: list[Tensor] = []
    for t, g in enumerate(given, 1):
        share = t**-0.8
        seen = [g * g] if g.ndim == 1 else [(g * g).mean(1), (g * g).mean(0)]
        v = [s if t == 1 else (1 - share) * old + share * s for old, s in zip(v or seen, seen, strict=True)]
    estimate = v[0] if len(v) == 1 else v[0][:, None] * v[1][None, :] / v[0].mean()
    update = given[-1] / estimate.sqrt()
    update = update / max(1.0, float(update.square().mean().sqrt()))
    size = max(1e-3, float(weight.square().mean().sqrt()))
    return weight - min(1e-2, len(given) ** -0.5) * size * update


@pytest.mark.parametrize(("name", "formula"), [("sgd", sgd_formula), ("adafactor", adafactor_formula)])
def test_updates_are_those_of_the_formula_in_float64(name: str, formula: Callable[..., Tensor]) -> None:
    model, given = stepped(name, 3, 1e-2)
    wanted = followed(formula, given)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.double(), wanted[key], rtol=1e-4, atol=2e-7)


def test_adamw_updates_are_those_of_the_formula_in_float64() -> None:
    model, given = stepped("adamw", 3, 1e-2, decay=0.1)
    wanted = followed(adamw_formula, given)
    decayed = {"lm_head.weight"}  # of the vocabulary's size, and no embedding
    for key, parameter in model.named_parameters():
        if key not in decayed:
            torch.testing.assert_close(parameter.double(), wanted[key], rtol=1e-4, atol=2e-7)


def test_eight_bits_follow_adamw_within_the_error_of_their_codes() -> None:
    """The first step is AdamW's own; later ones differ by at most what two moments off by 4.4 % allow."""
    first, given = stepped("adamw8bit", 1, 1e-2)
    plain = followed(lambda w, g: w - 1e-2 * g[-1] / (g[-1].abs() + 1e-8), given)
    for key, parameter in first.named_parameters():
        torch.testing.assert_close(parameter.double(), plain[key], rtol=1e-4, atol=2e-7)
    model, given = stepped("adamw8bit", 30, 1e-3)
    exact = stepped("adamw", 30, 1e-3)[0]
    begun = dict(fresh(tied=False).named_parameters())
    for (key, parameter), wanted in zip(model.named_parameters(), exact.parameters(), strict=True):
        apart, moved = (parameter - wanted).detach(), (wanted - begun[key]).detach()
        assert float(apart.norm() / moved.norm()) < 0.06, key


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("spread", [0.0, 2.0, 8.0])
def test_codes_keep_every_value_within_their_bound(signed: bool, spread: float) -> None:
    """A factor 2^(1/16) down to the last power; what is smaller becomes that power, or where it has a sign, zero."""
    generator = torch.Generator().manual_seed(1)
    count = 40 * BLOCK + 77
    values = torch.randn(count, generator=generator) * torch.exp(spread * torch.randn(count, generator=generator))
    values[:BLOCK] = 0
    values = values if signed else values.abs()
    codes, largest = encode(values, signed)
    found = decode(codes, largest, decoding_table(signed))
    assert codes.dtype == torch.uint8
    assert (codes.shape, found.shape, largest.shape) == (values.shape, values.shape, (41,))
    least = largest.repeat_interleave(BLOCK)[:count] * 2.0 ** (-(POWERS[signed] - 1) / 8)
    inside = values.abs() >= least
    assert float(((found - values).abs() / values.abs())[inside & (values != 0)].max()) <= BOUND * (1 + 1e-5)
    assert bool(((found - values).abs() <= least)[~inside].all())
    assert bool((found[:BLOCK] == 0).all())
    assert bool((found.sign() * values.sign() >= 0).all()), "no value changes its sign"
    if not signed:
        assert bool((found[values > 0] > 0).all()), "a second moment never becomes zero"


def test_second_moment_of_eight_bits_sinks_when_gradients_cease() -> None:
    """A code too coarse for β₂ would round each step's 5 % away; here it becomes one code, 8.3 %."""
    weight = torch.nn.Parameter(torch.zeros(BLOCK))
    optimizer = AdamW8bit([weight], 1e-3, (0.9, 0.95), 1e-8)
    for step in range(100):
        weight.grad = torch.zeros(BLOCK)
        weight.grad[: BLOCK // 2] = 1.0
        if step < 20:
            weight.grad[BLOCK // 2 :] = 1.0
        optimizer.step()
    state = optimizer.state[weight]
    v = decode(state["exp_avg_sq"], state["exp_avg_sq_absmax"], decoding_table(False))
    when_ceased = 1 - 0.95**20
    assert 0.9 * when_ceased * 2 ** (-80 / 8) < float(v[-1]) < when_ceased * 0.95**80
    assert float(v[0]) == pytest.approx(1.0, rel=0.06)


def test_muon_moves_hidden_matrices_by_an_orthogonal_step_and_the_rest_as_adamw() -> None:
    """Against an explicit SVD: U·Vᵀ of the gradient, singular values within Newton–Schulz's 0.7 to 1.2."""
    model, given = stepped("muon", 1, 1e-2)
    for name, begun in fresh(tied=False).named_parameters():
        step = (begun - model.get_parameter(name)).detach().double() / 1e-2
        if "proj" in name:
            u, _, vt = torch.linalg.svd(given[0][name], full_matrices=False)
            inner = u.T @ (step / (0.2 * math.sqrt(max(step.shape)))) @ vt.T
            sizes = inner.diagonal()
            assert 0.65 < float(sizes.min()) <= float(sizes.max()) < 1.25, name
            assert float((inner - torch.diag(sizes)).abs().max()) < 0.05, name
            rms = float(step.square().mean().sqrt())
            assert 0.1 < rms < 0.3, "elements as large as AdamW's usual ones"
        else:
            wanted = given[0][name] / (given[0][name].abs() + 1e-8) * (EMBEDDINGS if "embed" in name else 1.0)
            torch.testing.assert_close(step, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("most", [TOGETHER, 1])
def test_muon_of_equal_shapes_is_torchs_of_one_at_a_time(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Five steps of wide, tall and square matrices, momentum rising; products in bfloat16 differ by a few of 256."""
    monkeypatch.setattr(muon, "TOGETHER", most)
    monkeypatch.setattr(muon, "RISING", 4.0)
    generator = torch.Generator().manual_seed(3)
    shapes = [(24, 64), (64, 24), (32, 32), (24, 64), (64, 24), (24, 64)]
    begun = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in begun] for _ in range(2))
    keys = {"lr": 1e-2, "weight_decay": 0.3}
    both = [
        MuonMatrices([{"params": ours, **keys}]), torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **keys)
    ]  # fmt: skip
    for momentum in (0.85, 0.875, 0.9, 0.925, 0.95):
        both[1].param_groups[0]["momentum"] = momentum
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in both:
            optimizer.step()
    for one, other, first in zip(ours, theirs, begun, strict=True):
        assert float((one - other).norm()) < 0.01 * float((one - first).norm())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_optimizer_decays_matrices_that_are_no_embeddings_only(name: str, tied: bool) -> None:
    """Trap R11, seen on the weights: gradients of zero, so that what moves is decay, as much as AdamW's."""
    model, begun = fresh(tied), fresh(tied)
    optimizer = make_optimizer(model, 0.1, name)
    set_learning_rate(optimizer, 1e-2 * rate_factor(name, SHAPE.hidden_size))
    for _ in range(40):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    for (key, now), then in zip(model.named_parameters(), begun.parameters(), strict=True):
        if "proj" in key or key == "lm_head.weight":
            wanted = then * (1 - 1e-3) ** 40
            torch.testing.assert_close(now, wanted, rtol=2e-2 if name == "sgd" else 1e-4, atol=1e-7, msg=key)
        else:
            assert torch.equal(now, then), key


@pytest.mark.parametrize("name", NAMES)
def test_state_is_as_large_as_planned(name: str) -> None:
    for tied in (True, False):
        model = fresh(tied)
        optimizer = make_optimizer(model, 0.1, name)
        give_gradients(model, 0)
        optimizer.step()
        tensors = {key: t for key, t in optimizer_tensors(model, optimizer).items() if not key.endswith(".step")}
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        planned = memory(model.config, "full", Setting(32, optimizer=name)).optimizer
        vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)
        tables = (1 if tied else 2) * (SHAPE.vocab_size + SHAPE.hidden_size)
        unplanned = {"adafactor": 4 * (vectors + tables), "adamw8bit": 8 * len(tensors)}  # blocks that are not full
        assert 0 <= held - planned <= unplanned.get(name, 0)


def test_muon_goes_on_from_a_state_without_a_count_as_it_began() -> None:
    """Checkpoints made before momentum rose hold no step: it stood at 0.95 all along."""
    matrix = torch.nn.Parameter(torch.eye(4, 6))
    matrix.grad = torch.ones(4, 6)
    optimizer = MuonMatrices([{"params": [matrix], "lr": 1e-2}])
    optimizer.state[matrix]["momentum_buffer"] = torch.ones(4, 6)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[matrix]["momentum_buffer"], torch.ones(4, 6))
    matrix.grad = torch.zeros(4, 6)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[matrix]["momentum_buffer"], torch.full((4, 6), 0.95))


def test_muon_without_hidden_matrices_is_refused() -> None:
    model = fresh()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "proj" not in name
    with pytest.raises(HeptaError, match="hidden matrix"):
        make_optimizer(model, 0.1, "muon")


@pytest.mark.parametrize("name", NAMES[1:])
def test_each_optimizer_learns_and_resumes_bit_exactly(name: str, tmp_path: Path) -> None:
    """Trap R7: its state is in the checkpoint, whole."""
    keys = {"optimizer": name, "lr": "auto", "max_steps": 12}
    whole = tiny_run(tmp_path / "whole", tiny_job(tmp_path / "whole"), **keys)
    run = tmp_path / "broken"
    with pytest.raises(Stopped):
        tiny_run(run, crash_at(tiny_job(run), 36), **keys)
    gc.collect()  # the run's lock goes with its frames
    assert tiny_run(run, tiny_job(run), **keys).weights_sha256 == whole.weights_sha256
    assert losses(run) == losses(tmp_path / "whole")
    assert losses(run)[-1][1] < losses(run)[0][1] - 0.02


def test_a_rate_is_a_number_above_zero_or_a_word() -> None:
    for word, value in {"auto": "auto", "find": "find", "0.1": 0.1, "1": 1.0}.items():
        assert build(TrainingConfig, parse_overrides(["output=x", f"lr={word}"])).lr == value
    for word in ("-1", "0", "true_", "nan"):
        with pytest.raises(HeptaError, match="lr: give a number above 0, auto or find"):
            build(TrainingConfig, parse_overrides(["output=x", f"lr={word}"]))


def shares_of(model: Network) -> dict[str, float]:
    shares = layer_shares(model, 0.5)
    return {name: shares[id(parameter)] for name, parameter in model.named_parameters()}


def test_layers_learn_slower_the_more_layers_lie_above_them() -> None:
    """Embeddings and what goes with them lowest, each layer half of the next, final norm and head at the peak."""
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2}
    found = shares_of(fresh(tied=False))
    assert found["model.embed_tokens.weight"] == 0.125
    assert found["model.norm.weight"] == found["lm_head.weight"] == 1.0
    assert {share for name, share in found.items() if ".layers.0." in name} == {0.25}
    assert {share for name, share in found.items() if ".layers.1." in name} == {0.5}
    assert shares_of(fresh(tied=True))["model.embed_tokens.weight"] == 0.125, "a tied head is the embedding it is"
    gpt2 = shares_of(network_class(GPT2Shape(**sizes, max_positions=32))(GPT2Shape(**sizes, max_positions=32)))
    assert (gpt2["transformer.wpe.weight"], gpt2["transformer.ln_f.weight"]) == (0.125, 1.0)
    bert = shares_of(network_class(BertShape(**sizes, max_positions=32))(BertShape(**sizes, max_positions=32)))
    assert bert["bert.embeddings.LayerNorm.weight"] == 0.125, "it comes before the first layer"
    assert bert["cls.predictions.transform.dense.weight"] == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_rates_by_layer_scale_each_step(name: str) -> None:
    steps = []
    for decay in (1.0, 0.5):
        model, begun = fresh(tied=False), fresh(tied=False)
        optimizer = make_optimizer(model, 0.0, name, decay)
        set_learning_rate(optimizer, 1e-3)
        give_gradients(model, 0)
        optimizer.step()
        moved = zip(model.named_parameters(), begun.parameters(), strict=True)
        steps.append({key: (now - then).detach() for (key, now), then in moved})
    shares = shares_of(fresh(tied=False))
    for key, whole in steps[0].items():
        torch.testing.assert_close(steps[1][key], whole * shares[key], rtol=1e-3, atol=2e-7)


def test_rates_by_layer_are_refused_where_they_make_no_sense(tmp_path: Path) -> None:
    shape = LSTMShape(vocab_size=320, hidden_size=32, num_layers=1)
    with pytest.raises(HeptaError, match="layer_decay: this model has no stack of layers"):
        layer_shares(network_class(shape)(shape), 0.5)
    config = build(PretrainConfig, {"output": tmp_path / "run", "data": tmp_path, "layer_decay": 0.5})
    with pytest.raises(HeptaError, match="layer_decay: nano has fresh weights"):
        refuse_layer_decay(config, "nano")
