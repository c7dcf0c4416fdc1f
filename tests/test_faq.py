"""The questions: twenty-four, each answered in at most six lines with one hepta command and what it printed."""

import re

import pytest

from shell_blocks import ROOT, blocks, commands

PAGES = ["docs/faq.md", "docs/faq.zh.md"]


def answers(page: str) -> list[tuple[int, str, list[str]]]:
    """Number, question and lines of the answer, without its fenced blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"(?ms)^```.*?^```$", "", text)
    parts = re.split(r"(?m)^## (\d+)\. (.*)$", text)[1:]
    triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return [(int(number), question, [line for line in body.splitlines() if line]) for number, question, body in triples]


@pytest.mark.parametrize("page", PAGES)
def test_twenty_four_questions_with_short_answers(page):
    found = answers(page)
    assert [number for number, _, _ in found] == list(range(1, 25))
    assert len({question for _, question, _ in found}) == 24
    for number, question, lines in found:
        assert question.endswith(("?", "？")), question
        assert 1 <= len(lines) <= 6, number
        assert max(map(len, lines)) <= 130, number


@pytest.mark.parametrize("page", PAGES)
def test_each_answer_has_one_command_and_its_output(page):
    found = blocks(page)
    assert len(found) == 24
    for block in found:
        assert len(block.statements) == 1, block.where
        assert block.statements[0].startswith("hepta "), block.where
        assert 1 <= len(block.promise) <= 8, block.where


def test_both_languages_show_the_same_output():
    english, chinese = ([block.promise for block in blocks(page)] for page in PAGES)
    assert commands(PAGES[0]) == commands(PAGES[1])
    assert english == chinese
