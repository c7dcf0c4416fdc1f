"""Distilling through the same loop: it learns, tells its parts, resumes bit for bit, refuses what cannot be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from little import KEYS, SHAPE, crash_at

from hepta.compression.config import DistillConfig
from hepta.compression.distill import distill, keep_layers, spaced_layers
from hepta.config import HeptaError, build
from hepta.model.families import network_class
from hepta.model.history import LSTMShape
from hepta.model.learned import GPT2Shape
from hepta.model.load import load_model, save_model
from hepta.reports.config import ReportConfig
from hepta.reports.page import write_report


def config(output: Path, teacher: Path, tokens: Path, **more: Any) -> DistillConfig:
    small = {"num_layers": 1, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    student = {} if "keep_layers" in more or "student" in more else {"student": "nano", "shape": small}
    values = {**KEYS, "output": output, "teacher": str(teacher), "data": tokens, "max_steps": 12, "lr": 0.01}
    return build(DistillConfig, {**values, **student, **more})


def rows(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    volatile = {"seconds", "tokens_per_second", "mfu", "memory_bytes", "phases", "data_wait", "memory"}
    return [{key: value for key, value in row.items() if key not in volatile} for row in found]


def test_a_student_comes_nearer_to_text_and_teacher_and_the_metrics_say_both(
    trained: Path, tokens: Path, tmp_path: Path
) -> None:
    result = distill(config(tmp_path / "run", trained, tokens, max_steps=30))
    steps = [row for row in rows(tmp_path / "run") if "kl" in row]
    assert len(steps) == 30
    assert steps[-1]["kl"] < steps[0]["kl"] / 2
    assert steps[-1]["data_loss"] < steps[0]["data_loss"] - 1
    assert steps[3]["loss"] == pytest.approx(0.5 * 4 * steps[3]["kl"] + 0.5 * steps[3]["data_loss"], rel=1e-5)
    assert result.final["val_loss"] < result.before["val_loss"] - 1
    whole = json.loads((trained / "manifest.json").read_text())["facts"]
    assert result.teacher["val_loss"] == pytest.approx(whole["final"]["val_loss"], abs=1e-4)
    assert result.parameters < result.teacher["parameters"] == whole["parameters"]
    assert f"teacher         {whole['parameters']:,} parameters, loss" in str(result)
    assert distill(config(tmp_path / "run", trained, tokens, max_steps=30)) == result, "done is done"
    assert load_model(tmp_path / "run").config.num_layers == 1
    page = write_report(ReportConfig(run=tmp_path / "run"))
    assert page.problems == []
    assert "Distilling" in page.path.read_text(encoding="utf-8")


def test_a_distilling_run_resumes_bit_exactly(
    trained: Path, tokens: Path, tmp_path: Path
) -> None:
    """Trap R7: a crash before step 9, checkpoints at every fourth; the same weights and the same rows after."""
    more = {"checkpoint": {"every": 4}}
    whole = distill(config(tmp_path / "whole", trained, tokens, **more))
    with crash_at(9 * 8):
        distill(config(tmp_path / "run", trained, tokens, **more))
    again = distill(config(tmp_path / "run", trained, tokens, **more))
    assert again.weights_sha256 == whole.weights_sha256
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_another_teacher_is_another_run(trained: Path, tokens: Path, tmp_path: Path) -> None:
    distill(config(tmp_path / "run", trained, tokens, max_steps=1))
    with pytest.raises(HeptaError, match="made with another teacher"):
        distill(config(tmp_path / "run", trained.parent / "fresh", tokens, max_steps=1))


def test_kept_layers_are_the_teachers_own(trained: Path, tokens: Path, tmp_path: Path) -> None:
    assert [spaced_layers(12, n) for n in (1, 2, 3, 6)] == [[0], [0, 11], [0, 6, 11], [0, 2, 4, 7, 9, 11]]
    teacher = load_model(trained)
    student = keep_layers(teacher, 2)
    for mine, number in ((0, 0), (1, 3)):
        for name, value in student.blocks[mine].state_dict().items():
            assert torch.equal(value, teacher.blocks[number].state_dict()[name])
    assert torch.equal(student.output_weight, teacher.output_weight)
    result = distill(config(tmp_path / "run", trained, tokens, keep_layers=2, max_steps=8, lr=1e-3))
    ids = torch.randint(0, SHAPE.vocab_size, (2, 9))
    shorter = network_class(student.config)(student.config)
    shorter.load_state_dict(student.state_dict())
    torch.testing.assert_close(shorter(ids), student(ids))
    assert result.before["val_loss"] < result.uniform_loss, "it begins with what the teacher knew"
    assert result.final["val_loss"] < result.before["val_loss"]


@pytest.mark.parametrize("shape", [
    LSTMShape(vocab_size=640, hidden_size=24, num_layers=1),
    GPT2Shape(vocab_size=640, hidden_size=24, intermediate_size=48, num_layers=1, num_heads=2, max_positions=64),
], ids=lambda shape: type(shape).__name__)  # fmt: skip
def test_teachers_of_other_families_teach_a_transformer(
    shape: Any, tokens: Path, tokenizer_dir: Path, tmp_path: Path
) -> None:
    model = network_class(shape)(shape)
    model.init_weights(1)
    save_model(model, tmp_path / "teacher", tokenizer_dir)
    result = distill(config(tmp_path / "run", tmp_path / "teacher", tokens, max_steps=2))
    assert result.steps == 2


def test_an_ngram_teacher_teaches_too(tokens: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    options = ["--data", tokens, "--output", tmp_path / "ngram", "sequence_length=64", "sample_prompts=[]"]
    assert cli("pretrain", "--model", "ngram-3", *options).code == 0
    distill(config(tmp_path / "run", tmp_path / "ngram", tokens, max_steps=6))
    steps = [row["kl"] for row in rows(tmp_path / "run") if "kl" in row]
    assert steps[-1] < steps[0]


def test_what_cannot_be_distilled_is_refused_in_one_line(
    trained: Path, tokens: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    def refused(*words: object) -> str:
        place = ["--output", tmp_path / "none", "sequence_length=64", "batch_tokens=512"]
        done = cli("compress", "distill", *place, *words)
        assert done.code == 2, done.err
        lines = done.err.splitlines()
        assert len(lines) == 1, lines
        assert not (tmp_path / "none").exists(), "a refused verb leaves no claim behind"
        return lines[0]

    data = ["--teacher", trained, "--data", tokens]
    assert "give either --student" in refused(*data)
    assert "give either --student" in refused(*data, "--student", "nano", "keep_layers=2")
    assert "has 4 layers; keep fewer" in refused(*data, "keep_layers=4")
    assert "unknown key 'shape.hiden_size'; did you mean 'hidden_size'?" in refused(
        *data, "--student", "nano", "shape.hiden_size=8"
    )
    assert "is masked" in refused(*data, "--student", "bert-nano")
    assert "is counted" in refused(*data, "--student", "ngram")
    assert "fresh weights, which knows nothing" in refused("--teacher", "nano", "--student", "nano", "--data", tokens)
    assert "no token shards there" in refused("--teacher", trained, "--student", "nano", "--data", trained)
    assert "weight" in refused(*data, "--student", "nano", "weight=1.5")
    text, words = ["--input", tokens.parent / "texts.jsonl"], tmp_path / "words"
    assert cli("tokenizer", "train", *text, "--vocab-size", 400, "--output", words).code == 0
    assert cli("tokens", "build", *text, "--tokenizer", words, "--output", tmp_path / "other").code == 0
    message = refused("--teacher", trained, "--student", "nano", "--data", tmp_path / "other")
    assert "made with another tokenizer than the teacher's; build the tokens with --tokenizer" in message
