"""``hepta generate`` and ``hepta chat`` as people call them."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hepta.generation import chat as chat_module
from hepta.generation.chat import chat
from hepta.generation.config import ChatConfig, GenerateConfig
from hepta.generation.engine import Engine
from hepta.generation.generate import generate
from hepta.model.adapters import adapter_parameters, attach_lora, save_adapter
from hepta.model.config import ModelConfig
from hepta.model.decoder import Decoder
from hepta.model.load import load_model, save_model
from hepta.tokenizer.load import load_tokenizer

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def model_dir(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights with its tokenizer and chat template."""
    model, generator = Decoder(ModelConfig(
        vocab_size=640, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2,
        head_dim=16)), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(noise if parameter.ndim > 1 else 1 + noise)
    place = tmp_path_factory.mktemp("model") / "run" / "model"
    save_model(model, place, tokenizer_dir)
    return place


def test_generate_prints_prompt_and_continuation(cli: Cli, model_dir: Path) -> None:
    arguments = ("generate", "--model", model_dir.parent, "--prompt", "The city", "--prompt", "今天")
    outcome = cli(*arguments, "--max-new-tokens", 6, "temperature=0.5", "seed=3")
    assert outcome.code == 0
    first, second = outcome.out.rstrip("\n").split("\n\n", 1)
    assert first.startswith("The city")
    assert second.startswith("今天")
    assert "tokens/s" in outcome.err
    again = json.loads(cli(*arguments, "--max-new-tokens", 6, "temperature=0.5", "seed=3", "--json").out)
    assert [c["prompt"] + c["text"] for c in again["completions"]] == [first, second]
    assert all(len(c["ids"]) == len(c["logprobs"]) <= 6 for c in again["completions"])


def test_generate_is_the_engine_on_bos_and_the_prompt(model_dir: Path) -> None:
    """Trap G10: a prompt that spells a special token is text."""
    tokenizer, text = load_tokenizer(model_dir), "a<|im_end|>b"
    result = generate(GenerateConfig(model=str(model_dir), prompt=text, max_new_tokens=7))  # pyright: ignore
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    assert ids.count(tokenizer.stop_ids[0]) == 0
    expected = Engine(load_model(model_dir), tokenizer).generate([ids], max_new_tokens=7)[0]
    assert (result.completions[0].ids, result.completions[0].text) == (expected.ids, expected.text)


def test_one_message_gives_one_answer(cli: Cli, model_dir: Path) -> None:
    outcome = cli("chat", "--model", model_dir, "--message", "你好", "max_new_tokens=8")
    assert outcome.code == 0
    result = json.loads(cli("chat", "--model", model_dir, "--message", "你好", "max_new_tokens=8", "--json").out)
    assert outcome.out.rstrip("\n") == result["answer"]
    assert [m["role"] for m in result["messages"]] == ["user", "assistant"]
    tokenizer = load_tokenizer(model_dir)
    prompt = tokenizer.render([{"role": "user", "content": "你好"}], add_generation_prompt=True)
    expected = Engine(load_model(model_dir), tokenizer).generate([prompt], max_new_tokens=8)[0]
    assert result["answer"] == expected.text


def test_piped_lines_are_a_conversation_until_reset(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ChatConfig(model=str(model_dir), max_new_tokens=5, system="Be brief.")
    out = io.StringIO()
    result = chat(config, io.StringIO("one\n\ntwo\n/reset\nthree\n/quit\nfour\n"), out)
    assert [m["content"] for m in result.messages if m["role"] != "assistant"] == ["Be brief.", "three"]
    tokenizer, engine = load_tokenizer(model_dir), Engine(load_model(model_dir), load_tokenizer(model_dir))
    messages, expected = [{"role": "system", "content": "Be brief."}], ""
    for line in ("one", "two"):
        messages.append({"role": "user", "content": line})
        answer = engine.generate([tokenizer.render(messages, add_generation_prompt=True)], max_new_tokens=5)[0].text
        messages.append({"role": "assistant", "content": answer})
        expected += answer + "\n"
    assert out.getvalue().startswith(expected)
    assert out.getvalue() == expected + result.answer + "\n"
    assert "forgotten" in capsys.readouterr().err


def test_piped_lines_through_the_command_line(
    cli: Cli, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_module.sys, "stdin", io.StringIO("hello\n"))
    outcome = cli("chat", "--model", model_dir, "max_new_tokens=5")
    assert outcome.code == 0
    monkeypatch.setattr(chat_module.sys, "stdin", io.StringIO("hello\n"))
    as_json = cli("chat", "--model", model_dir, "max_new_tokens=5", "--json")
    assert outcome.out == json.loads(as_json.out)["answer"] + "\n"  # --json prints one object and nothing else


def test_a_long_conversation_drops_its_oldest_exchange_and_says_so(
    tokenizer_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Decoder(ModelConfig(
        vocab_size=640, hidden_size=32, intermediate_size=48, num_layers=1, num_heads=2, num_kv_heads=1,
        head_dim=16, max_positions=60))
    model.init_weights(0)
    save_model(model, tmp_path, tokenizer_dir)
    config = ChatConfig(model=str(tmp_path), max_new_tokens=5)
    result = chat(config, io.StringIO("one\ntwo\nthree\nfour\n"), io.StringIO())
    assert result.messages[0]["content"] != "one"
    assert result.messages[-2]["content"] == "four"
    assert "oldest exchange was left out" in capsys.readouterr().err
    with pytest.raises(Exception, match="say it shorter"):
        chat(config.model_copy(update={"message": "word " * 100}))


def test_an_adapter_directory_generates_like_any_model(model_dir: Path, tmp_path: Path) -> None:
    model = load_model(model_dir)
    attach_lora(model, rank=2, alpha=4)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.add_(0.05)
    save_adapter(model, tmp_path, model_dir)
    make = {"prompt": "The", "max_new_tokens": 12}
    adapted = generate(GenerateConfig(model=str(tmp_path), **make))  # pyright: ignore
    tokenizer = load_tokenizer(model_dir)
    expected = Engine(model, tokenizer).generate([[tokenizer.bos_id, *tokenizer.encode("The")]], max_new_tokens=12)
    assert adapted.completions[0].ids == expected[0].ids
    assert adapted.completions[0].ids != generate(GenerateConfig(model=str(model_dir), **make)).completions[0].ids  # pyright: ignore


def test_mistakes_are_one_line_with_exit_code_2(cli: Cli, model_dir: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        outcome = cli(*arguments)
        assert outcome.code == 2
        assert outcome.out == ""
        lines = [line for line in outcome.err.splitlines() if line]
        assert len(lines) == 1
        return lines[0]

    assert "no such directory" in refused("generate", "--model", tmp_path / "none", "--prompt", "a")
    assert "give --prompt to continue a text, or --fill" in refused("generate", "--model", model_dir)
    assert "did you mean 'temperature'" in refused("generate", "--model", model_dir, "--prompt", "a", "temprature=1")
    assert "top_p" in refused("generate", "--model", model_dir, "--prompt", "a", "top_p=1.5")

    copy = tmp_path / "copy"
    shutil.copytree(model_dir, copy)
    file = copy / "tokenizer_config.json"
    config = json.loads(file.read_text())
    template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    file.write_text(json.dumps({**config, "chat_template": template}))
    assert "template_sha256 differs from what the model was trained with" in refused(
        "chat", "--model", copy, "--message", "a"
    )  # trap S7
    file.write_text(json.dumps({k: v for k, v in config.items() if k != "chat_template"}))
    assert "has no chat template, so it cannot chat" in refused("chat", "--model", copy, "--message", "a")
    (copy / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refused("generate", "--model", copy, "--prompt", "a")


def test_a_tokenizer_that_is_not_the_models_is_refused(cli: Cli, model_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model_dir, copy)
    spec = json.loads((copy / "tokenizer.json").read_text())
    spec["model"]["merges"] = spec["model"]["merges"][:-1]
    (copy / "tokenizer.json").write_text(json.dumps(spec))
    outcome = cli("generate", "--model", copy, "--prompt", "a")
    assert outcome.code == 2
    assert "is not the tokenizer this was made with" in outcome.err


@pytest.mark.parametrize(("provenance", "warned"), [({"verb": "pretrain"}, 1), ({"verb": "sft"}, 0), ({}, 0)])
def test_only_a_base_model_warns_that_it_was_not_taught_to_answer(
    cli: Cli, model_dir: Path, tokenizer_dir: Path, tmp_path: Path, provenance: dict[str, str], warned: int
) -> None:
    save_model(load_model(model_dir), tmp_path / "model", tokenizer_dir, provenance=provenance)
    outcome = cli("chat", "--model", tmp_path / "model", "--message", "hi", "max_new_tokens=2")
    assert outcome.code == 0
    assert outcome.err.count("not to answer") == warned
    assert len(outcome.err.splitlines()) == warned
