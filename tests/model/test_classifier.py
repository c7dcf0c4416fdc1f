"""Classifiers: transformers opens each and gives the same logits, padded or not; adapters open in peft."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hepta.config import HeptaError
from hepta.model.classifier import (
    Task,
    adapt,
    build_classifier,
    is_classifier,
    load_classifier,
    save_classifier,
    save_classifier_adapter,
)
from hepta.model.families import network_class, preset
from hepta.model.load import load_model, save_model
from hepta.tokenizer.load import load_tokenizer

TASK = Task(("好", "bad", "so so"), sequence_length=64, dropout=0.1)
SHAPES = {  # preset and what makes it another architecture
    "llama": ("nano", {}),
    "mistral": ("nano", {"family": "mistral", "sliding_window": 8}),
    "qwen2": ("nano", {"family": "qwen2", "attention_bias": True}),
    "qwen3": ("nano", {"family": "qwen3", "qk_norm": True}),
    "gpt2": ("gpt2-nano", {}),
    "bert": ("bert-nano", {}),
    "bert-encoder": ("bert-nano", {"head": False, "pooler": True}),
}
CLASSES = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gpt2": "GPT2", "bert": "Bert",
    "bert-encoder": "Bert",
}  # fmt: skip


def write_base(name: str, directory: Path, tokenizer: Path) -> Path:
    kind, changes = SHAPES[name]
    shape = preset(kind, 640).replace(hidden_size=48, num_layers=2, **changes)
    if hasattr(shape, "head_dim") and kind == "nano":
        shape = shape.replace(head_dim=16)
    model = network_class(shape)(shape)
    model.init_weights(1)
    save_model(model, directory, tokenizer)
    return directory


def ragged(lengths=(9, 3, 17, 12), pad=638, seed=0):
    """Rows of random ids, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths)), pad)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(0, 600, (length,), generator=generator)
    return ids, torch.tensor(lengths)


def excited(model):
    """Heads are drawn small; larger ones tell mistakes apart."""
    with torch.no_grad():
        for name in model.head_names():
            parameter = dict(model.named_parameters())[name]
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return model.eval()


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_gives_the_same_logits_for_a_padded_batch(name, tmp_path, tokenizer_dir):
    """Batched with padding, and each row alone without; 1e-4."""
    base = write_base(name, tmp_path / "base", tokenizer_dir)
    model = excited(build_classifier(base, TASK, dropout=0.1))
    save_classifier(model, tmp_path / "out", tokenizer_dir)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [f"{CLASSES[name]}ForSequenceClassification"]
    theirs, told = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert theirs.config.id2label == {0: "好", 1: "bad", 2: "so so"}
    assert theirs.config.problem_type == "single_label_classification"
    pad = load_tokenizer(tokenizer_dir).pad_id
    ids, lengths = ragged(pad=pad)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        ours = model(ids, lengths)
        torch.testing.assert_close(ours, theirs.eval()(ids, attention_mask=mask).logits, rtol=0, atol=1e-4)
        for row, length in enumerate(lengths):
            alone = theirs(ids[row : row + 1, :length]).logits
            torch.testing.assert_close(ours[row : row + 1], alone, rtol=0, atol=1e-4)
    again = load_classifier(tmp_path / "out")
    assert again.task == TASK
    with torch.no_grad():
        assert torch.equal(again(ids, lengths), ours)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_pooling_goes_by_length_also_where_padding_is_the_end_of_text_token(name, tmp_path, tokenizer_dir):
    """pad = eos: transformers looks for the last id that is no padding, we count; both read the same token."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_text(
            (tokenizer_dir / file).read_text().replace('"pad_token": "<|pad|>"', '"pad_token": null')
        )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_id == tokenizer.eos_id
    model = excited(build_classifier(write_base(name, tmp_path / "base", folder), TASK))
    save_classifier(model, tmp_path / "out", folder)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    ids, lengths = ragged(pad=tokenizer.eos_id)
    with torch.no_grad():
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        torch.testing.assert_close(model(ids, lengths), theirs(ids, attention_mask=mask).logits, rtol=0, atol=1e-4)
        within = ids.clone()
        within[0, 4] = within[2, 5] = tokenizer.eos_id  # an end of text inside a text is text
        torch.testing.assert_close(
            model(within, lengths), theirs(within, attention_mask=mask).logits, rtol=0, atol=1e-4
        )
        other = torch.where(torch.arange(ids.shape[1]) < lengths[:, None], ids, 7)
        assert torch.allclose(model(other, lengths), model(ids, lengths), atol=1e-6)  # what pads does not matter


def test_an_lstm_reads_the_mean_of_its_states(tmp_path, tokenizer_dir):
    """transformers has no LSTM: the reference is each row alone, and the mean written out."""
    pytest.importorskip("hepta.model.lstm")
    model = excited(build_classifier("lstm", TASK, 640))
    ids, lengths = ragged()
    save_classifier(model, tmp_path / "out", tokenizer_dir)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["HeptaLSTMForSequenceClassification"]
    again = load_classifier(tmp_path / "out")
    with torch.no_grad():
        together = model(ids, lengths)
        for row, length in enumerate(lengths):
            mean = model.network.body(ids[row : row + 1, :length]).mean(1)
            torch.testing.assert_close(together[row : row + 1], model.score(mean), rtol=0, atol=1e-5)
        assert torch.equal(again(ids, lengths), together)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_adapters_and_head_open_in_peft(name, tmp_path, tokenizer_dir):
    from peft import PeftModel

    base = write_base(name, tmp_path / "base", tokenizer_dir)
    model = build_classifier(base, TASK)
    adapt(model, 4, 8.0, None, 0.0, seed=1)
    excited(model)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n in dict(model.named_parameters()) if "lora_" in n} | set(model.head_names())
    save_classifier_adapter(model, tmp_path / "out", base, tokenizer_dir)
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written["task_type"] == "SEQ_CLS"
    assert written["modules_to_save"] == (["classifier", "pooler"] if name == "bert" else ["score"])
    theirs = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=3), tmp_path / "out"
    ).eval()
    ids, lengths = ragged(pad=load_tokenizer(tokenizer_dir).pad_id)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    again = load_classifier(tmp_path / "out")
    with torch.no_grad():
        wanted = theirs(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(model(ids, lengths), wanted, rtol=0, atol=1e-4)
        torch.testing.assert_close(again(ids, lengths), wanted, rtol=0, atol=1e-4)
    with pytest.raises(HeptaError, match="use hepta predict"):
        load_model(tmp_path / "out")


def test_a_foreign_classifier_is_opened_with_its_own_labels(tmp_path, tokenizer_dir):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=640, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1}, max_position_embeddings=64,
    )  # fmt: skip
    theirs = BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_classifier(tmp_path)
    assert ours.task.labels == ("neg", "pos")
    assert ours.task.sequence_length == 64
    ids, lengths = ragged(pad=0)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        torch.testing.assert_close(ours(ids, lengths), theirs(ids, attention_mask=mask).logits, rtol=0, atol=1e-4)


def test_a_classifiers_body_serves_another_task(tmp_path, tokenizer_dir):
    base = write_base("bert", tmp_path / "base", tokenizer_dir)
    first = build_classifier(base, TASK)
    save_classifier(first, tmp_path / "out", tokenizer_dir)
    second = build_classifier(tmp_path / "out", Task(("score",)))
    body = dict(first.network.named_parameters())
    assert all(torch.equal(p, body[name]) for name, p in second.network.named_parameters())
    assert second.classifier.weight.shape == (1, 48)


def test_models_that_are_no_classifiers_are_refused_in_one_line(tmp_path, tokenizer_dir):
    base = write_base("llama", tmp_path / "base", tokenizer_dir)
    assert not is_classifier(base)
    with pytest.raises(HeptaError, match="is no classifier; make one with hepta tune"):
        load_classifier(base)
    save_classifier(build_classifier(base, TASK), tmp_path / "out", tokenizer_dir)
    with pytest.raises(HeptaError, match="hepta predict"):
        load_model(tmp_path / "out")
