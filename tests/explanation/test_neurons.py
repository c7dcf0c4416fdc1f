"""hepta explain neurons: what is left out here is left out in transformers too; neurons by brute force."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from hepta.config import HeptaError
from hepta.explanation.ablation import ablate, left_out, output_norms, top_neurons
from hepta.explanation.config import NeuronsConfig
from hepta.explanation.neurons import explain_neurons
from hepta.explanation.passages import Passages, read_passages
from hepta.explanation.reading import open_subject
from hepta.explanation.show import show_neurons

TEXT = "\n".join(f"Sentence number {n} says that the capital of country {n} is city {n * 7}." for n in range(12))
OTHERS = {  # in transformers: the matrix that reads a layer's heads, whether it lies (in, out), and the MLP's
    "nano": ("model.layers.1.self_attn.o_proj", False, "model.layers.1.mlp.down_proj"),
    "gpt2-nano": ("transformer.h.1.attn.c_proj", True, "transformer.h.1.mlp.c_proj"),
}


def passages_of(folder: Path, tokens: int = 300) -> Passages:
    return read_passages(open_subject(folder), TEXT, "val", tokens)


@pytest.mark.parametrize("name", OTHERS)
def test_the_loss_without_a_head_or_an_mlp_is_transformers(tiny: Callable[..., Path], name: str) -> None:
    passages = passages_of(tiny(name))
    network, heads = passages.subject.network, passages.subject.network.config.num_heads
    parts = [(network.attention_outputs[1], 2, heads), (network.attention_outputs[1], None, 1)]
    costs = ablate(passages, [*parts, (network.neuron_outputs[1], None, 1)], lambda count: None)
    reader, transposed, mlp = OTHERS[name]
    size = network.config.hidden_size // heads
    for cost, matrix, columns in zip(
        costs.cost, (reader, reader, mlp), (slice(2 * size, 3 * size), slice(None), slice(None)), strict=True
    ):
        other = transformers.AutoModelForCausalLM.from_pretrained(tiny(name)).eval()
        whole = reference_loss(other, passages)
        with torch.no_grad():
            weight = other.get_submodule(matrix).weight
            (weight[columns] if transposed else weight[:, columns]).zero_()
        assert cost == pytest.approx(reference_loss(other, passages) - whole, abs=1e-5)
        assert abs(cost) > 1e-4


@torch.no_grad()
def reference_loss(model: Any, passages: Passages) -> float:
    total = count = 0.0
    for batch in passages.batches:
        for ids, length, labels in zip(batch.ids, batch.lengths, batch.labels, strict=True):
            rows = model(ids[None, : int(length)]).logits[0].double().log_softmax(-1)
            total -= float(rows.gather(1, labels[: int(length), None]).sum())
            count += int(length)
    return total / count


def test_costs_come_with_the_interval_of_paired_resamples(tiny: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in TEXT.split("\n") * 3), encoding="utf-8")
    subject = open_subject(tiny("nano"))
    passages = read_passages(subject, str(file), "val", 10_000)
    assert (passages.unit, len(passages.weights)) == ("documents", 36)
    part = subject.network.neuron_outputs[0]
    costs = ablate(passages, [(part, None, 1), (part, 0, 10**6)], lambda count: None)
    whole = passages.losses()
    with left_out(part, None, 1):
        change = passages.losses() - whole
    assert costs.cost[0] == pytest.approx(change.sum() / passages.weights.sum())
    residual = change - costs.cost[0] * passages.weights  # the ratio's standard error, by linearisation
    error = math.sqrt(len(whole) * (residual**2).mean()) / passages.weights.sum()
    assert costs.low[0] == pytest.approx(costs.cost[0] - 1.96 * error, abs=0.4 * error)
    assert costs.high[0] == pytest.approx(costs.cost[0] + 1.96 * error, abs=0.4 * error)
    assert costs.cost[1] == costs.low[1] == costs.high[1] == 0.0  # an empty slice


def test_one_window_is_no_sample_and_has_no_intervals(tiny: Callable[..., Path], tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    found = explain_neurons(NeuronsConfig(model=str(tiny("nano")), text="The cat sat on the mat", output=page))
    assert found.facts["units"] == 1
    assert all(cost["low"] is cost["high"] is None for cost in found.facts["mlp"])
    assert "no sample: no intervals" in show_neurons(found)
    assert "beyond noise" not in show_neurons(found)


@pytest.mark.parametrize("text", ["out/corpus", "texts.jsonl", "missing.txt"])
def test_a_file_that_is_missing_is_not_read_as_text(tiny: Callable[..., Path], tmp_path: Path, text: str) -> None:
    with pytest.raises(HeptaError, match="no such file"):
        explain_neurons(NeuronsConfig(model=str(tiny("nano")), text=text, output=tmp_path / "a.html"))


def test_top_neurons_and_their_tokens_are_those_of_brute_force(tiny: Callable[..., Path]) -> None:
    passages = passages_of(tiny("gpt2-nano"))
    part = passages.subject.network.neuron_outputs[1]
    rows = []
    handle = part.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0]))
    real = torch.cat([mask.flatten() for mask in passages.read()])
    handle.remove()
    values = torch.cat([row.flatten(0, 1) for row in rows])[real]
    norms = part.weight.norm(dim=0)
    torch.testing.assert_close(output_norms(part, values.shape[1]).float(), norms)
    weights = values.abs().mean(0) * norms
    found = top_neurons(passages, [part], 3, 4)[0]
    assert [neuron.number for neuron in found] == weights.topk(3).indices.tolist()
    for neuron in found:
        column = values[:, neuron.number]
        expected = column[column.abs().topk(4).indices].tolist()
        np.testing.assert_allclose([one[0] for one in neuron.excited], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["nano", "gpt2-nano", "bert-nano", "feedforward"])
def test_every_family_is_taken_apart(tiny: Callable[..., Path], tmp_path: Path, name: str) -> None:
    config = NeuronsConfig(model=str(tiny(name)), text=TEXT, tokens=120, output=tmp_path / "n.html")
    facts = explain_neurons(config).facts
    network = open_subject(tiny(name)).network
    assert [len(row) for row in facts["heads"]] == [4] * len(network.attention_outputs)
    assert len(facts["mlp"]) == len(facts["neurons"]) == len(network.neuron_outputs)
    assert (facts["bits_per_byte"] is None) == (name == "bert-nano")
    assert facts["tokens"] <= 121
    assert json.loads((tmp_path / "n.json").read_text(encoding="utf-8"))["kind"] == "neurons"


def test_a_classifier_is_measured_on_labelled_rows(tiny: Callable[..., Path], tmp_path: Path) -> None:
    table = tmp_path / "t.jsonl"
    rows = [{"text": line, "label": "good" if number % 2 else "bad"} for number, line in enumerate(TEXT.split("\n"))]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = tiny("nano", ("good", "bad"))
    facts = explain_neurons(NeuronsConfig(model=str(folder), text=str(table), output=tmp_path / "n.html")).facts
    subject = open_subject(folder)
    assert subject.classifier is not None
    assert (facts["unit"], facts["predictions"]) == ("rows", 12)
    encode, total = subject.tokenizer.encode, 0.0
    for row in rows:
        ids = torch.tensor([encode(row["text"])[:24]])
        with torch.no_grad():
            chances = subject.classifier(ids, torch.tensor([ids.shape[1]]))[0].log_softmax(-1)
        total -= float(chances[("good", "bad").index(row["label"])])
    assert facts["loss"] == pytest.approx(total / 12, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [("lstm", (), "neither heads nor MLPs"), ("transformer-nano", (), "is a translator"), ("nano", ("a",), "labelled")],
)
def test_what_has_no_parts_to_leave_out_is_said(
    tiny: Callable[..., Path], tmp_path: Path, name: str, labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(HeptaError, match=message):
        explain_neurons(NeuronsConfig(model=str(tiny(name, labels)), text=TEXT, output=tmp_path / "n.html"))
