"""hepta tune and predict as people use them: from a table to a model, its scores, and answers about new texts."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hepta.catalog.fetch import dataset_path
from hepta.config import MachineError, build
from hepta.data.tables import load_labelled
from hepta.model.classifier import load_classifier
from hepta.model.load import save_model
from hepta.stage import read_manifest
from hepta.training.config import TuneConfig
from hepta.training.tune import tune

TINY = {"vocab_size": 500, "epochs": 2, "sequence_length": 32, "precision": "fp32", "threads": 1, "lr": 3e-3}


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """300 real leads of two topics, with a number beside each."""
    rows = [e for e in load_labelled(dataset_path("topics-en"), "classify")[0] if e.label in ("People", "Geography")]
    file = tmp_path_factory.mktemp("table") / "leads.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for row in (rows[i] for i in range(0, len(rows), len(rows) // 300)):
            out.write(json.dumps({"text": row.text[:200], "label": row.label, "score": 3.0 + len(row.text) % 7}) + "\n")
    return file


def rows_of(file):
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def run(output, table, **values):
    keys = {"task": "classify", "model": "nano", "data": str(table), "output": output, **TINY, **values}
    return tune(build(TuneConfig, keys))


@pytest.fixture(scope="session")
def tuned(tmp_path_factory, table):
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("tuned") / "run"
    return run(output, table)


def test_a_fresh_model_learns_two_topics_and_stands_beside_its_baselines(tuned):
    assert tuned.test["accuracy"] > tuned.test_before["accuracy"] + 0.1
    assert tuned.test["accuracy"] > 0.7
    assert [b["name"] for b in tuned.baselines] == ["majority", "keyword", "TF-IDF + logistic regression"]
    best = max(tuned.baselines, key=lambda b: b["scores"]["accuracy"])
    assert best["name"] in tuned.verdict
    assert ("is better here" in tuned.verdict) == (best["scores"]["accuracy"] > tuned.test["accuracy"])
    facts = read_manifest(Path(tuned.output))["facts"]
    assert facts["test"]["confusion"] == tuned.test["confusion"]
    assert sum(map(sum, tuned.test["confusion"])) == tuned.data_report["splits"]["test"]


def test_predictions_of_the_test_split_are_written_and_are_what_was_scored(tuned, cli):
    rows = rows_of(f"{tuned.output}/predictions.jsonl")
    right = np.mean([row["truth"] == row["predicted"] for row in rows])
    assert right == pytest.approx(tuned.test["accuracy"])
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in rows)
    asked = cli("predict", "--model", tuned.output, "--text", rows[0]["text"], "--json")
    assert json.loads(asked.out)["probabilities"] == pytest.approx(rows[0]["probabilities"], abs=1e-4)


def test_transformers_classifies_texts_as_hepta_predict_does(tuned, table):
    """The whole way from text: its tokenizer, its model, padding and all."""
    tokenizer = AutoTokenizer.from_pretrained(tuned.model)
    theirs = AutoModelForSequenceClassification.from_pretrained(tuned.model).eval()
    rows = rows_of(f"{tuned.output}/predictions.jsonl")[:12]
    batch = tokenizer([r["text"] for r in rows], padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        chances = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.softmax(-1)
    for row, chance in zip(rows, chances, strict=True):
        named = {theirs.config.id2label[i]: float(value) for i, value in enumerate(chance)}
        assert named == pytest.approx(row["probabilities"], abs=1e-4)


def test_each_epoch_is_told_on_one_line_and_the_best_one_is_kept(tmp_path, table, capsys):
    result = run(tmp_path / "run", table, epochs=6, patience=1, lr=2e-2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Epoch")]
    assert all("loss" in line and "accuracy" in line and "held out: loss" in line for line in lines)
    rows = rows_of(tmp_path / "run" / "metrics.jsonl")
    held = {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}
    assert result.final["val_loss"] == pytest.approx(min(held[s] for s in held if s), rel=1e-4)
    assert len(lines) <= 6


def test_a_run_that_broke_off_ends_with_the_same_weights_and_scores(tmp_path, table, monkeypatch):
    """Dropout, changed copies, rows sorted by length; trap R7."""
    import hepta.training.run as run_module

    values = {"augment": 0.3, "epochs": 1.5, "checkpoint": {"every": 2}}
    whole = run(tmp_path / "a", table, **values)
    real, steps = run_module.run_step, []

    def mortal(*arguments, **more):
        steps.append(1)
        if len(steps) == 8:
            raise MachineError("the machine went away")
        return real(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "run_step", mortal)
        with pytest.raises(MachineError):
            run(tmp_path / "b", table, **values)
    again = run(tmp_path / "b", table, **values)
    assert again.weights_sha256 == whole.weights_sha256
    assert again.test == whole.test
    assert again.test_before == whole.test_before


@pytest.mark.chaos
def test_a_killed_run_ends_with_the_same_weights(tmp_path, table):
    """Dropout, changed copies and all; trap R7."""
    keys = ["--task", "classify", "--model", "nano", "--data", str(table)]
    values = {**TINY, "augment": 0.3, "epochs": 1.5, "checkpoint.every": 2, "threads": 1}
    keys += [f"{key}={value}" for key, value in values.items()]
    command = [sys.executable, "-m", "hepta", "tune", *keys]
    whole = subprocess.run(
        [*command, "--output", str(tmp_path / "a"), "--json"], capture_output=True, text=True, timeout=300
    )
    assert whole.returncode == 0, whole.stderr
    killed = subprocess.Popen([*command, "--output", str(tmp_path / "b")], stderr=subprocess.PIPE, text=True)
    deadline = 600
    while not list((tmp_path / "b" / "checkpoints").glob("step-*")) and deadline:
        deadline -= 1
        if killed.poll() is not None:
            break
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again = subprocess.run(
        [*command, "--output", str(tmp_path / "b"), "--json"], capture_output=True, text=True, timeout=300
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["weights_sha256"] == json.loads(whole.stdout)["weights_sha256"]
    assert json.loads(again.stdout)["test"] == json.loads(whole.stdout)["test"]


@pytest.mark.parametrize("model", ["bert-nano", "lstm", "gpt2-nano"])
def test_other_families_are_tuned_alike(tmp_path, table, model):
    result = run(tmp_path / "run", table, model=model, epochs=1, max_steps=3)
    again = load_classifier(result.model)
    assert again.task.labels == ("Geography", "People")
    if model == "bert-nano":  # its head reads the first token, so there must be one that is always the same
        tokenizer = AutoTokenizer.from_pretrained(result.model)
        assert tokenizer("any text")["input_ids"][0] == tokenizer.bos_token_id


def test_low_rank_adapters_of_a_pretrained_body(tmp_path, table, tuned, cli):
    from hepta.model.families import network_class, preset

    shape = preset("nano", load_classifier(tuned.model).config.vocab_size)
    base = network_class(shape)(shape)
    base.init_weights(3)
    save_model(base, tmp_path / "base", tuned.model)
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    result = run(tmp_path / "run", table, model=str(tmp_path / "base"), method="lora", rank=4, alpha=8, epochs=1)
    assert result.trained_parameters < result.parameters / 5
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "run" / "model" / "adapter_config.json").is_file()
    row = rows_of(tmp_path / "run" / "predictions.jsonl")[0]
    asked = cli("predict", "--model", tmp_path / "run", "--text", row["text"], "--json")
    assert json.loads(asked.out)["probabilities"] == pytest.approx(row["probabilities"], abs=1e-4)


def test_numbers_come_back_on_their_own_scale(tmp_path, table, cli):
    result = run(tmp_path / "run", table, task="regress", label="score", epochs=1)
    assert [b["name"] for b in result.baselines] == ["mean", "keyword", "TF-IDF + ridge regression"]
    assert result.test["rmse"] < 4
    row = rows_of(tmp_path / "run" / "predictions.jsonl")[0]
    asked = cli("predict", "--model", tmp_path / "run", "--text", row["text"], "--json")
    assert json.loads(asked.out)["value"] == pytest.approx(row["predicted"], abs=1e-3)
    assert 0 < row["predicted"] < 12  # targets lie in 3 … 9


def test_a_test_file_of_ones_own_and_class_weights(tmp_path, table):
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "test.jsonl").write_text("".join(lines[:60]), encoding="utf-8")
    weights = {"Geography": 3.0}
    result = run(tmp_path / "run", table, test_data=str(tmp_path / "test.jsonl"), class_weights=weights, epochs=0.5)
    assert result.data_report["splits"]["test"] == 60
    assert result.data_report["twins of test rows, removed"] >= 60


def test_predict_reads_files_and_keeps_rows_in_step(tuned, tmp_path, cli):
    (tmp_path / "in.csv").write_text('id,review\n1,A river in Africa\n2,\n3,"An American singer, born 1950"\n')
    done = cli("predict", "--model", tuned.output, "--input", tmp_path / "in.csv", "--output", tmp_path / "out.jsonl")
    assert done.code == 0
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["row"] for row in rows] == ["in row 2", "in row 3", "in row 4"]
    assert rows[1] == {"row": "in row 3", "text": None, "error": "no text"}
    (tmp_path / "in.txt").write_text("A river in Africa\n\nAn American singer\n")
    done = cli("predict", "--model", tuned.output, "--input", tmp_path / "in.txt", "--json")
    assert [json.loads(line)["row"] for line in done.out.splitlines()] == ["line 1", "line 2", "line 3"]
    alone = cli("predict", "--model", tuned.output, "--text", "A river in Africa", "--json")
    same = json.loads(done.out.splitlines()[0])["probabilities"]
    assert json.loads(alone.out)["probabilities"] == pytest.approx(same, abs=1e-5)  # alone or among others


def test_stdin_lines_are_answered(tuned, cli, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("A river\nA singer\n"))
    done = cli("predict", "--model", tuned.output, "--json")
    assert [json.loads(line)["text"] for line in done.out.splitlines()] == ["A river", "A singer"]


def test_wrong_input_is_one_line_and_leaves_nothing_behind(tmp_path, table, cli, tokenizer_dir):
    out = tmp_path / "out"
    (tmp_path / "bad.csv").write_text("a,b,c\n1,2,3\n")
    for arguments, message in (
        (["--data", tmp_path / "bad.csv"], "columns seen: 'a', 'b', 'c'"),
        (["--data", tmp_path / "nowhere.csv"], "no such file or directory"),
        (["--data", table, "label=topic"], "no column 'topic'"),
        (["--data", table, "method=lora"], "fresh weights"),
        (["--data", table, "class_weights={Animals: 2}"], "no class 'Animals'"),
        (["--data", table, "sequence_length=3000", "--model", "gpt2-nano"], "give sequence_length=1024"),
    ):
        words = ["--task", "classify", "--output", out, "--model", "nano", "vocab_size=400", *arguments]
        done = cli("tune", *words)
        assert (done.code, message in done.err) == (2, True), (arguments, done.err)
        assert done.err.splitlines()[-1].startswith("error: ")
    from hepta.model.families import network_class, preset

    shape = preset("nano", 640)
    model = network_class(shape)(shape)
    model.init_weights(0)
    save_model(model, tmp_path / "lm", tokenizer_dir)
    done = cli("predict", "--model", tmp_path / "lm", "--text", "hello")
    assert done.code == 2
    assert "is a causal language model, no classifier; continue text with hepta generate" in done.err
