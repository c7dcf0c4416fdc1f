"""Promises of several processes: N of them compute what one does, agree on everything, and end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from group import METHODS, given, steps, stopped_late, talk, tuned, two, untied, whole_run
from safetensors.torch import load_file
from tiny import losses, tiny_config, tiny_job, tiny_run

from hepta.config import HeptaError, Interrupted, build
from hepta.model.adapters import ADAPTER_WEIGHTS
from hepta.model.families import preset
from hepta.objectives.causal import Causal
from hepta.planning.memory import Setting, activation_bytes
from hepta.tokenizer.load import load_tokenizer
from hepta.training.checkpoint import OPTIMIZER, seal_fault
from hepta.training.config import PretrainConfig, SftConfig
from hepta.training.metrics import read_rows
from hepta.training.pretrain import pretrain
from hepta.training.processes import run_processes
from hepta.training.rehearsal import rehearse
from hepta.training.sft import conversation_orders
from hepta.training.step import micro_batches
from hepta.training.together import refuse_unshared
from hepta.training.world import ALONE, World, world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def group(folder: Path) -> dict[str, Any]:
    """What two gloo processes on the loopback device gave."""
    return run_processes(two, str(folder), 2)


def test_two_processes_compute_what_one_does(group: dict[str, Any]) -> None:
    """Trap R2: AdamW, a tied head, parts with unequal numbers of tokens, or none; norm and clipping of the whole."""
    one, cut = steps(ALONE), group["cut"]
    for mine, theirs in zip(one["rows"], cut["rows"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)
    assert one["rows"][0][2] > 1.0, "the gradient is clipped"
    for name, values in one["weights"].items():
        assert cut["weights"][name] == pytest.approx(values, abs=1e-5), name


def test_a_loss_that_is_not_finite_in_one_process_skips_the_step_in_all(group: dict[str, Any]) -> None:
    assert [reason is not None for reason in group["spoilt"]["skipped"]] == [False, False, True, False]
    assert group["spoilt"]["rows"][:2] == group["cut"]["rows"][:2]


def test_matrices_split_over_two_processes_give_the_same_logits_and_losses(group: dict[str, Any]) -> None:
    """Tensor parallelism: q, k, v, gate and up by outputs, o and down by inputs; the rest is the same in both."""
    one, heads = steps(ALONE, untied()), group["heads"]
    for mine, theirs in zip(one["rows"], heads["rows"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)
    for mine, theirs in zip(one["logits"], heads["logits"], strict=True):
        assert theirs == pytest.approx(mine, abs=1e-5)
    for name, values in one["weights"].items():
        assert heads["weights"][name] == pytest.approx(values, abs=1e-5), name
    assert [line.split(":")[0] for line in group["refusals"][2:]] == ["tensor_parallel"]
    assert "1 key-value heads" in group["refusals"][0]
    assert "63 neurons" in group["refusals"][1]


def test_a_run_of_two_processes_leaves_what_one_leaves_and_one_goes_on_from_it(
    group: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    """Trap R7: eight steps by two, four more by one: the losses, evaluations and samples of twelve by one."""
    keys = {"schedule": "constant", "warmup": 1, "eval": {"every": 4, "tokens": 256}}
    saved = load_file(folder / "run" / "checkpoints" / "step-00000004" / OPTIMIZER)  # right after an evaluation
    seen = {"statistics": 3, **keys}
    whole_run({"output": str(tmp_path / "one"), "max_steps": 12, "checkpoint": {"every": 4, "keep": 4}, **seen})
    whole_run({"output": str(folder / "run"), "max_steps": 12, **seen})
    alone = load_file(tmp_path / "one" / "checkpoints" / "step-00000004" / OPTIMIZER)
    assert saved.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-6)
    one, other = (read_rows(run / "metrics.jsonl") for run in (tmp_path / "one", folder / "run"))
    for kind, keys in (("grad_norm", ("step", "epoch", "tokens_seen", "loss")), ("val_loss", ("step", "val_accuracy"))):
        mine, theirs = ([row for row in rows if kind in row and row["step"] != 8] for rows in (one, other))
        for key in (kind, *keys):
            assert [row[key] for row in theirs] == pytest.approx([row[key] for row in mine], rel=1e-5), key
        for row, beside in zip(mine, theirs, strict=True) if kind == "grad_norm" else ():
            assert beside["tokens_by_source"] == row["tokens_by_source"]
            assert beside["loss_by_source"] == pytest.approx(row["loss_by_source"], rel=1e-5)
    mine, theirs = ({row["step"]: row["layers"] for row in rows if "layers" in row} for rows in (one, other))
    assert list(mine) == list(theirs) == [3, 6, 9, 12]
    for step, layers in mine.items():
        for layer, figures in layers.items():
            assert theirs[step][layer] == pytest.approx(figures, rel=1e-4), (step, layer)
    mine, theirs = (read_rows(run / "samples.jsonl") for run in (tmp_path / "one", folder / "run"))
    assert [row for row in theirs if row["step"] != 8] == [row for row in mine if row["step"] != 8]
    assert (folder / "run" / "manifest.json").is_file()
    assert losses(folder / "run")[-1][0] == 12


def test_muon_makes_whole_matrices_orthogonal_that_lie_in_parts(group: dict[str, Any]) -> None:
    """The same bits in, the same weights out, cut by rows and by heads; a run's losses agree to 1e-5.

    Its weights agree less: Muon's products are in bfloat16, where the last bit of a sum over parts may tip one of 256.
    """
    wanted = given(ALONE, untied())
    for found in group["given"]:
        for name, values in wanted.items():
            torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(values), rtol=0, atol=1e-6, msg=name)
    one, cut = steps(ALONE, name="muon"), group["muon"]
    for mine, theirs in zip(one["rows"], cut["rows"], strict=True):
        assert theirs[:2] == pytest.approx(mine[:2], rel=1e-5)
        assert theirs[2] == pytest.approx(mine[2], rel=1e-4)
    for name, values in one["weights"].items():
        assert cut["weights"][name] == pytest.approx(values, abs=1e-4), name


@pytest.mark.parametrize("place", [0, 1])
def test_two_processes_tune_as_one_does(place: int, group: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    """Trap R2 in instruction tuning: questions are masked, so the processes' parts weigh differently in every step."""
    keys, method = {**talk(tmp_path), **METHODS[place], "output": tmp_path / "one"}, METHODS[place]["method"]
    order, _ = conversation_orders(build(SftConfig, keys), load_tokenizer(keys["model"]))
    weights = [sum(Causal().weight(b) for b in micro_batches(order, 0, 4, 1, World(rank, 2))) for rank in (0, 1)]
    assert weights[0] != weights[1]
    one = tuned(keys)
    assert group["sft"][place]["p_stop"]["train"] == pytest.approx(one["p_stop"]["train"], rel=1e-5)
    mine, theirs = (read_rows(run / "metrics.jsonl") for run in (tmp_path / "one", folder / method))
    for kind in ("loss", "grad_norm", "tokens_seen", *(["val_loss"] if keys["validation"] else [])):
        wanted = [row[kind] for row in mine if kind in row]
        assert wanted
        assert [row[kind] for row in theirs if kind in row] == pytest.approx(wanted, rel=1e-5), kind
    file = ADAPTER_WEIGHTS if method == "lora" else "model.safetensors"
    for name, value in load_file(tmp_path / "one" / "model" / file).items():
        torch.testing.assert_close(load_file(folder / method / "model" / file)[name], value, rtol=0, atol=1e-5)


def test_ranks_in_the_environment_without_a_group_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap R14: nothing trains N times side by side."""
    assert world() == ALONE
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(HeptaError, match="no process group was made"):
        world()


def test_what_processes_cannot_share_is_refused_in_one_line(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", batch_tokens=160)  # five sequences
    with pytest.raises(HeptaError, match=r"5 sequences, which 2 .* try 6 \(batch_tokens 192\)"):
        refuse_unshared(World(0, 2), config)
    with pytest.raises(HeptaError, match="optimizer adafactor: wants them whole"):
        refuse_unshared(World(0, 2), tiny_config(tmp_path / "run", optimizer="adafactor"))
    with pytest.raises(HeptaError, match="give --nproc too"):
        pretrain(build(PretrainConfig, {"data": tmp_path, "output": tmp_path / "run", "tensor_parallel": 2}))


def test_a_rehearsal_counts_what_a_device_of_many_holds_and_sends(tmp_path: Path) -> None:
    """Weights, gradients, moments are an exact share; traffic is that of ZeRO-3 with the root kept and Muon's."""
    keys = {"data": tmp_path, "output": tmp_path / "run", "model": "nano", "batch_tokens": 4096, "precision": "fp32"}
    one = rehearse(build(PretrainConfig, {**keys, "nproc": 4, "sequence_length": 128, "micro_batch": 8}))
    sizes = preset("nano").parameters()
    total, inner = preset("nano").num_parameters * 4, sizes["attention"] + sizes["mlp"]
    blocks = 4 * (inner + 2 * preset("nano").num_layers * preset("nano").hidden_size)
    assert one.micro_batches == 1
    assert one.memory["parameters"] == one.memory["gradients"] == total // 4
    assert one.memory["optimizer"] == pytest.approx(total // 2, rel=1e-3)
    assert one.traffic["reduce-scatter"] == pytest.approx(total * 3 / 4, rel=1e-3)
    assert one.traffic["all-gather"] == pytest.approx((total + blocks) * 3 / 4, rel=1e-3)
    muon = rehearse(build(PretrainConfig, {**keys, "nproc": 4, "micro_batch": 1, "optimizer": "muon"}))
    again = rehearse(build(PretrainConfig, {**keys, "nproc": 4, "micro_batch": 1}))
    more = muon.traffic["all-gather"] - again.traffic["all-gather"]
    assert more == pytest.approx(inner * 4 * 3 / 4, rel=1e-3), "of all hidden matrices, once a step"
    formula = activation_bytes(preset("nano"), Setting(128, 8, precision="fp32", cpu=True))
    assert one.memory["activations (recompute none)"] == pytest.approx(formula, rel=0.35)


def start(run: Path, *words: str, nproc: int = 2) -> subprocess.Popen[str]:
    """``run_processes(whole_run)`` as a command of its own, which signals can reach."""
    code = (
        "import sys; from hepta.cli.command import guarded; from hepta.config import parse_overrides;"
        "from hepta.training.processes import run_processes; from group import whole_run;"
        "asked = {'output': sys.argv[1], **parse_overrides(sys.argv[3:])};"
        "sys.exit(guarded(lambda: run_processes(whole_run, asked, int(sys.argv[2]), name=sys.argv[1])))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(run), str(nproc), *words],
        stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.chaos
@pytest.mark.parametrize("nproc", [2, 4])
def test_a_killed_process_ends_the_run_with_one_message_and_a_valid_checkpoint(tmp_path: Path, nproc: int) -> None:
    run = tmp_path / "run"
    keys = ["max_steps=12", "checkpoint.every=4", "schedule=constant", "warmup=1"]
    process = start(run, *keys, "die=[1, 6]", nproc=nproc)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 1
    assert [line for line in errors.splitlines() if "error" in line.lower()] == [
        f"error: {run}: process 1 of {nproc} was ended by SIGKILL, perhaps for memory; "
        "all are stopped, the same command goes on from the last checkpoint"
    ]
    assert seal_fault(run / "checkpoints" / "step-00000004") is None
    whole_run({"output": str(run), "max_steps": 12, "schedule": "constant", "warmup": 1})
    whole_run({"output": str(tmp_path / "one"), "max_steps": 12, "schedule": "constant", "warmup": 1})
    theirs, mine = ([loss for _, loss in losses(place)] for place in (run, tmp_path / "one"))
    assert theirs == pytest.approx(mine, rel=1e-5)


@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_processes_after_the_same_step(tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    process = start(run, "max_steps=4000", "checkpoint.every=4000", "eval.every=4000")
    while not (run / "metrics.jsonl").is_file() or len(losses(run)) < 3:
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 130
    assert errors.count("the same command goes on from here") == 1
    assert errors.count("finishing this step") == 1
    saved = [path.name for path in (run / "checkpoints").iterdir()]
    assert saved == [f"step-{losses(run)[-1][0]:08d}"]


def test_a_signal_that_comes_when_others_have_agreed_on_it_is_no_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process had it first and all agreed to stop; this one's own finds it saving, and does not end it."""
    run = tmp_path / "run"
    job = tiny_job(run)
    save = job.save

    def saving(place: Path, dtype: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(place, dtype)

    job.save = saving
    monkeypatch.setattr(World, "any", lambda self, due, asked: [due, True])
    with pytest.raises(Interrupted, match="goes on from here"):
        tiny_run(run, job)
    assert seal_fault(run / "checkpoints" / "step-00000001") is None


@pytest.mark.chaos
def test_signals_that_reach_processes_at_different_times_stop_them_together(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted, match="goes on from here"):
        run_processes(stopped_late, {"output": str(run), "max_steps": 4000, "checkpoint": {"every": 4000}}, 2)
    saved = [path.name for path in (run / "checkpoints").iterdir()]
    assert saved == [f"step-{losses(run)[-1][0]:08d}"] == ["step-00000007"]
    assert seal_fault(run / "checkpoints" / saved[0]) is None


@pytest.mark.slow
@pytest.mark.parametrize(("name", "apart"), [("adamw", 1e-5), ("muon", 1e-4)])
def test_four_processes_go_on_from_two_and_two_from_four(tmp_path: Path, name: str, apart: float) -> None:
    """Trap R7: the number of processes may change at every stop; data order and losses stay."""
    keys = {"schedule": "constant", "warmup": 1, "optimizer": name}
    whole_run({"output": str(tmp_path / "one"), "max_steps": 12, **keys})
    for size, steps_done in ((2, 4), (4, 8), (1, 10), (2, 12)):
        asked = {"output": str(tmp_path / "run"), "max_steps": steps_done, **keys}
        run_processes(whole_run, asked, size) if size > 1 else whole_run(asked)
    theirs, mine = ([loss for _, loss in losses(tmp_path / place)] for place in ("run", "one"))
    assert theirs == pytest.approx(mine, rel=apart)


@pytest.mark.slow
def test_two_by_two_processes_split_sequences_and_heads(tmp_path: Path) -> None:
    """FSDP2 and tensor parallelism together: losses, weights and moments of one process, which goes on from theirs."""
    keys = {"schedule": "constant", "warmup": 1, "heads": True}
    whole_run({"output": str(tmp_path / "one"), "max_steps": 12, **keys})
    run_processes(whole_run, {"output": str(tmp_path / "run"), "max_steps": 8, **keys}, 4, tensor=2)
    for file in (OPTIMIZER, "model.safetensors"):
        mine, theirs = (
            load_file(tmp_path / run / "checkpoints" / "step-00000008" / file) for run in ("one", "run")
        )
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5)
    whole_run({"output": str(tmp_path / "run"), "max_steps": 10, **keys})
    run_processes(whole_run, {"output": str(tmp_path / "run"), "max_steps": 12, **keys}, 4, tensor=2)
    theirs, mine = ([loss for _, loss in losses(tmp_path / place)] for place in ("run", "one"))
    assert theirs == pytest.approx(mine, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("values", [{"compile": True}, {"recompute": "block"}])
def test_compiled_and_recomputed_blocks_are_shared_out_too(tmp_path: Path, values: dict[str, Any]) -> None:
    """Trap R15: the same losses as one process, which does neither."""
    whole_run({"output": str(tmp_path / "one"), "max_steps": 4})
    run_processes(whole_run, {"output": str(tmp_path / "run"), "max_steps": 4, **values}, 2)
    theirs, mine = ([loss for _, loss in losses(tmp_path / place)] for place in ("run", "one"))
    assert theirs == pytest.approx(mine, rel=1e-5)
