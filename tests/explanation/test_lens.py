"""The lens reads each layer as transformers' hidden states read through its norm and head; the last is the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hepta.explanation.config import LensConfig
from hepta.explanation.lens import explain_lens, lens_logits, residuals
from hepta.explanation.reading import open_subject, read_text
from hepta.model.load import load_model

TEXT = "The cat sat on the"
SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {}),
    "qwen3 tied": (transformers.Qwen3Config, {"head_dim": 32, "tie_word_embeddings": True}),
    "gpt2": (transformers.GPT2Config, {"n_inner": 96}),
    "bert": (transformers.BertConfig, {}),
}


def head_of(model: Any, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """transformers' own modules from a hidden state to logits."""
    if name == "bert":
        return model.cls
    norm = model.transformer.ln_f if name == "gpt2" else model.model.norm
    return lambda hidden: model.lm_head(norm(hidden))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_each_layer_equals_transformers_hidden_state_through_norm_and_head(name: str, tmp_path: Path) -> None:
    cls, options = CASES[name]
    auto = transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
    torch.manual_seed(1)
    reference = auto.from_config(cls(**{**SMALL, **options})).eval()
    for parameter in reference.parameters():
        parameter.normal_(std=0.3) if parameter.ndim > 1 else parameter.normal_(mean=0.8, std=0.3)
    reference.save_pretrained(tmp_path / "model")
    ids = torch.randint(3, 90, (1, 12), generator=torch.Generator().manual_seed(0))
    theirs = reference(ids, output_hidden_states=True)
    model = load_model(tmp_path / "model")
    ours = residuals(model, ids[0].tolist())
    assert len(ours) == len(theirs.hidden_states)
    for residual, hidden in zip(ours[:-1], theirs.hidden_states[:-1], strict=True):  # their last one is normed already
        expected = head_of(reference, name)(hidden)[0]
        torch.testing.assert_close(lens_logits(model, residual), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(lens_logits(model, ours[-1]), theirs.logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "text"), [("nano", TEXT), ("gpt2-nano", TEXT), ("bert-nano", "The [MASK] sat"), ("transformer-nano", TEXT)]
)
def test_the_last_layer_is_the_model_itself(cli: Any, tiny: Any, tmp_path: Path, name: str, text: str) -> None:
    done = cli("explain", "lens", "--model", tiny(name), "--text", text, "--output", tmp_path / "l.html", "--top", 3)
    assert done.code == 0, done.err
    facts = json.loads((tmp_path / "l.json").read_text(encoding="utf-8"))
    subject = open_subject(tiny(name))
    ids = torch.tensor([read_text(subject, text).ids])
    with torch.no_grad():
        if name == "transformer-nano":
            from hepta.explanation.translation import translate_source

            logits = subject.network(*translate_source(subject, read_text(subject, text)).inputs)[0]
        else:
            logits = subject.network(ids)[0]
    logits[:, subject.tokenizer.size :] = -torch.inf
    chances = logits.softmax(-1)
    for position in facts["positions"]:
        assert len(position["kl"]) == facts["layers"] + 1
        assert position["kl"][-1] == 0
        assert all(kl >= 0 for kl in position["kl"])
        best = chances[position["place"]]
        assert position["top"][-1][0] == [position["answer"], pytest.approx(float(best.max()), abs=1e-5)]
        assert position["answer_probability"][-1] == position["top"][-1][0][1]
        assert [len(top) for top in position["top"]] == [3] * (facts["layers"] + 1)
    places = [position["place"] for position in facts["positions"]]
    assert places == ([2] if name == "bert-nano" else list(range(len(logits))))


def test_divergence_is_that_of_torch(cli: Any, tiny: Any, tmp_path: Path) -> None:
    cli("explain", "lens", "--model", tiny("nano"), "--text", TEXT, "--output", tmp_path / "l.html")
    facts = json.loads((tmp_path / "l.json").read_text(encoding="utf-8"))
    subject = open_subject(tiny("nano"))
    layers = residuals(subject.network, read_text(subject, TEXT).ids)
    size = subject.tokenizer.size
    with torch.no_grad():
        told = [lens_logits(subject.network, layer)[-1, :size].double().log_softmax(-1) for layer in layers]
    expected = [float(torch.nn.functional.kl_div(now, told[-1], log_target=True, reduction="sum")) for now in told]
    assert facts["positions"][-1]["kl"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "labels", "why"),
    [
        ("lstm", (), "only the last one's is read by the head"),
        ("feedforward", (), "one hidden layer"),
        ("nano", ("cats", "dogs"), "is a classifier"),
        ("bert-nano", (), "write [MASK] in the text"),
    ],
)
def test_models_that_have_no_lens_are_told_why(cli: Any, tiny: Any, name: str, labels: Any, why: str) -> None:
    done = cli("explain", "lens", "--model", tiny(name, labels), "--text", TEXT)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert why in done.err


@pytest.mark.model
def test_paris_comes_late_as_the_handbook_says(tmp_path: Path) -> None:
    config = LensConfig(model="smollm2-135m", text="The capital of France is", output=tmp_path / "l.html")
    last = explain_lens(config).facts["positions"][-1]
    said = [top[0][0] for top in last["top"]]
    assert said[28:] == [" Paris"] * 3
    assert " Paris" not in said[:28]
    assert last["top"][-1][0][1] == pytest.approx(0.749, abs=0.005)
