"""Attributions equal captum's, computed on transformers' model where it has the family, and account for the whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from captum.attr import FeatureAblation, LayerGradientXActivation, LayerIntegratedGradients
from torch import Tensor, nn

from hepta.explanation.gradients import GAP, Question, gradient_input, integrated_gradients, occlusion
from hepta.explanation.target import embedding_of, token_score
from hepta.model.classifier import Task, build_classifier
from hepta.model.load import build_model, load_model
from hepta.model.ngram import NGram, count_ngrams

TOLERANCE, STEPS, PAD, TOKEN = 1e-4, 24, 7, 33
SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {"llama": transformers.LlamaConfig, "gpt2": transformers.GPT2Config, "bert": transformers.BertConfig}
IDS = torch.tensor([1, 40, 41, 42, 43, 44, 45, 2])  # the first and the last are the frame
PLACES = torch.arange(1, 7)
Case = tuple[Question, Callable[[Tensor], Tensor], nn.Module]


def case(name: str, folder: Path, size: float = 0.2) -> Case:
    """Our question, the same score of another program's model where there is one, and that model's embedding."""
    torch.manual_seed(3)
    if name == "classifier":
        classifier = build_classifier("gpt2-nano", Task(("a", "b", "c")), 128)
        network: Any = classifier.network
        length = torch.tensor([len(IDS)])

        def ours(ids: Tensor) -> Tensor:
            return classifier(ids, length.expand(len(ids)))[:, 1]

        spread(classifier.eval(), size)
        return Question(IDS, PLACES, ours, embedding_of(network)), ours, network.embedding
    place = 4 if name == "bert" else -1
    if name == "lstm":
        network = build_model("lstm", 128).eval()
        spread(network, size)
        reference = network
    else:
        loader = transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
        reference = loader.from_config(CONFIGS[name](**SIZES)).eval()
        spread(reference, size)
        reference.save_pretrained(folder)
        network = load_model(folder)

    def theirs(ids: Tensor) -> Tensor:
        logits = reference(ids) if name == "lstm" else reference(ids).logits
        return logits[:, place].log_softmax(-1)[:, TOKEN]

    network.requires_grad_(False)
    question = Question(IDS, PLACES, token_score(network, [place], [TOKEN]), embedding_of(network), batch_tokens=40)
    return question, theirs, network.embedding if name == "lstm" else reference.get_input_embeddings()


def spread(model: nn.Module, size: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=size) if parameter.ndim > 1 else parameter.normal_(mean=0.8, std=size)


def hidden_ids() -> Tensor:
    ids = IDS.clone()
    ids[PLACES] = PAD
    return ids


FAMILIES = ["llama", "gpt2", "bert", "lstm", "classifier"]


@pytest.mark.parametrize("name", FAMILIES)
def test_integrated_gradients_equal_captums(name: str, tmp_path: Path) -> None:
    question, score, embedding = case(name, tmp_path)
    assert question.embedding is not None
    baseline = question.embedding.weight[PAD].detach()
    found = integrated_gradients(question, baseline, STEPS)
    expected: Any = LayerIntegratedGradients(score, embedding).attribute(
        IDS[None], baselines=hidden_ids()[None], n_steps=STEPS, method="gausslegendre"
    )
    expected = expected[0].sum(-1).detach().numpy()
    assert np.abs(found.values).max() > 0.05
    np.testing.assert_allclose(found.values, expected[PLACES], rtol=0, atol=TOLERANCE)
    with torch.no_grad():
        change = float(score(IDS[None]) - score(hidden_ids()[None]))
    assert found.gap == pytest.approx(float(found.values.sum()) - change, abs=TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_times_input_equals_captums(name: str, tmp_path: Path) -> None:
    question, score, embedding = case(name, tmp_path)
    found = gradient_input(question)
    expected: Any = LayerGradientXActivation(score, embedding).attribute(IDS[None])
    np.testing.assert_allclose(found.values, expected[0].sum(-1).detach().numpy()[PLACES], rtol=0, atol=TOLERANCE)
    assert np.abs(found.values).max() > 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_occlusion_equals_captums_ablation_of_ids_alone_and_in_words(name: str, tmp_path: Path) -> None:
    question, score, _ = case(name, tmp_path)
    assert question.embedding is not None
    baseline = question.embedding.weight[PAD].detach()
    ablation = FeatureAblation(score)
    with torch.no_grad():
        expected = ablation.attribute(IDS[None], baselines=PAD)[0].numpy()[PLACES]
        words = torch.tensor([[0, 1, 1, 2, 3, 3, 3, 4]])
        joined = ablation.attribute(IDS[None], baselines=PAD, feature_mask=words)[0].numpy()
    np.testing.assert_allclose(occlusion(question, baseline).values, expected, rtol=0, atol=TOLERANCE)
    found = occlusion(question, baseline, [[1, 2], [3], [4, 5, 6]])
    np.testing.assert_allclose(found.values, joined[[1, 3, 4]], rtol=0, atol=TOLERANCE)
    assert found.baseline_score == pytest.approx(score(hidden_ids()[None]).item(), abs=TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_left_alone_the_gap_is_below_one_per_cent_also_where_the_score_leaps(name: str, tmp_path: Path) -> None:
    question, score, _ = case(name, tmp_path, 0.12 if name == "lstm" else 0.4)  # large weights: the way is rough
    found = integrated_gradients(question, torch.zeros(question.embedded().shape[1]))
    assert found.baseline_score is not None
    assert found.gap_share is not None
    change = found.score - found.baseline_score
    assert abs(found.values.sum() - change) <= GAP * abs(change)
    assert abs(found.values.sum() - change) - 1e-6 <= found.bound <= GAP * abs(change)
    assert score(IDS[None]).item() == pytest.approx(found.score, abs=1e-3)
    if name in ("llama", "gpt2"):
        assert found.steps > 8  # the way was too rough for one piece


def test_where_nothing_can_be_turned_up_tokens_are_left_out() -> None:
    documents = np.array([[1, 5, 6, 7, 8], [1, 9, 6, 7, 4], [1, 5, 6, 3, 8]])
    model = NGram.of(count_ngrams(documents.ravel(), np.array([5, 10, 15]), 16, 3))
    ids = torch.tensor([1, 5, 6, 7])
    question = Question(ids, torch.tensor([1, 2, 3]), token_score(model, [-1], [8]), embedding_of(model))
    found = occlusion(question, None)

    def chance(*history: int) -> float:
        return float(model(torch.tensor([history]))[0, -1, 8])

    expected = [chance(1, 5, 6, 7) - other for other in (chance(1, 6, 7), chance(1, 5, 7), chance(1, 5, 6))]
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert found.baseline_score == pytest.approx(chance(1))
