"""Configs: nothing is read that was not written, and every slip is named."""

import pytest

from hepta.config import Config, HeptaError, StageConfig, budget, identity, load_config, parse_overrides, parse_yaml


class Inner(Config):
    every: int = identity(10, "steps between")


class Sample(StageConfig):
    lr: float = identity(1e-3, "learning rate")
    word: str = identity("yes", "a word")
    max_steps: int = budget(5, "steps")
    checkpoint: Inner = identity(Inner(), "nested")


def test_yaml_scalars_follow_1_2(tmp_path):
    text = "a: 1e-4\nb: no\nc: 12:30\nd: true\ne: 0o7\nf: 1_000\ng: 2026-11-22\nh: -.5\ni: ~\nj: .inf"
    values = parse_yaml(text, "x")
    assert values == {
        "a": 1e-4,
        "b": "no",
        "c": "12:30",
        "d": True,
        "e": "0o7",
        "f": "1_000",
        "g": "2026-11-22",
        "h": -0.5,
        "i": None,
        "j": float("inf"),
    }


def test_duplicate_key_is_an_error_naming_both_lines():
    with pytest.raises(HeptaError, match=r"demo.yaml: line 3: key 'lr' stands twice \(first on line 1\)"):
        parse_yaml("lr: 1\nother: 2\nlr: 3\n", "demo.yaml")


def test_yaml_never_builds_python_objects():
    with pytest.raises(HeptaError, match="not valid YAML"):
        parse_yaml("!!python/object/apply:os.system ['true']", "evil.yaml")


def test_precedence_is_file_then_override_then_option(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("lr: 1\nmax_steps: 1\nword: a\noutput: o\n")
    config = load_config(Sample, file, ["lr=2", "max_steps=2"], {"max_steps": 3, "word": None})
    assert (config.lr, config.max_steps, config.word) == (2.0, 3, "a")


def test_nested_override_and_nested_misspelling():
    config = load_config(Sample, None, ["checkpoint.every=3", "output=o"])
    assert config.checkpoint.every == 3
    with pytest.raises(HeptaError, match=r"unknown key 'checkpoint.evry'; did you mean 'every'"):
        load_config(Sample, None, ["checkpoint.evry=3", "output=o"])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["output=o", "max_step=3"], "unknown key 'max_step'; did you mean 'max_steps'"),
        (["max_step=3"], "did you mean 'max_steps'"),
        (["output=o", "max_steps=ten"], "max_steps: .*found 'ten'"),
        (["lr=1"], "'output' is missing; give it as --output"),
        (["lr"], "expected key=value"),
    ],
)
def test_a_slip_is_one_line_naming_key_and_fix(pairs, message):
    with pytest.raises(HeptaError, match=message) as caught:
        load_config(Sample, None, pairs)
    assert "\n" not in str(caught.value)


def test_a_sentence_with_a_colon_is_a_word():
    assert parse_overrides(["word=q: what: is"]) == {"word": "q: what: is"}


def test_words_stay_words():
    config = load_config(Sample, None, ["word=no", "output=o"])
    assert config.word == "no"
