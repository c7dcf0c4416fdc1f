"""hepta explain attribution: words of the text, the target that was asked for, sums that hold, errors in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hepta.explanation.attribution import explain_attribution, find_words
from hepta.explanation.config import AttributionConfig
from hepta.explanation.reading import open_subject, read_text
from hepta.model.load import load_model
from hepta.tokenizer.load import load_tokenizer

EN = "The capital of France is Paris, isn't it?"
ZH = "却说曹操引军回许都，心中大怒。\n㐂 is rare."


def explain(tmp_path: Path, model: Path, text: str = EN, **keys: Any) -> dict[str, Any]:
    return explain_attribution(AttributionConfig(model=str(model), text=text, output=tmp_path / "a.html", **keys)).facts


@pytest.mark.parametrize("text", [EN, ZH, "  two  blanks\n\n"])
def test_words_cover_the_text_and_no_token_is_lost(tiny: Callable[..., Path], tmp_path: Path, text: str) -> None:
    facts = explain(tmp_path, tiny("nano"), text, method="occlusion")
    assert "".join(part["text"] for part in facts["parts"]) == text
    tokens = [token for word in facts["words"] for token in word["tokens"]]
    assert tokens == list(range(len(facts["tokens"])))
    view = facts["views"][0]
    assert sum(view["words"]) == pytest.approx(sum(view["tokens"]))
    blank = [part for part in facts["parts"][:-1] if "word" in part and not part["text"].strip()]
    assert blank == []  # blanks belong to the word after them


def test_pieces_of_words_and_characters_are_joined(tiny: Callable[..., Path]) -> None:
    subject = open_subject(tiny("nano"))
    reading = read_text(subject, "我们引军, unbelievably 㐂")
    words = find_words(subject, reading, range(1, len(reading.ids)))
    shown = [reading.text[word.start : word.end].strip() for word in words]
    assert shown[0] == "我们"
    assert "unbelievably" in shown
    assert shown[-1] == "㐂"  # three tokens, one character
    assert len(words[-1].tokens) >= 2


@pytest.mark.parametrize("name", ["nano", "gpt2-nano", "lstm", "feedforward"])
def test_the_next_token_is_the_models_own_and_words_account_for_it(
    tiny: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    facts = explain(tmp_path, tiny(name))
    model, tokenizer = load_model(tiny(name)), load_tokenizer(tiny(name))
    with torch.no_grad():
        chances = model(torch.tensor([[tokenizer.bos_id, *tokenizer.encode(EN)]]))[0, -1].log_softmax(-1)
    best = int(chances[: tokenizer.size].argmax())
    view = facts["views"][0]
    assert view["target"] == facts["answers"][0]["text"] == tokenizer.decode([best], skip_special=False)
    assert view["score"] == pytest.approx(float(chances[best]), abs=1e-4)
    change = view["score"] - view["hidden_score"]
    assert abs(view["sum"] - change) <= 0.01 * abs(change) + 1e-5
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == json.loads(json.dumps(facts))


def test_an_answer_is_all_its_tokens_with_or_without_a_blank(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny("nano")), load_tokenizer(tiny("nano"))
    view = explain(tmp_path, tiny("nano"), "The capital is", target="Paris or London", method="occlusion")["views"][0]
    asked, found = tokenizer.encode("The capital is"), []
    for spelled in ("Paris or London", " Paris or London"):
        answer = tokenizer.encode(spelled)
        with torch.no_grad():
            rows = model(torch.tensor([[tokenizer.bos_id, *asked, *answer]]))[0].log_softmax(-1)
        found.append(sum(float(rows[len(asked) + i, token]) for i, token in enumerate(answer)))
    assert view["score"] == pytest.approx(max(found), abs=1e-4)
    assert view["target"].strip() == "Paris or London"


def test_a_masked_word_and_the_one_asked_for(tiny: Callable[..., Path], tmp_path: Path) -> None:
    text = "The [MASK] of France"
    own = explain(tmp_path, tiny("bert-nano"), text)
    assert own["task"] == "masked"
    assert own["baseline"] == "mask"
    assert "".join(part["text"] for part in own["parts"]) == text
    other = explain(tmp_path, tiny("bert-nano"), text, target=own["answers"][3]["text"])
    assert other["views"][0]["probability"] == pytest.approx(own["answers"][3]["probability"], abs=1e-6)


@pytest.mark.parametrize("name", ["nano", "bert-nano", "lstm"])
def test_a_class_and_the_next_likely_one(tiny: Callable[..., Path], tmp_path: Path, name: str) -> None:
    folder = tiny(name, ("good", "bad", "neither"))
    facts = explain(tmp_path, folder)
    labels = [answer["text"] for answer in facts["answers"]]
    assert [view["target"] for view in facts["views"]] == labels[:2]
    assert sum(answer["probability"] for answer in facts["answers"]) == pytest.approx(1)
    given = explain(tmp_path, folder, target=labels[2])
    assert [view["target"] for view in given["views"]] == [labels[2], labels[0]]


def test_a_number_in_its_own_unit(tiny: Callable[..., Path], tmp_path: Path) -> None:
    facts = explain(tmp_path, tiny("gpt2-nano", ("stars",)))
    assert facts["task"] == "number"
    assert facts["views"][0]["probability"] is None


@pytest.mark.parametrize(
    ("name", "labels", "keys", "message"),
    [
        ("transformer-nano", (), {}, "is a translator"),
        ("bert-nano", (), {}, r"0 \[MASK\]; write exactly one"),
        ("bert-nano", (), {"text": "a [MASK] b", "target": "unbelievably so"}, "more than one token"),
        ("nano", ("good", "bad"), {"target": "godo"}, "did you mean 'good'"),
        ("nano", (), {"baseline": "mask"}, "names no mask_token"),
    ],
)
def test_what_cannot_be_explained_is_said_in_one_line(
    tiny: Callable[..., Path], tmp_path: Path, name: str, labels: tuple[str, ...], keys: dict[str, Any], message: str
) -> None:
    from hepta.config import HeptaError

    with pytest.raises(HeptaError, match=message):
        explain(tmp_path, tiny(name, labels), **keys)


def test_the_command_prints_a_table_and_writes_page_and_facts(tiny: Callable[..., Path], tmp_path: Path, cli) -> None:
    page = tmp_path / "why.html"
    done = cli("explain", "attribution", "--model", tiny("nano"), "--text", EN, "--output", page)
    assert done.code == 0, done.err
    assert "log-probability" in done.out
    assert "gap" in done.out
    assert page.is_file()
    assert page.with_suffix(".json").is_file()
    again = cli("explain", "attribution", "--model", tiny("nano"), "--text", EN, "--output", page, "--json")
    assert json.loads(again.out)["facts"]["task"] == "next"
