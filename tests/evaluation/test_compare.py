"""Models beside their original: divergence by brute force, choices one by one, the verb and its page."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from hepta.catalog.documents import Document
from hepta.compression.compare import compare_models, read_result, show_comparison
from hepta.config import HeptaError
from hepta.evaluation.agreement import Agreement, agreement, bits_interval, summed
from hepta.evaluation.choices import Question, answer_questions, load_questions
from hepta.evaluation.compare import _best_trades
from hepta.evaluation.config import CompareConfig
from hepta.evaluation.perplexity import score_documents
from hepta.model.classifier import Task, build_classifier, save_classifier
from hepta.model.decoder import Decoder
from hepta.model.families import network_class, preset
from hepta.model.load import load_model, save_model
from hepta.stage import read_manifest
from hepta.tokenizer.load import load_tokenizer

TEXTS = ["The cat sat on the mat. " * 6, "今天天气怎么样？", "a", "", "滚滚长江东逝水，浪花淘尽英雄。" * 4]
DOCUMENTS = [Document("0" * 32, text, "s", "en", "test") for text in TEXTS]


def changed_copy(model, share):
    """The same model with each weight moved by about ``share`` of itself."""
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.mul_(1 + share * torch.randn_like(parameter))
    return copy.eval()


@pytest.fixture(scope="module")
def models(tokenizer_dir, tmp_path_factory):
    """Directories of a tiny model and of a changed copy, by name."""
    folder = tmp_path_factory.mktemp("models")
    shape = preset("nano", load_tokenizer(tokenizer_dir).padded_size).replace(hidden_size=48, num_layers=2)
    model = network_class(shape)(shape)
    model.init_weights(1)
    save_model(model, folder / "a", tokenizer_dir, provenance={"sequence_length": 32})
    save_model(changed_copy(model, 0.3), folder / "b", tokenizer_dir)
    return folder


@torch.no_grad()
def test_divergence_and_losses_equal_those_computed_from_whole_logits(models, tokenizer_dir):
    a, b = load_model(models / "a"), load_model(models / "b")
    tokenizer = load_tokenizer(tokenizer_dir)
    read = list(agreement(a, [b, a], tokenizer, DOCUMENTS, 32, batch_tokens=64))
    found = [parts[0] for parts in read]
    assert all(parts[1].divergence == 0 for parts in read)  # each model has its own sums
    assert len(found) == 4  # the empty one gives nothing
    for text, part in zip([t for t in TEXTS if t], found, strict=True):
        ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
        sums = Agreement(bytes=len(text.encode()))
        for start in range(0, len(ids) - 1, 32):
            window = torch.tensor([ids[start : start + 33]])
            p, q = (model(window[:, :-1])[0].double().log_softmax(-1) for model in (a, b))
            wanted = window[0, 1:, None]
            sums.tokens += len(wanted)
            sums.nats_original -= p.gather(1, wanted).sum().item()
            sums.nats_changed -= q.gather(1, wanted).sum().item()
            sums.divergence += (p.exp() * (p - q)).sum().item()
            sums.worst = max(sums.worst, (p.exp() * (p - q)).sum(-1).max().item())
            sums.same_choice += int((p.argmax(-1) == q.argmax(-1)).sum())
            sums.right_original += int((p.argmax(-1) == wanted[:, 0]).sum())
            sums.right_changed += int((q.argmax(-1) == wanted[:, 0]).sum())
        assert vars(part) == pytest.approx(vars(sums), rel=1e-4)
    scored = score_documents(b, tokenizer, DOCUMENTS, 32)
    assert summed(found).nats_changed == pytest.approx(sum(t.nats for t in scored.values()), rel=1e-5)


def test_a_model_agrees_with_itself(models, tokenizer_dir):
    a = load_model(models / "a")
    whole = summed(part for [part] in agreement(a, [a], load_tokenizer(tokenizer_dir), DOCUMENTS, 32))
    assert whole.divergence == whole.worst == 0
    assert whole.same_choice == whole.tokens
    assert whole.nats_original == whole.nats_changed


def test_the_interval_is_of_paired_documents():
    generator = np.random.default_rng(0)
    hard = generator.uniform(10, 1000, 60)  # documents differ far more than the two models do
    documents = [Agreement(100, 20, nats, nats + 2 + generator.normal()) for nats in hard]
    low, high = bits_interval(documents)
    true = 2 / math.log(2) / 100
    assert low < true < high
    assert high - low < true
    assert bits_interval([Agreement(100, 20, n, n) for n in hard]) == (0, 0)
    assert bits_interval(documents[:1]) is None  # one document tells nothing of others


def test_the_original_reads_a_text_once_however_many_are_compared(models, tmp_path, monkeypatch):
    (tmp_path / "one.txt").write_text(TEXTS[0], encoding="utf-8")
    config = CompareConfig(models=[str(models / n) for n in "abab"], text=tmp_path / "one.txt", speed=False)
    passes: list[object] = []
    whole = Decoder.forward
    monkeypatch.setattr(Decoder, "forward", lambda self, *a, **k: passes.append(self) or whole(self, *a, **k))
    result = compare_models(config)
    assert len(passes) == len({id(model) for model in passes}) == 4
    assert "no sample" in show_comparison(result)
    assert result.models[1].delta_bits == result.models[3].delta_bits != 0 == result.models[2].delta_bits


def test_each_choice_counts_as_if_asked_alone(models, tokenizer_dir):
    model, tokenizer = load_model(models / "b"), load_tokenizer(tokenizer_dir)
    questions = [
        Question("Where did the cat sit?", ("on the mat", "nowhere at all, it stood", "在树上"), 0),
        Question("天气怎么样？", ("good", "很好"), 1),
    ]
    plain, shared = answer_questions(model, tokenizer, questions, batch_tokens=50)
    for place, question in enumerate(questions):
        prompt = [tokenizer.bos_id, *tokenizer.encode(f"Question: {question.text}\nAnswer:")]
        sums = []
        for choice in question.choices:
            ids = prompt + tokenizer.encode(" " + choice)
            logprobs = model(torch.tensor([ids]))[0].double().log_softmax(-1)
            sums.append(sum(logprobs[i, ids[i + 1]].item() for i in range(len(prompt) - 1, len(ids) - 1)))
        by_byte = [total / len(choice.encode()) for total, choice in zip(sums, question.choices, strict=True)]
        assert plain[place] == np.argmax(sums)
        assert shared[place] == np.argmax(by_byte)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "q", "choices": ["a", "b"]}, "row 1: needs question"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "row 1: answer 2 is neither"),
        ({"question": "q", "choices": ["a", ""], "answer": 0}, "row 1: a choice is empty"),
        ({"text": "x"}, "found text"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path, row, told):
    (tmp_path / "q.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(HeptaError, match=told):
        load_questions(tmp_path / "q.jsonl", None)


def test_an_answer_is_a_number_a_letter_or_a_text(tmp_path):
    rows = [{"question": "q", "choices": ["x", "y"], "answer": answer} for answer in (1, "y", "B", 0)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert [q.answer for q in load_questions(tmp_path / "q.jsonl", None)] == [1, 1, 1, 0]
    assert len(load_questions(tmp_path / "q.jsonl", 2)) == 2


def test_best_trades_are_the_models_no_other_beats_in_size_and_bits():
    rows = [{"bytes": size, "bits_per_byte": bits} for size, bits in ((8, 1.0), (4, 1.1), (4, 1.2), (2, 1.1), (9, 1.0))]
    assert _best_trades(rows) == [True, False, False, True, False]


def test_the_verb_measures_both_models_and_writes_its_page(models, cli, tmp_path):
    text, output = tmp_path / "text.jsonl", tmp_path / "out"
    text.write_text("\n".join(json.dumps({"text": t}) for t in TEXTS), encoding="utf-8")
    words = ["compare", models / "a", models / "b", "--text", text, "--output", output, "rounds=2"]
    done = cli(*words)
    assert done.code == 0, done.err
    for word in ("RSS MB", "decode tok/s", "Δ bits/byte", "KL", "same choice", str(models / "b")):
        assert word in done.out
    result = read_result(read_manifest(output)["facts"])
    assert asdict(result) == read_manifest(output)["facts"]
    original, changed = result.models
    assert original.delta_bits is None
    assert changed.delta_bits == pytest.approx(changed.bits_per_byte - original.bits_per_byte)
    assert changed.delta_interval[0] <= changed.delta_bits <= changed.delta_interval[1]
    assert changed.divergence > 0
    assert original.bytes == (models / "a" / "model.safetensors").stat().st_size
    assert original.footprint.rss_bytes > original.footprint.model_bytes
    assert original.footprint.decode.low <= original.footprint.decode.median <= original.footprint.decode.high
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "Smaller models beside their original" in page
    assert "No evaluation was run" not in page
    again = cli(*words)
    assert again.out == done.out
    assert "already done" in again.err


def test_classifiers_answer_the_test_rows_of_the_original(tokenizer_dir, models, tmp_path):
    task = Task(("bad", "good"), sequence_length=16)
    for number, name in enumerate(("a", "b")):
        run = tmp_path / name
        save_classifier(build_classifier(str(models / "a"), task, None, number, 0.0), run / "model", tokenizer_dir)
    rows = [{"row": f"r {i}", "text": f"text number {i}", "truth": task.labels[i % 2]} for i in range(20)]
    (tmp_path / "a" / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    names = [str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "a")]
    result = compare_models(CompareConfig(models=names, speed=False))
    original, other, same = result.models
    assert original.task.rows == 20
    assert (same.divergence, same.same_choice, same.task.p_value) == (0, 1, 1)
    assert other.divergence > 0
    assert "right answers" in show_comparison(result)
    with pytest.raises(HeptaError, match="does not continue --text"):
        compare_models(CompareConfig(models=names, text=tmp_path / "a.txt", speed=False))
    with pytest.raises(HeptaError, match="nothing to compare"):
        compare_models(CompareConfig(models=[names[0], str(models / "a")]))


def test_models_of_different_words_are_not_compared(models, cli, tmp_path):
    one = cli("compare", models / "a")
    assert (one.code, "at least one other" in one.err) == (2, True)
    nothing = cli("compare", models / "a", models / "b")
    assert (nothing.code, "--text" in nothing.err) == (2, True)
