"""``hepta eval`` as people use it: table, JSON, a kept result, one line for a slip."""

import json
import math
import shutil

import pytest

from hepta.catalog.documents import iter_documents
from hepta.config import HeptaError
from hepta.evaluation.config import EvalConfig
from hepta.evaluation.text import evaluate_text, read_result, show_scores, trained_length
from hepta.model.decoder import Decoder
from hepta.model.families import preset
from hepta.model.load import save_model
from hepta.tokenizer.config import TokenizerConfig
from hepta.tokenizer.load import load_tokenizer
from hepta.tokenizer.train import train_tokenizer

ENGLISH = [f"The cat number {i} sat on the mat and looked at {i * 7} mice. It was <|im_end|> quiet." for i in range(40)]
CHINESE = [f"第{i}回，曹操引兵{i * 3}万，夜袭乌巢，火光冲天，众将皆惊。" for i in range(40)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    directory = tmp_path_factory.mktemp("text")
    for name, rows in (("cats", ENGLISH), ("sanguo", CHINESE)):
        lines = [json.dumps({"text": row}, ensure_ascii=False) for row in rows]
        (directory / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def tokenizer(text, tmp_path_factory):
    output = tmp_path_factory.mktemp("tokenizer") / "t"
    train_tokenizer(TokenizerConfig(input=text, vocab_size=384, output=output))
    return output


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "model"
    shape = preset("nano", load_tokenizer(tokenizer).padded_size).replace(num_layers=1, hidden_size=64)
    decoder = Decoder(shape)
    decoder.init_weights(0)
    decoder.output_weight.data.mul_(0.1)  # logits near 0: it guesses almost evenly
    save_model(decoder, directory, tokenizer, provenance={"sequence_length": 64})
    return directory


def test_a_model_is_scored_per_language_and_source_with_xz_and_the_uniform_loss_beside(model, text):
    result = evaluate_text(EvalConfig(model=str(model.parent), text=text))
    assert set(result.by_language) == {"en", "zh"}
    assert set(result.by_source) == {"en/cats", "zh/sanguo"}
    assert result.sequence_length == 64
    assert result.uniform_loss == pytest.approx(math.log(result.vocabulary))
    assert result.total.nats_per_token == pytest.approx(result.uniform_loss, abs=0.3)
    assert result.total.bytes == sum(len(d.text.encode()) for d in iter_documents(text))
    for found in (*result.by_language.values(), result.total):
        assert 0 < found.xz_bits_per_byte < found.bits_per_byte
    zh = result.by_language["zh"]
    assert zh.words == sum(len(t) for t in CHINESE)
    text_shown = show_scores(result)
    for word in ("bits/byte", "xz -9", "ppl/word", "uniform loss", "en/cats", "zh"):
        assert word in text_shown


def test_windows_are_as_long_as_the_sequences_trained_on(model, tmp_path):
    assert trained_length(model, {"provenance": {"sequence_length": 64}}) == 64
    assert trained_length(model, {}) is None
    (tmp_path / "recipe.yaml").write_text("verb: pretrain\nsequence_length: 256\n")
    assert trained_length(tmp_path / "model", {"provenance": {}}) == 256


def test_a_kept_result_is_read_back_and_not_measured_again(model, text, tmp_path, monkeypatch):
    config = EvalConfig(model=str(model), text=text, output=tmp_path / "out", max_documents=5)
    first = evaluate_text(config)
    monkeypatch.setattr("hepta.evaluation.text.measure", lambda _: pytest.fail("measured again"))
    assert evaluate_text(config) == first
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert read_result(manifest["facts"]) == first
    assert json.loads((tmp_path / "out" / "eval.json").read_text()) == manifest["facts"]


def test_nothing_is_written_without_an_output(model, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate_text(EvalConfig(model=str(model), text=text, max_documents=2))
    assert list(tmp_path.iterdir()) == []


def test_text_that_spells_a_special_token_is_scored_as_text(model, text, tmp_path):
    (tmp_path / "t.txt").write_text("a <|im_end|> b <|endoftext|> c")
    result = evaluate_text(EvalConfig(model=str(model), text=tmp_path / "t.txt"))
    plain = load_tokenizer(model).encode("a <|im_end|> b <|endoftext|> c")
    assert result.total.tokens == len(plain) + 1
    assert result.total.tokens > 10


def test_the_command_prints_a_table_or_one_json_object(cli, model, text):
    shown = cli("eval", "--model", model, "--text", text, "max_documents=3")
    assert shown.code == 0
    assert "bits/byte" in shown.out
    as_json = cli("eval", "--model", model, "--text", text, "max_documents=3", "--json")
    assert json.loads(as_json.out)["total"]["documents"] == 3


def test_a_tokenizer_that_does_not_belong_is_one_line(cli, model, text, tmp_path):
    other = tmp_path / "other"
    train_tokenizer(TokenizerConfig(input=text, vocab_size=320, output=other))
    told = cli("eval", "--model", model, "--text", text, f"tokenizer={other}")
    assert told.code == 2
    assert told.err.count("\n") == 1
    assert "tokenizer" in told.err


def test_slips_are_one_line_with_exit_2(cli, model, text, tmp_path):
    empty, bare, broken = tmp_path / "empty", tmp_path / "bare", tmp_path / "broken"
    empty.mkdir()
    bare.mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / file, bare)
    shutil.copytree(model, broken)
    (broken / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:1000])
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    cases = [
        (tmp_path / "nowhere", text, "no such directory"), (empty, text, "no config.json"), (bare, text, "no weights"),
        (broken, text, "safetensors"), (model, tmp_path / "nothing", "no such file"), (model, empty, "neither a"),
        (model, tmp_path / "binary.txt", "UTF-8"),
    ]  # fmt: skip
    for directory, path, said in cases:
        told = cli("eval", "--model", directory, "--text", path)
        assert told.code == 2, told.err
        assert told.err.startswith("error: ")
        assert told.err.count("\n") == 1, told.err
        assert said in told.err


def test_a_split_without_documents_is_told(model, tmp_path):
    (tmp_path / "t.jsonl").write_text("")
    with pytest.raises(HeptaError, match="no documents"):
        evaluate_text(EvalConfig(model=str(model), text=tmp_path / "t.jsonl"))
