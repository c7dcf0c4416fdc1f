"""A translator from the command line: trained, judged, resumed bit for bit, opened by transformers, asked."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hepta.config import HeptaError, build
from hepta.data.pairs import PairOrder, load_pairs, split_pairs
from hepta.generation.translate import translate_texts
from hepta.training.config import TranslateConfig, TuneConfig
from hepta.training.metrics import read_rows
from hepta.training.translate import translate_task

TINY = ["max_steps=6", "rows=8", "vocab_size=400", "precision=fp32", "threads=1", "checkpoint.every=2", "seed=1"]


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory, pairs_zh_en: Path) -> Path:
    """60 real pairs under columns whose names say nothing."""
    file = tmp_path_factory.mktemp("pairs") / "sixty.jsonl"
    rows = [json.loads(line) for line in pairs_zh_en.read_text(encoding="utf-8").splitlines()[100:160]]
    file.write_text("".join(json.dumps({"a": r["zh"], "b": r["en"]}, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return file


def config(sixty: Path, output: Path, **more: Any) -> TranslateConfig:
    keys = {
        "max_steps": 6, "rows": 8, "vocab_size": 400, "precision": "fp32", "threads": 1, "seed": 1,
        "checkpoint": {"every": 2}, "text": "a", "label": "b",
    }  # fmt: skip
    return build(TranslateConfig, {"data": str(sixty), "output": str(output), **keys, **more})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, sixty: Path) -> Path:
    """A finished run of 80 steps, which has learnt to say something."""
    output = tmp_path_factory.mktemp("runs") / "run"
    translate_task(config(sixty, output, max_steps=80, eval={"every": 80}, checkpoint={"every": 80}, dropout=0.0))
    return output


def test_tune_trains_judges_and_writes_its_facts(cli: Callable[..., Any], sixty: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = cli(
        "tune", "--task", "translate", "--model", "transformer-nano", "--data", sixty, "--output", output,
        "text=a", "label=b", *TINY, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out)["translation"]
    splits = split_pairs(load_pairs(sixty, "a", "b")[0])
    assert found["sentences"] == len(splits.test) > 0
    assert {"bleu", "chrf", "signature", "interval", "baselines", "samples", "validation"} <= set(found)
    assert set(found["baselines"]) == {"copy", "memory"}
    assert [(s["source"], s["reference"]) for s in found["samples"]] == [(p.source, p.target) for p in splits.test[:20]]
    assert set(found["validation"]) == {"before", "after"}
    assert found["validation"]["after"]["val_loss"] < found["validation"]["before"]["val_loss"]
    assert json.loads((output / "manifest.json").read_text())["facts"]["translation"] == found
    rows = read_rows(output / "metrics.jsonl")
    assert [row["step"] for row in rows if "val_bleu" in row] == [0, 1, 2, 3, 4, 5, 6]
    said = read_rows(output / "samples.jsonl")
    assert {row["prompt"] for row in said} == {p.source for p in splits.test[:20]}
    assert all(row["held_out"] and row["kind"] == "translation" for row in said)
    again = cli("tune", "--task", "translate", "--data", sixty, "--output", output, "text=a", "label=b", *TINY)
    assert again.code == 0, again.err
    assert "already done" in again.err
    assert "test bleu" in again.out
    assert "memory" in again.out


def test_predict_translates_lines_files_and_arguments(
    cli: Callable[..., Any], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["我很累，想睡了。", "我的电脑坏了。"]
    expected = translate_texts(run, texts, beam=4)
    assert all(one.text for one in expected)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(texts) + "\n"))
    said = cli("predict", "--model", run, "--json")
    assert said.code == 0, said.err
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [(row["text"], row["prediction"]) for row in rows] == [
        (t, e.text) for t, e in zip(texts, expected, strict=True)
    ]
    assert [row["score"] for row in rows] == pytest.approx([one.score for one in expected], abs=1e-6)
    file = tmp_path / "ask.csv"
    file.write_text("text\n" + "\n".join(texts) + "\n", encoding="utf-8")
    from_file = cli("predict", "--model", run, "--input", file)
    assert from_file.out.rstrip("\n").split("\n") == [one.text for one in expected]
    greedy = cli("predict", "--model", run, "--text", texts[0], "--beam", "1", "--json")
    assert json.loads(greedy.out)["prediction"] == translate_texts(run, texts[:1], beam=1)[0].text


def test_transformers_translates_alike_from_the_directory(run: Path) -> None:
    """AutoTokenizer and MarianMTModel with the directory's own generation settings give our translations."""
    texts = ["我很累，想睡了。", "我的电脑坏了。", "他在楼上，我在楼下。"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(run / "model").eval()
    assert isinstance(model, transformers.MarianMTModel)
    found = translate_texts(run, texts)
    assert all(one.text for one in found)
    for text, ours in zip(texts, found, strict=True):
        ids = torch.tensor([[*tokenizer.encode(text), tokenizer.eos_token_id]])
        out = model.generate(input_ids=ids, max_new_tokens=ids.shape[1] + 50)
        assert tokenizer.decode(out[0], skip_special_tokens=True).strip() == ours.text


def test_resume_is_bit_exact(sixty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap R7: cut off in the middle of a step, with dropout, the rest ends with the same weights and losses."""
    whole = translate_task(config(sixty, tmp_path / "whole"))
    batch = PairOrder.batch

    def mortal(self: PairOrder, start: int, count: int) -> Any:
        if start >= 5 * 8:
            raise OSError("the power went")
        return batch(self, start, count)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="the power went"):
        patch.setattr(PairOrder, "batch", mortal)
        translate_task(config(sixty, tmp_path / "cut"))
    resumed = translate_task(config(sixty, tmp_path / "cut"))
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.translation == whole.translation
    losses = [
        [(row["step"], row["loss"]) for row in read_rows(tmp_path / name / "metrics.jsonl") if "loss" in row]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_looking_more_often_changes_nothing(sixty: Path, tmp_path: Path) -> None:
    """Evaluations translate, and draw no random number that training would have drawn."""
    rare = translate_task(config(sixty, tmp_path / "rare", eval={"every": 100}, max_steps=3))
    often = translate_task(config(sixty, tmp_path / "often", eval={"every": 1}, max_steps=3))
    assert rare.weights_sha256 == often.weights_sha256


def test_a_translator_goes_on_with_its_own_tokenizer(sixty: Path, run: Path, tmp_path: Path) -> None:
    more = translate_task(config(sixty, tmp_path / "more", model=str(run), max_steps=2, dropout=0.0))
    before = json.loads((run / "manifest.json").read_text())["facts"]
    assert more.translation["validation"]["before"] == before["translation"]["validation"]["after"]
    with pytest.raises(HeptaError, match="has its own; leave the key out"):
        translate_task(config(sixty, tmp_path / "other", model=str(run), tokenizer=str(run / "model")))
    with pytest.raises(HeptaError, match="is no translator"):
        translate_task(config(sixty, tmp_path / "nano", model="nano"))


@pytest.mark.parametrize("verb", ["generate", "chat", "eval", "sft"])
def test_other_verbs_refuse_a_translator_in_one_line(
    cli: Callable[..., Any], run: Path, tmp_path: Path, chat_en: Path, verb: str
) -> None:
    more = {
        "generate": ["--prompt", "你好"], "chat": ["message=你好"], "eval": ["--text", chat_en],
        "sft": ["--data", chat_en, "--output", tmp_path / "o"],
    }  # fmt: skip
    done = cli(verb, "--model", run, *more[verb])
    assert done.code == 2
    assert "use hepta predict" in done.err.splitlines()[-1]
    assert not (tmp_path / "o").exists()


def test_wrong_keys_and_input_are_one_line(cli: Callable[..., Any], sixty: Path, tmp_path: Path) -> None:
    def refused(*more: object) -> str:
        done = cli("tune", "--task", "translate", "--data", sixty, "--output", tmp_path / "o", *more)
        assert done.code == 2, done.out
        assert not (tmp_path / "o").exists()
        return done.err.strip().splitlines()[-1]

    assert "did you mean 'beam'" in refused("beem=3")
    assert "which column to use is not obvious; columns seen: 'a', 'b'" in refused()
    assert "raise sequence_length" in refused("text=a", "label=b", "sequence_length=8", "vocab_size=300")
    assert "a translator is not compiled" in refused("compile=true")
    assert build(TuneConfig, {"data": "x", "output": "y", "task": "translate"}).__class__ is TranslateConfig


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_real_pairs_reach_a_floor(pairs_zh_en: Path, tmp_path: Path) -> None:
    """The defaults on pairs-zh-en: BLEU 7.2 and chrF 21.6 when written; another machine differs."""
    keys = {"data": str(pairs_zh_en), "output": str(tmp_path / "run"), "text": "zh", "label": "en"}
    found = translate_task(build(TranslateConfig, keys)).translation
    assert found["bleu"] > 4.5
    assert found["chrf"] > 18
    assert found["validation"]["before"]["val_bleu"] < 1
    assert found["baselines"]["memory"]["bleu"] == pytest.approx(11.3, abs=0.1)
