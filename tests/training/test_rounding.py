"""Promises of weights that are bfloat16 themselves: no bias, no update lost, torch's formulas."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import losses, tiny_config, tiny_job, tiny_run
from torch import Tensor, nn

from hepta.config import HeptaError
from hepta.model.families import preset
from hepta.model.load import build_model, load_model
from hepta.training.optimizer import make_optimizer
from hepta.training.rounded import RoundedAdafactor, RoundedAdamW
from hepta.training.rounding import PART, Rounder, round_by_chance

SHAPES = [(64, 48), (48,), (3, 100_000), (2, PART + 7), (3 * PART + 5,)]  # rows longer than a part, and parts cut short


def test_100_updates_of_1e_5_accumulate_by_chance_and_are_lost_without_it() -> None:
    """Trap R16: weights of 0.01, whose next bfloat16 is 6e-5 away; the mean moves by 1e-3 ± 2 %, plainly by 0."""
    weight, plain = (nn.Parameter(torch.full((4096,), 0.01, dtype=torch.bfloat16)) for _ in range(2))
    begun = float(plain[0].detach())
    optimizer = RoundedAdamW([weight], {weight: "w"}, 7, betas=(0.9, 0.95), eps=1e-8)
    optimizer.param_groups[0]["lr"] = 1e-5
    usual = torch.optim.AdamW([plain], lr=1e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for _ in range(100):
        for parameter in (weight, plain):
            parameter.grad = torch.full_like(parameter, -0.5)
        optimizer.step()
        usual.step()
    assert float(weight.detach().double().mean()) - begun == pytest.approx(1e-3, rel=0.02)
    assert bool((plain == begun).all())


@pytest.mark.parametrize("value", [1.0 + 2**-9, -1.0 - 2**-12, 3.14159, 1e-20, -65000.0, 0.0])
def test_rounding_is_unbiased(value: float) -> None:
    """The mean of 4 M draws is the value to 5 standard errors, and each is one of its two neighbours."""
    count = 4 << 20
    values = torch.full((count,), value)
    rounded = round_by_chance(values, 1, "w", 1).double()
    exact = float(values[0].double())
    found = rounded.unique()
    assert len(found) <= 2
    if len(found) == 1:
        assert float(found[0]) == exact
        return
    low, high = float(found[0]), float(found[1])
    up = (exact - low) / (high - low)
    assert float((rounded == high).double().mean()) == pytest.approx(up, abs=5 * (up * (1 - up) / count) ** 0.5)


def test_no_two_values_are_rounded_together() -> None:
    """Of values half a unit above their floor, in one part, two parts or two updates, half agree (5 σ, 2^18 pairs)."""
    values = torch.full((4 * PART,), 1.0 + 2**-8)
    first, second = (round_by_chance(values, 1, "w", update) > 1.0 for update in (1, 2))
    pairs = [
        (first[:PART], second[:PART]), (first[:PART], first[PART : 2 * PART]), (first[PART:], second[PART:]),
        (first[:-1], first[1:]), (first[: 2 * PART], first[2 * PART :]),
    ]  # fmt: skip
    for one, other in pairs:
        assert float((one == other).double().mean()) == pytest.approx(0.5, abs=5 * 0.5 / PART**0.5)
    assert torch.equal(round_by_chance(values, 1, "w", 1) > 1.0, first), "the same key draws the same"
    for seed, name in ((2, "w"), (1, "v")):
        assert not torch.equal(round_by_chance(values, seed, name, 1) > 1.0, first)


def test_nothing_as_large_as_a_large_tensor_is_made() -> None:
    rounder = Rounder(torch.zeros(8 * PART, dtype=torch.bfloat16), 1, "w", 1)
    assert max(rounder._bits.numel(), rounder._turned.numel()) == 2 * PART


OWN: dict[str, Any] = {
    "adamw": lambda groups, names: RoundedAdamW(groups, names, 0, betas=(0.9, 0.95), eps=1e-8),
    "adafactor": lambda groups, names: RoundedAdafactor(groups, names, 0),
}
TORCH: dict[str, Any] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8),
    "adafactor": lambda groups: torch.optim.Adafactor(groups, eps=(1e-15, 1e-3)),
}


@pytest.mark.parametrize("name", sorted(OWN))
def test_on_float32_weights_they_are_torch_s_own(name: str) -> None:
    """Four steps, decay 0.1, over shapes that do and do not fill parts; 2e-7 absolute."""
    generator = torch.Generator().manual_seed(1)
    theirs = [nn.Parameter(0.1 * torch.randn(shape, generator=generator)) for shape in SHAPES]
    ours = [nn.Parameter(p.detach().clone()) for p in theirs]
    rates = {"lr": 1e-2, "weight_decay": 0.1}
    own = OWN[name]([{"params": ours, **rates}], {p: str(i) for i, p in enumerate(ours)})
    usual = TORCH[name]([{"params": theirs, **rates}])
    for _ in range(4):
        for one, other in zip(theirs, ours, strict=True):
            one.grad = 1e-3 * torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        own.step()
        usual.step()
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=2e-7)
    assert set(own.state[ours[0]]) == set(usual.state[theirs[0]]), "states under torch's names"


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_run_on_bfloat16_weights_learns_as_one_on_float32_and_resumes_bit_exactly(tmp_path: Path, name: str) -> None:
    """24 steps: the last loss is within 5 % of float32's; cut after 12, the same bits; what is saved is bfloat16."""
    keys = {"optimizer": name, "lr": "auto", "max_steps": 24, "schedule": "constant", "checkpoint": {"every": 12}}
    tiny_run(tmp_path / "fp32", **keys)
    pure = tiny_run(tmp_path / "pure", precision="bf16-pure", **keys)
    first, last = losses(tmp_path / "fp32")[0][1], losses(tmp_path / "fp32")[-1][1]
    assert losses(tmp_path / "pure")[-1][1] == pytest.approx(last, rel=0.05)
    assert last < 0.97 * first
    tiny_run(tmp_path / "parts", precision="bf16-pure", **{**keys, "max_steps": 12})
    assert tiny_run(tmp_path / "parts", precision="bf16-pure", **keys).weights_sha256 == pure.weights_sha256
    saved = load_model(tmp_path / "pure" / "model", torch.bfloat16)
    assert all(torch.equal(p, saved.get_parameter(n)) for n, p in tiny_job_weights(tmp_path / "pure").items())


def tiny_job_weights(run: Path) -> dict[str, Tensor]:
    """The weights of a run's last checkpoint, in the dtype they are stored in."""
    job = tiny_job(run)
    job.model.to(torch.bfloat16)
    job.restore(max((run / "checkpoints").glob("step-*")))
    return dict(job.model.named_parameters())


def test_what_cannot_be_rounded_by_chance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeptaError, match="optimizer muon: does not round bf16-pure weights by chance"):
        make_optimizer(tiny_job(tmp_path / "run").model, 0.1, "muon", rounding=1)
    with pytest.raises(HeptaError, match="bf16-pure weights are bfloat16 and saved as they are"):
        tiny_config(tmp_path / "run", precision="bf16-pure", save_dtype="fp32")


def test_a_preset_is_drawn_in_place_in_its_own_dtype() -> None:
    """Fresh bfloat16 weights are the float32 ones rounded; a preset to be filled later holds nothing yet."""
    wide, half = build_model("nano", 256, 3), build_model("nano", 256, 3, torch.bfloat16)
    for name, parameter in half.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, wide.get_parameter(name).bfloat16())
    assert build_model("nano", 256, None, torch.bfloat16).config == preset("nano", 256)
