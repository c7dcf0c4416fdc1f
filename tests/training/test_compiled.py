"""Promises of compilation: the same mathematics, and the same bits after a kill (slow: it compiles)."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny import losses, tiny_run

from hepta.objectives.causal import CHUNK, IGNORE, softmax_gradient
from hepta.planning.machine import compiler
from hepta.training.accelerate import compile_kernel
from hepta.training.resolve import read_resolved


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_compiled_and_eager_runs_agree(tmp_path: Path, precision: str, tolerance: float) -> None:
    """Trap R15: same losses, to the tolerance of the dtype, over 12 steps."""
    tiny_run(tmp_path / "eager", precision=precision, compile=False)
    tiny_run(tmp_path / "compiled", precision=precision, compile=True)
    for (_, one), (_, other) in zip(losses(tmp_path / "eager"), losses(tmp_path / "compiled"), strict=True):
        assert other == pytest.approx(one, abs=tolerance)


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")
def test_compiled_run_goes_on_bit_exactly(tmp_path: Path) -> None:
    """Trap R7 with bf16, compiled blocks and all cores: a copy of a finished run, its last steps forgotten."""
    keys = {"precision": "bf16", "compile": True, "threads": None}
    whole = tiny_run(tmp_path / "whole", **keys)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000012")
    (tmp_path / "run" / "manifest.json").rename(tmp_path / "run" / ".stage.json")
    again = tiny_run(tmp_path / "run", **keys)
    assert again.weights_sha256 == whole.weights_sha256
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_without_a_compiler_training_runs_eagerly_says_so_and_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hepta.training.resolve.compiler", lambda: None)
    tiny_run(tmp_path / "run", compile="auto", max_steps=2)
    assert "no C++ compiler" in capsys.readouterr().err
    resolved = read_resolved(tmp_path / "run")
    assert resolved is not None
    assert resolved.compile is False


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")
def test_compiled_softmax_equals_the_plain_one_for_any_number_of_rows() -> None:
    """Trap R12: chunks that are full, short, or hold a masked row; compiled once."""
    torch.manual_seed(0)
    kernel = compile_kernel()
    for rows in (CHUNK, 700, 1):
        logits, targets = torch.randn(rows, 320), torch.randint(0, 320, (rows,))
        targets[rows // 2] = IGNORE
        for ours, plain in zip(kernel(logits, targets, 0.01), softmax_gradient(logits, targets, 0.01), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
