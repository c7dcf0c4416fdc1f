"""Every family through the same loop: masked models learn, all resume bit-exactly, what makes no sense is refused."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from tiny import Stopped, crash_at, losses, tiny_job, tiny_run

import hepta
from hepta.model.families import network_class
from hepta.model.learned import BertShape, GPT2Shape
from hepta.model.network import Network

SIZES = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2}
SHAPES = {
    "gpt2": GPT2Shape(**SIZES, max_positions=32, dropout=0.1),
    "bert": BertShape(**SIZES, max_positions=32, dropout=0.1),
}


def fresh(name: str) -> Network:
    model = network_class(SHAPES[name])(SHAPES[name])
    model.init_weights(3)
    return model


@pytest.mark.parametrize("name", SHAPES)
def test_each_family_resumes_bit_exactly(name: str, tmp_path: Path) -> None:
    """Trap R7, with dropout, across the edge of an epoch."""
    whole = tiny_run(tmp_path / "whole", tiny_job(tmp_path / "whole", model=fresh(name)))
    run = tmp_path / "broken"
    with pytest.raises(Stopped):
        tiny_run(run, crash_at(tiny_job(run, model=fresh(name)), 36))
    assert tiny_run(run, tiny_job(run, model=fresh(name))).weights_sha256 == whole.weights_sha256
    assert losses(run) == losses(tmp_path / "whole")
    loaded = hepta.load_model(run)
    assert type(loaded) is network_class(SHAPES[name])
    assert losses(run)[-1][1] < losses(run)[0][1]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path, wiki_en: Path, sanguo_zh: Path) -> Path:
    """Shards of 300 English leads and two Chinese chapters."""
    folder = tmp_path_factory.mktemp("families")
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as out:
        for source, rows in ((wiki_en, 300), (sanguo_zh, 2)):
            with source.open(encoding="utf-8") as lines:
                for line in islice(lines, rows):
                    out.write(json.dumps({"text": json.loads(line)["text"][:2000]}) + "\n")
    hepta.build_tokens(hepta.TokensConfig(
        input=folder / "texts.jsonl", tokenizer=tokenizer_dir, output=folder / "tokens", holdout=0.1,
    ))  # fmt: skip
    return folder / "tokens"


KEYS = ["sequence_length=64", "batch_tokens=1024", "compile=off", "threads=1", "precision=fp32", "eval.tokens=8192"]


def test_masked_pretraining_learns_fills_and_is_scored(tokens: Path, tmp_path: Path, cli: Callable) -> None:
    run = tmp_path / "bert"
    done = cli("pretrain", "--data", tokens, "--objective", "masked", "--output", run, "max_steps=60", *KEYS, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["final"]["val_loss"] < result["before"]["val_loss"] - 0.5
    assert result["final"]["val_accuracy"] > result["before"]["val_accuracy"]
    assert "val_bpb" not in result["final"], "masked words give no bits per byte"
    filled = cli("generate", "--model", run, "--fill", "The [MASK] sat on the mat", "best=3")
    assert filled.code == 0, filled.err
    first, guesses = filled.out.splitlines()
    assert first.endswith("sat on the mat")
    assert guesses.split()[0] == "[MASK]"
    assert len(guesses.split()) == 7
    scored = cli("eval", "--model", run, "--text", tokens.parent / "texts.jsonl", "max_documents=40", "--json")
    total = json.loads(scored.out)["total"]
    assert total["bits_per_byte"] is None
    assert total["tokens"] == pytest.approx(0.15 * result["tokens"] / result["steps"] / 1024 * 40 * 300, rel=2)
    assert 0 < total["nats_per_token"] < result["before"]["val_loss"]


def test_gpt2_continues_training_and_text(tokens: Path, tmp_path: Path, cli: Callable) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    options = ["--data", tokens, "max_steps=12", *KEYS]
    assert cli("pretrain", "--model", "gpt2-nano", "--output", first, *options).code == 0
    done = cli("pretrain", "--model", first, "--output", second, *options, "--json")
    assert json.loads(done.out)["before"]["val_loss"] == pytest.approx(
        json.loads((first / "manifest.json").read_text())["facts"]["final"]["val_loss"], abs=0.2
    )
    said = cli("generate", "--model", second, "--prompt", "The cat", "max_new_tokens=5")
    assert said.code == 0
    assert said.out.startswith("The cat")
    assert cli("eval", "--model", second, "--text", tokens.parent / "texts.jsonl", "max_documents=5").code == 0


def test_what_makes_no_sense_is_refused_in_one_line(tokens: Path, tmp_path: Path, cli: Callable) -> None:
    bert, gpt2 = tmp_path / "bert", tmp_path / "gpt2"
    for name, place in (("bert-nano", bert), ("gpt2-nano", gpt2)):
        kind = "masked" if name == "bert-nano" else "causal"
        options = ["--model", name, "--objective", kind, "max_steps=1", "sample_prompts=[]", *KEYS]
        assert cli("pretrain", "--data", tokens, "--output", place, *options).code == 0

    def refused(*words: object) -> str:
        done = cli(*words)
        assert done.code == 2, done.err
        lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    data = ["--data", tokens, "--output", tmp_path / "none"]
    assert "is masked; pretrain it with --objective masked" in refused("pretrain", "--model", "bert-nano", *data)
    assert "is causal" in refused("pretrain", "--model", "nano", "--objective", "masked", *data)
    longer = ["sequence_length=2048", "batch_tokens=2048"]
    assert "reads at most 1024 tokens" in refused("pretrain", "--model", "gpt2-nano", *data, *longer)
    assert "--fill" in refused("generate", "--model", bert, "--prompt", "The cat")
    assert "--fill" in refused("chat", "--model", bert, "--message", "Hello")
    assert "cannot fill masks" in refused("generate", "--model", gpt2, "--fill", "The [MASK] sat")
    assert "write [MASK]" in refused("generate", "--model", bert, "--fill", "The cat sat")
    talk = tmp_path / "talk.jsonl"
    talk.write_text('{"prompt": "Hi", "completion": "Hello"}\n' * 3)
    message = refused("sft", "--model", bert, "--data", talk, "--output", tmp_path / "none")
    assert "masked" in message
    assert not (tmp_path / "none").exists(), "a refused verb leaves no claim behind"


def test_early_stopping_publishes_the_best_weights(tmp_path: Path) -> None:
    """Held-out losses 3, 2, 1, 1.5, 2 …: with patience 2 the run ends at the fifth and keeps the third."""
    rows = iter([9.0, 3.0, 2.0, 1.0, 1.5, 2.0, 7.0])
    kept: list[torch.Tensor] = []
    job = tiny_job(tmp_path / "run")

    def scores(most: int | None) -> dict[str, float]:
        kept.append(next(job.model.parameters()).detach().clone())
        return {"val_loss": next(rows)}

    job.evaluate, job.patience = scores, 2
    outcome = tiny_run(tmp_path / "run", job, max_steps=12, eval={"every": 1}, checkpoint={"every": 100, "keep": 1})
    assert outcome.state.step == 5
    best = next(hepta.load_model(tmp_path / "run").parameters())
    assert torch.equal(best, kept[3])
    assert not torch.equal(best, kept[5])
    assert outcome.final["val_loss"] == 7.0, "the last evaluation is of the weights that are kept"
    assert torch.equal(kept[6], kept[3])
