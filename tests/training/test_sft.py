"""Promises of instruction tuning: what is learned, what is left alone, how answers end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SHAPE, byte_tokenizer, losses

from hepta.config import HeptaError, Interrupted, build
from hepta.data.conversations import load_conversations
from hepta.data.sft import SftOrder
from hepta.generation.engine import Engine
from hepta.model.decoder import Decoder
from hepta.model.load import load_model, save_model
from hepta.objectives.causal import IGNORE, Causal
from hepta.tokenizer.load import load_tokenizer
from hepta.training.checkpoint import weights_digest
from hepta.training.config import SftConfig
from hepta.training.evaluate import bytes_per_token, evaluate
from hepta.training.pretrain import pretrain
from hepta.training.result import TrainingResult
from hepta.training.sft import sft

PAIRS = [
    ("hello", "Good day to you."), ("who are you?", "I am a very small model."), ("count", "One, two, three."),
    ("bye", "See you soon."), ("你好", "你好，很高兴见到你。"), ("你是谁？", "我是一个很小的模型。"),
    ("数数", "一，二，三。"), ("再见", "下次再见。"),
]  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model directory with fresh weights and a byte tokenizer that has a chat template."""
    model = Decoder(SHAPE.replace(hidden_size=64, intermediate_size=128))
    model.init_weights(1)
    save_model(model, tmp_path / "base", byte_tokenizer(tmp_path / "bytes"))
    return tmp_path / "base"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "talk.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in PAIRS
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def tune(base: Path, data: Path, output: Path, **values: Any) -> TrainingResult:
    keys = {
        "model": str(base), "data": [str(data)], "output": output, "sequence_length": 128, "batch_tokens": 512,
        "max_steps": 8, "lr": 4e-3, "precision": "fp32", "compile": False, "threads": 1, "sample_prompts": ["hello"],
        "eval": {"every": 1000}, "validation": 0.2,
    }  # fmt: skip
    return sft(build(SftConfig, {**keys, **values}))


def test_overfit_learns_to_stop_and_generation_ends(base: Path, data: Path, tmp_path: Path) -> None:
    """Trap S4: after an overfit P(stop) at answer ends is over 0.9 and greedy answers end by themselves."""
    result = tune(base, data, tmp_path / "run", max_steps=120, schedule="constant", validation=0.0)
    assert result.p_stop["train"] is not None
    assert result.p_stop["train"] > 0.9
    model, tokenizer = load_model(result.model), load_tokenizer(result.model)
    for question, answer in PAIRS:
        prompt = tokenizer.render([{"role": "user", "content": question}], add_generation_prompt=True)
        (completion,) = Engine(model, tokenizer).generate([prompt], max_new_tokens=80)
        assert (completion.text, completion.finish_reason) == (answer, "stop")


def test_p_stop_is_the_probability_where_the_last_answer_token_stands(base: Path, data: Path) -> None:
    """Its definition, computed by hand from the logits of one conversation at a time."""
    tokenizer, model = load_tokenizer(base), load_model(base)
    conversations = load_conversations(data)
    order = SftOrder(conversations, tokenizer, 128, validation=0.0)
    scores = evaluate(model, Causal(), order, bytes_per_token(tokenizer, 320), tokenizer.stop_ids, micro=2)
    by_hand = []
    for conversation in conversations:
        ids, _ = tokenizer.render_supervised(conversation.messages)
        end = len(ids) - 1 - ids[::-1].index(tokenizer.stop_ids[0])
        logits = model(torch.tensor([ids]))[0, end - 1]
        by_hand.append(torch.softmax(logits, -1)[tokenizer.stop_ids[0]].item())
    assert scores.overall.p_stop == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)
    assert scores.overall.stops == len(PAIRS)


def test_supervised_count_is_the_same_packed_alone_and_in_evaluation(base: Path, data: Path) -> None:
    """Traps S3, S13: packing, the loss and evaluation agree on what is supervised, and on its loss."""
    tokenizer, model = load_tokenizer(base), load_model(base)
    conversations = load_conversations(data)
    expected = sum(sum(tokenizer.render_supervised(c.messages)[1]) for c in conversations)
    found = []
    for packing in (True, False):
        order = SftOrder(conversations, tokenizer, 128, validation=0.0, packing=packing)
        batch = {k: torch.from_numpy(v) for k, v in order.batch(0, order.sequences_per_epoch).items()}
        loss = Causal()(model, batch)
        scores = evaluate(
            model, Causal(), order, bytes_per_token(tokenizer, 320), tokenizer.stop_ids, micro=3
        ).overall
        assert int((batch["labels"] != IGNORE).sum()) == loss.weight == scores.tokens == expected
        assert scores.nats == pytest.approx(float(loss.total.detach()), rel=1e-5)
        found.append(scores)
    assert found[0].nats == pytest.approx(found[1].nats, rel=1e-5)
    answers = sum(len(c.messages[-1]["content"].encode()) for c in conversations)
    assert found[0].bytes == found[1].bytes == answers, "bits per byte divides by the bytes of the answers"


def test_lora_starts_as_the_base_and_leaves_it_alone(base: Path, data: Path, tmp_path: Path) -> None:
    """Trap S11: first loss = the base's; base files untouched; the adapter directory alone gives the tuned model."""
    before = {file.name: file.read_bytes() for file in base.iterdir()}
    result = tune(base, data, tmp_path / "run", method="lora", rank=4, max_steps=30, lr=1e-2)
    full = tune(base, data, tmp_path / "full", max_steps=1)
    assert result.before["val_loss"] == pytest.approx(full.before["val_loss"], rel=1e-6)
    assert result.final["val_loss"] < result.before["val_loss"]
    assert {file.name: file.read_bytes() for file in base.iterdir()} == before
    tuned, plain = load_model(result.output), load_model(base)
    ids = torch.arange(20)[None]
    assert not torch.allclose(tuned(ids), plain(ids), atol=1e-3)
    names = dict(plain.named_parameters())
    assert all(torch.equal(names[n], p) for n, p in tuned.named_parameters() if "lora_" not in n)
    adapters = [(n, p) for n, p in tuned.named_parameters() if "lora_" in n]
    assert {p.dtype for _, p in adapters} == {torch.float32}
    assert weights_digest(adapters) == result.weights_sha256
    assert result.trained_parameters == sum(p.numel() for _, p in adapters)
    assert (tmp_path / "run" / "model" / "adapter_config.json").is_file()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_resume_of_tuning_is_bit_exact(
    base: Path, data: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap R7 for both methods, with LoRA's dropout: broken off in the middle of a step, then repeated."""
    keys = {"method": method, "dropout": 0.3, "max_steps": 9, "checkpoint": {"every": 3}, "validation": 0.0}
    whole = tune(base, data, tmp_path / "whole", **keys)
    batch = SftOrder.batch

    def crashing(order: SftOrder, start: int, count: int) -> Any:
        if start >= 20:
            raise Interrupted("crash")
        return batch(order, start, count)

    monkeypatch.setattr(SftOrder, "batch", crashing)
    with pytest.raises(Interrupted):
        tune(base, data, tmp_path / "run", **keys)
    monkeypatch.setattr(SftOrder, "batch", batch)
    again = tune(base, data, tmp_path / "run", **keys)
    assert again.weights_sha256 == whole.weights_sha256
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_samples_are_rendered_by_the_template_and_hold_a_held_out_question(
    base: Path, data: Path, tmp_path: Path
) -> None:
    tune(base, data, tmp_path / "run", max_steps=1)
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {0, 1}
    assert {row["kind"] for row in rows} == {"chat"}
    assert {(row["prompt"], row["held_out"]) for row in rows} >= {("hello", False)}
    held = {row["lang"] for row in rows if row["held_out"]}
    assert held == {"en", "zh"}


def test_finished_tuning_is_not_done_again(base: Path, data: Path, tmp_path: Path) -> None:
    first = tune(base, data, tmp_path / "run", max_steps=1)
    stamp = (tmp_path / "run" / "model" / "config.json").stat().st_mtime_ns
    assert tune(base, data, tmp_path / "run", max_steps=1) == first
    assert (tmp_path / "run" / "model" / "config.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("verb", ["sft", "pretrain"])
def test_missing_input_is_one_clear_line(tmp_path: Path, data: Path, verb: str) -> None:
    with pytest.raises(HeptaError, match="nowhere"):
        if verb == "sft":
            tune(tmp_path / "nowhere", data, tmp_path / "run")
        else:
            from hepta.training.config import PretrainConfig

            pretrain(PretrainConfig(data=tmp_path / "nowhere", output=tmp_path / "run"))
    assert not (tmp_path / "run").exists(), "nothing half-written is kept"


def test_wrong_rows_leave_no_claim_behind(base: Path, data: Path, tmp_path: Path) -> None:
    """Columns that are no conversation: one line; with the data mended the same command runs."""
    good = data.read_text(encoding="utf-8")
    data.write_text('{"text": "no conversation"}\n', encoding="utf-8")
    with pytest.raises(HeptaError, match="'text'"):
        tune(base, data, tmp_path / "run", max_steps=1)
    assert not (tmp_path / "run").exists()
    data.write_text(good, encoding="utf-8")
    assert tune(base, data, tmp_path / "run", max_steps=1).steps == 1


def test_text_that_spells_a_special_token_simply_works(base: Path, data: Path, tmp_path: Path) -> None:
    """Traps K3, S6: it stays text in training; only template-made stop tokens are counted as answer ends."""
    row = {"prompt": "say <|im_end|>", "completion": "<|im_end|> and <|endoftext|> it is"}
    data.write_text(json.dumps(row) + "\n", encoding="utf-8")
    result = tune(base, data, tmp_path / "run", max_steps=1, validation=0.0)
    tokenizer = load_tokenizer(base)
    order = SftOrder(load_conversations(data), tokenizer, 128, validation=0.0)
    labels = order.batch(0, 1)["labels"]
    assert (labels == tokenizer.stop_ids[0]).sum() == 1
    assert result.steps == 1
