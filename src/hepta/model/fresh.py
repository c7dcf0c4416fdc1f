"""What fresh weights must look like before anything is trained: a parameter that was forgotten is found here."""

import math
from typing import Any

import torch

from hepta.config import HeptaError

NARROWEST, WIDEST = 0.03, 3.0  # times 1 / √inputs: every family's standard deviations lie between


@torch.no_grad()
def check_finite(model: Any) -> None:
    """Refuse a model with a weight that is not a finite number.

    Raises:
        HeptaError: names the parameter and how many of its values are none.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not math.isfinite(float(parameter.detach().float().sum())):
            bad = int((~parameter.isfinite()).sum())
            if bad:  # else a sum too large for float32
                raise HeptaError(
                    f"parameter {name}: {bad} of {parameter.numel()} values are not finite; "
                    "training would only skip steps, so begin from another checkpoint"
                )


@torch.no_grad()
def check_fresh(model: Any) -> None:
    """Refuse fresh weights that no family's initialisation gives: a fault in the model's code, not in its user.

    Raises:
        AssertionError: names a parameter that is not finite, has a row of equal values, or is wider or narrower than
            fresh matrices are; or a head that is not the embedding though the shape says so.
    """
    check_finite(model)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        rows = parameter.flatten(1)
        same = (rows == rows[:, :1]).all(1)
        assert not bool(same.any()), f"fresh parameter {name}: row {int(same.nonzero()[0])} holds one value only"
        spread, usual = float(rows.std()), rows.shape[1] ** -0.5
        assert NARROWEST * usual <= spread <= WIDEST * usual, (
            f"fresh parameter {name}: standard deviation {spread:.3g}, expected about {usual:.3g} (1 / √inputs)"
        )
    if getattr(model.config, "tied", False) and hasattr(model, "output_weight"):
        assert model.output_weight is model.embedding.weight, "the shape says tied, and the head is not the embedding"
