"""Every command the READMEs show is run, on the same recipe with tiny budgets (``shell_blocks.py``)."""

import pytest

from shell_blocks import LARGE, ROOT, commands, fences


def test_both_readmes_show_the_same_commands():
    assert commands("README.md") == commands("README.zh-CN.md")
    assert len(commands("README.md")) >= 13


def test_no_command_of_the_readme_stands_outside_a_block_that_is_run():
    for readme in ("README.md", "README.zh-CN.md"):
        for line, info, body, _ in fences(readme):
            assert info == "bash" or not any(text.startswith("hepta ") for text in body), f"{readme}:{line}"


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_readmes_fit_200_lines(readme):
    assert len((ROOT / readme).read_text(encoding="utf-8").splitlines()) <= 200


def test_every_command_of_the_readme_works(place):
    assert place.walk("README.md") == []
    small = [text for text in commands("README.md") if not any(name in text for name in LARGE)]
    assert len(place.done) >= len(small)


@pytest.mark.model
def test_commands_with_large_models_work(place, monkeypatch):
    monkeypatch.setattr(place, "large", True)
    assert place.walk("README.md") == []
