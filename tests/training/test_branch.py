"""Promises of branches: what the same schedule would have given without branching, bit for bit; misfits refused."""

import gc
import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tiny import Stopped

from hepta.config import HeptaError, build
from hepta.corpus.build import build_corpus
from hepta.corpus.config import CorpusConfig
from hepta.data.build import build_tokens
from hepta.data.config import TokensConfig
from hepta.data.order import TokenOrder
from hepta.model.config import ModelConfig
from hepta.model.decoder import Decoder
from hepta.model.load import read_hepta_json, save_model
from hepta.tokenizer.load import load_tokenizer
from hepta.training.config import PretrainConfig
from hepta.training.pretrain import pretrain

ROW = ("step", "epoch", "tokens_seen", "loss", "grad_norm", "lr", "val_loss", "val_bpb")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path, wiki_en: Path) -> Path:
    """A folder with ``tokens`` of 120 English leads and a tiny ``model``."""
    folder = tmp_path_factory.mktemp("branch")
    with wiki_en.open(encoding="utf-8") as lines:
        (folder / "texts.jsonl").write_text("".join(islice(lines, 120)), encoding="utf-8")
    build_corpus(build(CorpusConfig, {
        "input": [str(folder / "texts.jsonl")], "output": folder / "corpus", "workers": 1
    }))  # fmt: skip
    build_tokens(TokensConfig(input=folder / "corpus", tokenizer=tokenizer_dir, output=folder / "tokens"))
    shape = ModelConfig(
        vocab_size=load_tokenizer(tokenizer_dir).padded_size, hidden_size=32, intermediate_size=64, num_layers=2,
        num_heads=2, num_kv_heads=1, head_dim=16,
    )  # fmt: skip
    model = Decoder(shape)
    model.init_weights(3)
    save_model(model, folder / "model", tokenizer_dir)
    return folder


def train(place: Path, output: Path, **more: Any) -> Any:
    base = {
        "data": place / "tokens", "model": str(place / "model"), "output": output, "sequence_length": 32,
        "batch_tokens": 128, "micro_batch": 2, "lr": 3e-3, "warmup": 2, "precision": "fp32", "compile": False,
        "threads": 1, "checkpoint": {"every": 4, "keep": 9}, "eval": {"every": 5, "tokens": 256}, "sample_prompts": [],
    }  # fmt: skip
    return pretrain(build(PretrainConfig, base | more))


@pytest.fixture(scope="module")
def trunk(place: Path) -> Path:
    """A stable run of 11 steps that keeps those of 4, 8 and 11."""
    train(place, place / "trunk", schedule="constant", max_steps=11)
    return place / "trunk"


def rows(run: Path) -> list[dict[str, Any]]:
    return [
        {key: row.get(key) for key in ROW}
        for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if "loss" in row or "val_loss" in row
    ]


def test_a_branch_is_bit_for_bit_the_run_of_its_length(place: Path, trunk: Path, tmp_path: Path) -> None:
    straight = train(place, tmp_path / "straight", schedule="wsd", max_steps=12, decay=4 / 12)
    branch = train(place, tmp_path / "branch", branch=f"{trunk}@8", max_steps=12)
    assert branch.weights_sha256 == straight.weights_sha256
    assert branch.tokens == straight.tokens
    assert rows(tmp_path / "branch") == rows(tmp_path / "straight"), "what came before the branch stands there too"
    assert [row["lr"] for row in rows(tmp_path / "branch") if row["lr"]][7:] == pytest.approx(
        [3e-3, 3e-3, 2.25e-3, 1.5e-3, 0.75e-3]
    )
    assert read_hepta_json(tmp_path / "branch" / "model")["provenance"]["branch"] == f"{trunk}@8"
    assert json.loads((tmp_path / "branch" / "manifest.json").read_text())["identity"]["branch"] == f"{trunk}@8"
    journal = [json.loads(line) for line in (tmp_path / "branch" / "journal.jsonl").read_text().splitlines()]
    assert next(row["from"] for row in journal if row["event"] == "branch") == f"{trunk}@8"


def test_a_killed_branch_goes_on_without_the_run_it_left(
    place: Path, trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before its first checkpoint, its origin gone; with Muon, whose state has two kinds."""
    stable = {"schedule": "constant", "optimizer": "muon", "max_steps": 8}
    train(place, tmp_path / "trunk", **stable)
    keys = {"branch": f"{tmp_path / 'trunk'}@8", "optimizer": "muon", "decay": 0.4}
    whole = train(place, tmp_path / "whole", **keys)
    assert whole.steps == 13, "8 steps are the 60 % before the fall"
    batch = TokenOrder.batch

    def mortal(order: TokenOrder, start: int, count: int) -> Any:
        if order.split == "train" and start >= 40:
            raise Stopped
        return batch(order, start, count)

    monkeypatch.setattr(TokenOrder, "batch", mortal)
    with pytest.raises(Stopped):
        train(place, tmp_path / "killed", **keys)
    monkeypatch.undo()
    gc.collect()  # the run's lock goes with its frames
    shutil.rmtree(tmp_path / "trunk")
    assert train(place, tmp_path / "killed", **keys).weights_sha256 == whole.weights_sha256
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"branch": "{trunk}@9"}, "no checkpoint of step 9; it keeps 4, 8, 11"),
        ({"branch": "{trunk}@8", "seed": 8}, "made with seed 7, this has 8; give seed=7"),
        ({"branch": "{trunk}@8", "batch_tokens": 64}, "made with batch_tokens 128"),
        ({"branch": "{trunk}@8", "model": "nano"}, "made with another model"),
        ({"branch": "{place}/model@8"}, "is no run of hepta pretrain"),
        ({"branch": "{trunk}@8", "max_steps": 8}, "max_steps: counts from the start"),
        ({"branch": "{trunk}@8", "max_steps": 12, "decay": 0.5}, "decay: the rate of a branch falls over all"),
        ({"branch": "{trunk}@8", "schedule": "cosine"}, "leave schedule out"),
        ({"branch": "{trunk}"}, "give RUN@STEP"),
    ],
)
def test_a_branch_that_does_not_fit_is_refused_in_one_line(
    place: Path, trunk: Path, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    values = {key: v.format(trunk=trunk, place=place) if isinstance(v, str) else v for key, v in keys.items()}
    with pytest.raises(HeptaError, match=message) as caught:
        train(place, tmp_path / "branch", **values)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "branch").exists(), "nothing is left of a refused branch"


@pytest.mark.parametrize(
    ("trunk_keys", "step", "message"),
    [
        ({"schedule": "cosine", "max_steps": 4}, 4, "falls all the way"),
        ({"schedule": "wsd", "max_steps": 8, "decay": 0.25}, 8, "from step 2 to 6, not at 8"),
        ({"schedule": "constant", "max_steps": 8, "warmup": 6}, 4, "from step 6 to 8, not at 4"),
    ],
)
def test_branches_leave_where_the_rate_is_at_its_peak(
    place: Path, tmp_path: Path, trunk_keys: dict[str, Any], step: int, message: str
) -> None:
    train(place, tmp_path / "trunk", **trunk_keys)
    warmup = {key: trunk_keys[key] for key in ("warmup",) if key in trunk_keys}
    with pytest.raises(HeptaError, match=message):
        train(place, tmp_path / "branch", branch=f"{tmp_path / 'trunk'}@{step}", **warmup)


def test_a_branch_on_the_command_line(place: Path, trunk: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    keys = json.loads((trunk / "manifest.json").read_text())["identity"]
    words = [f"{k}={keys[k]}" for k in ("sequence_length", "batch_tokens", "lr", "warmup", "precision")]
    found = cli(
        "pretrain", "--data", place / "tokens", "--model", place / "model", "--branch", f"{trunk}@4",
        "--output", tmp_path / "run", "max_steps=6", *words, "compile=false", "threads=1", "sample_prompts=[]",
    )  # fmt: skip
    assert found.code == 0, found.err
    assert f"branches off {trunk} at step 4" in found.err
    assert "trained         6 steps" in found.out
