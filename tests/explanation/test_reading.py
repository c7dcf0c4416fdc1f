"""What people are shown of a text is what the model reads: tokens, their characters, words and their places."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hepta.config import HeptaError
from hepta.explanation.reading import find_word, last_word, open_subject, read_text, tokens_of
from hepta.explanation.translation import pieces_of
from hepta.generation.fill import read_masks
from hepta.tokenizer.load import load_tokenizer

TEXTS = ["The cat sat on the mat", "猫坐在垫子上。🙂 naïve, 12,345\n\n<|endoftext|>  x", "魑魅魍魉 and é"]


@pytest.mark.parametrize("text", TEXTS)
def test_spans_are_the_tokens_of_encode_and_cover_the_text(tokenizer_dir: Path, text: str) -> None:
    tokenizer = load_tokenizer(tokenizer_dir)
    ids, spans = tokenizer.encode_spans(text)
    assert ids == tokenizer.encode(text)
    assert {place for start, end in spans for place in range(start, end)} == set(range(len(text)))


@pytest.mark.parametrize("text", TEXTS)
def test_generated_ids_have_the_same_pieces_as_the_text_they_spell(tokenizer_dir: Path, text: str) -> None:
    tokenizer = load_tokenizer(tokenizer_dir)
    subject_spans = tokenizer.encode_spans(text)[1]
    shown, pieces = pieces_of(tokenizer, tokenizer.encode(text))
    assert shown == text
    assert [(piece.start, piece.end) for piece in pieces] == subject_spans


def test_a_character_split_over_tokens_is_numbered(tiny: Callable[..., Path]) -> None:
    reading = read_text(open_subject(tiny("nano")), "a魑b")
    shown = [piece.text for piece in reading.pieces]
    assert shown[0] == "<|endoftext|>"
    assert "魑₁" in shown
    assert "魑₂" in shown
    assert tokens_of(reading.pieces, 1, 2) == [place for place, text in enumerate(shown) if "魑" in text]


def test_a_masked_model_reads_between_its_ends_and_its_masks(tiny: Callable[..., Path]) -> None:
    subject = open_subject(tiny("bert-nano"))
    text = "The [MASK] sat on [MASK] mat"
    reading = read_text(subject, text)
    assert reading.ids == read_masks(text, subject.tokenizer)
    roles = [piece.special for piece in reading.pieces]
    assert roles[0] == "bos"
    assert roles[-1] == "eos"
    assert roles.count("mask") == 2
    masks = [place for place, role in enumerate(roles) if role == "mask"]
    assert [tokens_of(reading.pieces, *place) for place in find_word(text, "[MASK]")] == [[masks[0]], [masks[1]]]
    for piece in reading.pieces:
        if piece.special is None:
            assert text[piece.start : piece.end] == piece.text


def test_a_classifier_reads_no_more_than_it_learnt_to(tiny: Callable[..., Path]) -> None:
    subject = open_subject(tiny("nano", ("cats", "dogs")))
    reading = read_text(subject, "cat " * 40)
    assert len(reading.ids) == 24
    assert reading.cut == len(subject.tokenizer.encode("cat " * 40)) - 24


def test_a_word_is_found_whole_wherever_it_stands() -> None:
    text = "The cat concatenates a cat."
    assert find_word(text, "cat") == [(4, 7), (23, 26)]
    assert find_word("猫坐在猫垫上", "猫") == [(0, 1), (3, 4)]
    assert find_word("我有cat和dog", "cat") == [(2, 5)]
    assert last_word(text) == (23, 26)
    assert last_word("他说：走吧！") == (4, 5)


@pytest.mark.parametrize(
    ("word", "told"),
    [("Cat", "did you mean 'cat'?"), ("dog", "name one of its words"), ("ca", "only a part of 'cat'"), (" ", "empty")],
)
def test_a_word_that_is_not_there_is_told_with_the_text(word: str, told: str) -> None:
    with pytest.raises(HeptaError) as error:
        find_word("The cat sat", word)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    if word.strip():
        assert "The cat sat" in str(error.value)


def test_a_text_too_long_is_refused_with_both_numbers(tiny: Callable[..., Path]) -> None:
    with pytest.raises(HeptaError, match=r"the text has \d+ tokens, hepta explain shows 2048; shorten it"):
        read_text(open_subject(tiny("nano")), "cat " * 3000)
    with pytest.raises(HeptaError, match=r"the text has \d+ tokens, the model reads 1024; shorten it"):
        read_text(open_subject(tiny("gpt2-nano")), "cat " * 1100)
