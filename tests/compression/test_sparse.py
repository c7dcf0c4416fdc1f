"""Which weights go: against brute force, in exact numbers, and never back while the others learn."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from little import KEYS, crash_at
from torch import Tensor
from torch.nn import functional as F

from hepta.compression.calibrate import calibration_batches
from hepta.compression.config import PruneConfig
from hepta.compression.prune import prune
from hepta.compression.sparse import importance, least_important, linear_maps, two_of_four, zeros_of
from hepta.config import build
from hepta.model.load import load_model
from hepta.tokenizer.load import load_tokenizer


def test_activation_scores_are_the_papers(trained: Path) -> None:
    """Sun et al. 2023: |W_ij| · ‖X_j‖₂ with X the inputs themselves; the lowest of each row go."""
    torch.manual_seed(0)
    W, X = torch.randn(5, 12), torch.randn(40, 12) * torch.rand(12) * 3
    gone = least_important(importance(W, X.square().sum(0)), 0.5, by_row=True)
    for row in range(5):
        scores = [abs(float(W[row, j])) * float(torch.linalg.vector_norm(X[:, j])) for j in range(12)]
        lowest = sorted(range(12), key=lambda j: scores[j])[:6]
        assert sorted(lowest) == gone[row].nonzero()[:, 0].tolist()
    ours, sizes = (F.mse_loss(X @ (W * ~mask).T, X @ W.T) for mask in (gone, least_important(W.abs(), 0.5, True)))
    assert ours < sizes, "what the map writes changes less than with magnitudes alone"


def test_counts_are_exact_within_rows_and_matrices_even_where_all_are_equal() -> None:
    scores = torch.ones(7, 10)
    assert least_important(scores, 0.33, by_row=True).sum(1).tolist() == [3] * 7
    assert int(least_important(scores, 0.33, by_row=False).sum()) == round(0.33 * 70)
    low = torch.arange(70.0).view(7, 10)
    assert least_important(low, 0.5, by_row=False).flatten().tolist() == [True] * 35 + [False] * 35


def test_two_of_four_is_the_best_pattern_there_is() -> None:
    """Of all six ways to zero two of four neighbours, the one that loses least, in every group."""
    torch.manual_seed(1)
    scores = torch.rand(6, 16)
    gone = two_of_four(scores)
    pairs = list(itertools.combinations(range(4), 2))
    for row, group in itertools.product(range(6), range(4)):
        here = scores[row, 4 * group : 4 * group + 4]
        best = min(pairs, key=lambda pair: float(here[list(pair)].sum()))
        assert gone[row, 4 * group : 4 * group + 4].nonzero()[:, 0].tolist() == list(best)


def config(model: Path, output: Path, **more: Any) -> PruneConfig:
    return build(PruneConfig, {"model": str(model), "output": output, "sequence_length": 64, **more})


def test_a_pruned_model_has_the_zeros_that_brute_force_finds(trained: Path, texts: Path, tmp_path: Path) -> None:
    """Inputs of every map collected whole, scored in a loop over rows: the same zeros, and all else untouched."""
    result = prune(config(trained, tmp_path / "run", sparsity=0.5, calibrate=texts, sequences=16))
    before, after = load_model(trained), load_model(tmp_path / "run")
    ids = torch.cat(calibration_batches(texts, load_tokenizer(trained), 16, 64))
    inputs: dict[str, list[Tensor]] = {}
    for name, module in linear_maps(before).items():
        module.register_forward_pre_hook(lambda _, x, name=name: inputs.setdefault(name, []).append(x[0].detach()))
    with torch.no_grad():
        before(ids[torch.arange(len(ids)) % 4 != 0])
    wrong = total = 0
    for name, module in linear_maps(before).items():
        X, W, found = torch.cat(inputs[name]).flatten(0, -2), module.weight, linear_maps(after)[name].weight
        for row in range(W.shape[0]):
            scores = W[row].abs() * torch.linalg.vector_norm(X, dim=0)
            zeros = set((found[row] == 0).nonzero()[:, 0].tolist())
            wrong += len(zeros ^ set(scores.argsort()[: W.shape[1] // 2].tolist()))
            total += W.shape[1]
        kept = found != 0
        assert torch.equal(found[kept], W[kept])
        assert result.matrices[name] == {"weights": W.numel(), "zeros": W.numel() // 2}
    assert wrong <= 2e-4 * total, "two sums in another order may swap a tie"
    assert torch.equal(before.output_weight, after.output_weight), "embeddings are left alone"
    held = ids[::4]
    for model, told in ((load_model(trained), result.loss_before), (after, result.loss_pruned)):
        with torch.no_grad():
            loss = F.cross_entropy(model(held[:, :-1]).flatten(0, 1), held[:, 1:].flatten())
        assert told == pytest.approx(float(loss), abs=1e-5), "measured on the sequences not calibrated with"
    assert result.bytes == pytest.approx(result.bytes_before, rel=0.01), "zeros are stored"
    assert result.zstd_bytes < 0.95 * result.zstd_bytes_before
    assert prune(config(trained, tmp_path / "run", sparsity=0.5, calibrate=texts, sequences=16)) == result


def test_two_of_four_in_a_whole_model(trained: Path, tmp_path: Path) -> None:
    result = prune(config(trained, tmp_path / "run", pattern="2:4"))
    assert result.method == "magnitude"
    assert result.loss is None
    for name, mask in zeros_of(linear_maps(load_model(tmp_path / "run"))).items():
        assert (mask.view(mask.shape[0], -1, 4).sum(-1) == 2).all(), name


def test_zeros_stay_zero_while_the_rest_learns_and_a_stopped_run_ends_as_if_it_had_not_been(
    trained: Path, tokens: Path, tmp_path: Path
) -> None:
    keys = {**KEYS, "sparsity": 0.6, "data": tokens, "max_steps": 12, "lr": 3e-3, "checkpoint": {"every": 4}}
    whole = prune(config(trained, tmp_path / "whole", **keys))
    pruned, after = load_model(tmp_path / "whole" / "pruned"), load_model(tmp_path / "whole")
    gone = zeros_of(linear_maps(pruned))
    for name, mask in zeros_of(linear_maps(after)).items():
        assert torch.equal(mask, gone[name]), f"{name}: exactly the zeros of before"
        assert not torch.equal(linear_maps(after)[name].weight, linear_maps(pruned)[name].weight), name
    assert whole.zeros == sum(int(mask.sum()) for mask in gone.values()) > 0
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert whole.loss == pytest.approx(rows[-1]["val_loss"], abs=1e-4)
    assert whole.loss_pruned != whole.loss
    assert whole.measured_on.startswith("validation split")
    facts = json.loads((trained / "manifest.json").read_text())["facts"]
    assert whole.loss_before == pytest.approx(facts["final"]["val_loss"], abs=1e-4)
    assert "12 steps" in str(whole)
    with crash_at(9 * 8):
        prune(config(trained, tmp_path / "run", **keys))
    again = prune(config(trained, tmp_path / "run", **keys))
    assert again.weights_sha256 == whole.weights_sha256
    assert again.loss == whole.loss


def test_what_cannot_be_pruned_is_refused_in_one_line(
    trained: Path, tokens: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    def refused(*words: object) -> str:
        done = cli("compress", "prune", "--output", tmp_path / "none", *words)
        assert done.code == 2, done.err
        lines = done.err.splitlines()
        assert len(lines) == 1, lines
        assert not (tmp_path / "none").exists(), "a refused verb leaves no claim behind"
        return lines[0]

    model = ["--model", trained]
    for share in ("0", "1", "1.5"):
        assert "sparsity" in refused(*model, "--sparsity", share)
    assert "give either sparsity" in refused(*model)
    assert "give either sparsity" in refused(*model, "--sparsity", "0.5", "--neurons", "0.5")
    assert "2:4 is sparsity 0.5" in refused(*model, "--sparsity", "0.7", "--pattern", "2:4")
    assert "needs text" in refused(*model, "--sparsity", "0.5", "--method", "activation")
    assert "max_steps: nothing is trained without --data" in refused(*model, "--sparsity", "0.5", "max_steps=3")
    counted = ["--data", tokens, "--output", tmp_path / "ngram", "sequence_length=64", "sample_prompts=[]"]
    assert cli("pretrain", "--model", "ngram-2", *counted).code == 0
    assert "no linear maps" in refused("--model", tmp_path / "ngram", "--sparsity", "0.5")
    integers = tmp_path / "integers"
    assert cli("compress", "quantize", "--model", trained, "--output", integers).code == 0
    assert "is quantised, and integers do not learn" in refused("--model", integers, "--sparsity", "0.5")
    assert "of 6 heads that share 2 keys remove 2, 3, 4" in refused(*model, "--heads", "1")
    assert "choose another share" in refused(*model, "--neurons", "0.001")


def test_two_of_four_needs_inputs_in_fours() -> None:
    with pytest.raises(Exception, match="layer: has 10 inputs, and 2:4 needs a multiple of 4"):
        two_of_four(torch.rand(3, 10), "layer")
