"""Pretraining of the models before attention: n-grams are counted, the others go on bit for bit after a stop."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import losses, tiny_job, tiny_run

from hepta.config import HeptaError, build
from hepta.corpus.build import build_corpus
from hepta.corpus.config import CorpusConfig
from hepta.data.build import build_tokens
from hepta.data.config import TokensConfig
from hepta.model.families import network_class
from hepta.model.history import FeedForwardShape, LSTMShape, NGramShape
from hepta.model.load import load_model
from hepta.training.config import PretrainConfig
from hepta.training.pretrain import pretrain

SHAPES = {
    "lstm": LSTMShape(vocab_size=320, hidden_size=24, num_layers=2, dropout=0.2),
    "feedforward": FeedForwardShape(vocab_size=320, hidden_size=16, intermediate_size=32, context=4),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, wiki_en: Path, sanguo_zh: Path) -> Path:
    """200 English leads and the paragraphs of one Chinese chapter, cleaned and split."""
    folder = tmp_path_factory.mktemp("history")
    with wiki_en.open(encoding="utf-8") as english, sanguo_zh.open(encoding="utf-8") as chinese:
        rows = [json.loads(line)["text"] for line in islice(english, 200)]
        chapters = [json.loads(line)["text"] for line in islice(chinese, 2)]
    rows += [text for chapter in chapters for text in chapter.splitlines() if len(text) > 80]
    texts = folder / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"text": row}, ensure_ascii=False) for row in rows), encoding="utf-8")
    build_corpus(build(CorpusConfig, {"input": [str(texts)], "output": folder / "corpus", "workers": 1}))
    return folder / "corpus"


@pytest.fixture(scope="module")
def tokens(corpus: Path, tokenizer_dir: Path) -> Path:
    build_tokens(TokensConfig(input=corpus, tokenizer=tokenizer_dir, output=corpus.parent / "tokens"))
    return corpus.parent / "tokens"


@pytest.fixture(scope="module")
def counted(tokens: Path) -> Any:
    """A finished run of the preset ``ngram-3``."""
    values = {"data": tokens, "model": "ngram-3", "output": tokens.parent / "run", "sequence_length": 64}
    return pretrain(build(PretrainConfig, values | {"sample_prompts": ["The ", "今天"]}))


def test_a_counted_run_has_the_files_and_facts_of_a_trained_one(counted: Any, tokens: Path) -> None:
    run = Path(counted.output)
    manifest = json.loads((tokens / "manifest.json").read_text())
    assert counted.tokens == manifest["facts"]["splits"]["train"]["tokens"]
    assert counted.parameters == sum(counted.data_report["ngrams"].values()) == load_model(run).config.num_parameters
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["val_loss"] == counted.final["val_loss"] < counted.uniform_loss
    assert counted.final["train_loss"] < row["val_loss"]
    assert {json.loads(line)["prompt"] for line in (run / "samples.jsonl").read_text().splitlines()} == {"The ", "今天"}
    facts = json.loads((run / "manifest.json").read_text())["facts"]
    assert facts["weights_sha256"] == counted.weights_sha256
    assert "counted" in str(counted)
    again = pretrain(build(PretrainConfig, {
        "data": tokens, "model": "ngram-3", "output": run, "sequence_length": 64, "sample_prompts": ["The ", "今天"],
    }))  # fmt: skip
    assert again == counted


def test_eval_and_generate_take_an_ngram_model_like_any_other(
    cli: Callable[..., Any], counted: Any, corpus: Path
) -> None:
    scored = cli("eval", "--model", counted.output, "--text", corpus, "--split", "val", "--json")
    assert scored.code == 0, scored.err
    total = json.loads(scored.out)["total"]
    assert total["nats_per_token"] == pytest.approx(counted.final["val_loss"], rel=0.02)  # windows begin elsewhere
    said = cli("generate", "--model", counted.output, "--prompt", "The ", "max_new_tokens=8", "--json")
    assert said.code == 0, said.err
    for model in (counted.output, "ngram"):
        planned = cli("plan", "--model", model, "--devices", "cpu")
        assert planned.code == 2
        assert "an n-gram model is counted" in planned.err


@pytest.mark.parametrize("key", ["lr=1e-3", "minutes=1", "max_steps=3", "batch_tokens=64", "eval.tokens=2", "warmup=1"])
def test_keys_that_counting_has_no_use_for_are_refused_by_name(
    cli: Callable[..., Any], tokens: Path, tmp_path: Path, key: str
) -> None:
    words = ("--data", tokens, "--model", "ngram", "--output", tmp_path / "run")
    told = cli("pretrain", *words, "sequence_length=64", key)
    assert told.code == 2
    assert f"{key.partition('=')[0].partition('.')[0]}: an n-gram model counts once" in told.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", SHAPES)
def test_a_run_stopped_anywhere_ends_as_if_it_had_never_been(name: str, tmp_path: Path) -> None:
    """Trap R7, with dropout: the batch of step 7 fails, the run goes on from step 4."""

    def job(output: Path) -> Any:
        made = network_class(SHAPES[name])(SHAPES[name])
        made.init_weights(3)
        return tiny_job(output, model=made)

    whole = tiny_run(tmp_path / "whole", job(tmp_path / "whole"))
    run, broken = tmp_path / "stopped", job(tmp_path / "stopped")
    batch = broken.train.batch

    def failing(start: int, count: int) -> Any:
        if start >= 7 * 4:
            raise RuntimeError("the power is gone")
        return batch(start, count)

    broken.train.batch = failing
    with pytest.raises(RuntimeError, match="power"):
        tiny_run(run, broken)
    torch.rand(5)  # the state of the generator must not matter
    gone_on = tiny_run(run, job(run))
    assert gone_on.weights_sha256 == whole.weights_sha256
    assert losses(run) == losses(tmp_path / "whole")
    assert whole.final["val_loss"] < whole.before["val_loss"]


@pytest.mark.parametrize("name", ["lstm", "feedforward"])
def test_presets_train_evaluate_and_are_planned(
    cli: Callable[..., Any], tokens: Path, corpus: Path, tmp_path: Path, name: str
) -> None:
    run, small = tmp_path / "run", ("max_steps=6", "sequence_length=64", "batch_tokens=512")
    keys = (*small, "compile=false", "threads=1")
    done = cli("pretrain", "--data", tokens, "--model", name, "--output", run, "sample_prompts=[The]", *keys, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["final"]["val_loss"] < result["before"]["val_loss"]
    assert json.loads((run / "model" / "config.json").read_text())["model_type"] == f"hepta-{name}"
    assert cli("eval", "--model", run, "--text", corpus, "--split", "val", "max_documents=5").code == 0
    planned = cli("plan", "--model", name, "--devices", "cpu")
    assert planned.code == 0, planned.err
    assert "M)" in planned.out


def test_an_order_out_of_range_is_told() -> None:
    with pytest.raises(HeptaError, match="order must be 1 to 7"):
        NGramShape(vocab_size=64, order=9)
