"""What ``hepta explain attention`` tells: the model's own weights, links of the right word, nothing cut unsaid."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hepta.explanation.looks import habits, look, pooled
from hepta.explanation.reading import open_subject, read_text
from hepta.model.attention import record_attention

TEXT = "The cat sat on the mat"


def asked(cli: Callable[..., Any], folder: Path, *more: object) -> dict[str, Any]:
    done = cli("explain", "attention", "--output", folder / "a.html", *more)
    assert done.code == 0, done.err
    assert str(folder / "a.html") in done.out
    return json.loads((folder / "a.json").read_text(encoding="utf-8"))


def word_of(part: dict[str, Any]) -> str:
    return "".join(part["queries"][place]["text"] for place in part["focus"]).strip()


@pytest.mark.parametrize("name", ["nano", "gpt2-nano", "bert-nano"])
def test_facts_hold_the_models_own_weights_and_its_words_links(cli: Any, tiny: Any, tmp_path: Path, name: str) -> None:
    facts = asked(cli, tmp_path, "--model", tiny(name), "--text", TEXT, "--word", "cat")
    part = facts["models"][0]["parts"][0]
    subject = open_subject(tiny(name))
    with torch.no_grad(), record_attention() as real:
        subject.network(torch.tensor([read_text(subject, TEXT).ids]))
    assert word_of(part) == "cat"
    assert part["causal"] == (name != "bert-nano")
    for layer, weights in zip(part["layers"], real, strict=True):
        told = torch.tensor(layer["weights"])
        torch.testing.assert_close(told, weights[0], atol=5.1e-5, rtol=0)
        if part["causal"]:
            assert not told.triu(1).any()
        row = weights[0][:, part["focus"]].mean(1)
        assert layer["links"][0] == [int(row.mean(0).argmax()), pytest.approx(float(row.mean(0).max()), abs=1e-6)]
        for head, mine in zip(layer["heads"], row, strict=True):
            assert head["links"] == [[k, pytest.approx(float(mine[k]), abs=1e-6)] for k, _ in head["links"]]
        entropy = torch.distributions.Categorical(probs=weights[0]).entropy().mean(-1)
        assert [head["entropy"] for head in layer["heads"]] == pytest.approx(entropy.tolist(), abs=1e-4)


def test_one_sided_beside_two_sided_sight(cli: Any, tiny: Any, tmp_path: Path) -> None:
    models = ("--model", tiny("nano"), "--beside", tiny("bert-nano"))
    facts = asked(cli, tmp_path, *models, "--text", TEXT, "--word", "cat")
    one, both = (model["parts"][0] for model in facts["models"])
    assert [model["reads"] for model in facts["models"]] == ["causal", "masked"]
    assert word_of(one) == word_of(both) == "cat"
    for part in (one, both):
        for layer in part["layers"]:
            seen = torch.tensor(layer["weights"])[:, part["focus"][-1]].gt(0).sum(-1)
            assert bool((seen <= part["focus"][-1] + 1).all()) == part["causal"]


def test_every_place_of_a_word_is_told_and_one_can_be_chosen(cli: Any, tiny: Any, tmp_path: Path) -> None:
    text = "a cat and a cat"
    words = ("--model", tiny("nano"), "--text", text, "--word", "cat")
    first = asked(cli, tmp_path, *words)["models"][0]
    second = asked(cli, tmp_path, *words, "--occurrence", 2)["models"][0]
    assert first["word"]["places"] == [{"start": 2, "end": 5}, {"start": 12, "end": 15}]
    assert first["parts"][0]["focus"] < second["parts"][0]["focus"]
    done = cli("explain", "attention", *words, "--occurrence", 3)
    assert done.code == 2
    assert "stands in the text only 2 times" in done.err


def test_a_classifier_is_read_with_its_answer_and_what_was_cut_is_said(cli: Any, tiny: Any, tmp_path: Path) -> None:
    model = tiny("bert-nano", ("cats", "dogs"))
    seen = asked(cli, tmp_path, "--model", model, "--text", "cat dog " * 30, "--word", "dog")["models"][0]
    assert seen["answer"]["label"] in ("cats", "dogs")
    assert seen["cut"] > 0
    done = cli("explain", "attention", "--model", model, "--text", "cat dog " * 30)
    assert done.code == 2
    assert "stands after them; shorten the text or choose an earlier word" in done.err


def test_a_translator_shows_encoder_decoder_and_what_lies_between(cli: Any, tiny: Any, tmp_path: Path) -> None:
    model = tiny("transformer-nano")
    seen = asked(cli, tmp_path, "--model", model, "--text", TEXT, "--word", "cat")["models"][0]
    parts = {part["part"]: part for part in seen["parts"]}
    assert list(parts) == ["encoder", "cross", "decoder"]
    assert [len(parts[name]["layers"]) for name in parts] == [2, 3, 3]
    assert word_of(parts["encoder"]) == "cat"
    subject = open_subject(model)
    source = read_text(subject, TEXT).ids
    text = [piece["text"] for piece in parts["decoder"]["queries"][1:]]
    assert "".join(text).strip() == seen["translation"]
    cross, network = parts["cross"], subject.network
    assert [piece["text"] for piece in cross["queries"][:-1]] == text  # rows are named by the token chosen there
    target = torch.tensor([network.config.bos_token_id, *_ids(subject, parts["decoder"])])
    expected = network.alignments(torch.tensor(source), target)
    if cross["whole"]:
        told = torch.tensor([layer["weights"] for layer in cross["layers"]])
        torch.testing.assert_close(told, expected, atol=5.1e-5, rtol=0)


def _ids(subject: Any, decoder: dict[str, Any]) -> list[int]:
    from hepta.explanation.translation import translate_source

    return translate_source(subject, read_text(subject, TEXT)).ids[1:]


@pytest.mark.parametrize(("name", "why"), [("lstm", "carries one state"), ("feedforward", "a fixed window")])
def test_models_without_attention_are_told_what_to_use_instead(cli: Any, tiny: Any, name: str, why: str) -> None:
    done = cli("explain", "attention", "--model", tiny(name), "--text", TEXT)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert why in done.err
    assert "hepta explain attribution" in done.err


def test_a_long_text_keeps_exact_links_and_a_picture_of_the_rest(cli: Any, tiny: Any, tmp_path: Path) -> None:
    text = "The cat sat on the mat. " * 20
    part = asked(cli, tmp_path, "--model", tiny("nano"), "--text", text, "--word", "mat")["models"][0]["parts"][0]
    subject = open_subject(tiny("nano"))
    with torch.no_grad(), record_attention() as real:
        subject.network(torch.tensor([read_text(subject, text).ids]))
    assert not part["whole"]
    size = part["bin"][0]
    for layer, weights in zip(part["layers"], real, strict=True):
        assert layer["weights"] is None
        corner = weights[0][:, -size:, :size] if weights.shape[2] % size == 0 else weights[0][:, :size, :size]
        place = -1 if weights.shape[2] % size == 0 else 0
        largest = [head[place][0] / 100 for head in layer["picture"]]
        assert largest == pytest.approx(corner.amax((1, 2)).tolist(), abs=0.0051)
        average = weights[0].mean(0)
        for query, links in enumerate(layer["tokens"]):
            assert links[0][1] == pytest.approx(float(average[query].max()), abs=1e-6)


def test_habits_are_what_they_say() -> None:
    length = 12
    index = torch.arange(length)
    previous, first, even = torch.zeros(3, length, length)
    previous[index, (index - 1).clamp(min=0)] = 1
    first[:, 0] = 1
    even = torch.ones(length, length).tril() / (index + 1)[:, None]
    told = habits(torch.stack((previous, first, even, torch.eye(length))), causal=True, across=False)
    assert [one["habit"] for one in told] == ["previous", "first", "even", "itself"]
    layer = look(torch.stack((previous, first))[None], [3], True)
    assert layer.heads[0]["links"] == [[2, 1.0]]
    assert layer.heads[0]["entropy"] == 0
    assert pooled(torch.eye(100)[None]).shape == (1, 34, 34)


def test_a_page_holds_hostile_text_as_text(cli: Any, tiny: Any, tmp_path: Path) -> None:
    text = "</script><script>document.title='owned'</script> \x00\u202e <!-- cat"
    asked(cli, tmp_path, "--model", tiny("nano"), "--text", text, "--word", "cat")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script>") == 2
    assert "owned'</script>" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
