"""GGUF files become model directories that mean the same: weights, tokenizer, chat template."""

import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_gguf import SPECIALS, TEMPLATE, TEXTS, names_of, permute

import hepta
from hepta.catalog.gguf import convert
from hepta.config import HeptaError

IDS = torch.randint(3, 360, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def directory(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_a_float32_gguf_gives_the_original_logits_exactly(tiny, tmp_path, directory, tied):
    from transformers import AutoModelForCausalLM

    facts = convert(tiny.write(tmp_path / "tiny.gguf", tied=tied), directory)
    assert facts["parameters"] == sum(p.numel() for p in tiny.models[tied].parameters())
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = tiny.models[tied](IDS).logits
        assert torch.equal(loaded(IDS).logits, expected)
        assert (hepta.load_model(directory)(IDS) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1", "Q5_0"])
def test_quantised_weights_lie_within_the_bound_of_their_quantisation(tiny, tmp_path, directory, kind):
    convert(tiny.write(tmp_path / "tiny.gguf", kind=kind), directory)
    found = load_file(directory / "model.safetensors")
    assert {str(tensor.dtype) for tensor in found.values()} == {"float32"}
    for name, original in tiny.models[True].state_dict().items():
        if name == "lm_head.weight":
            continue
        original = original.numpy()
        blocks = original.reshape(-1, 32)
        high, low = blocks.max(1, keepdims=True), blocks.min(1, keepdims=True)
        largest = np.abs(blocks).max(1, keepdims=True)
        half = 2.0**-11  # scales and minima are stored as float16
        bound = {
            "F16": largest * half, "BF16": largest * 2.0**-8, "Q8_0": largest * (0.5 / 127 + half),
            "Q4_1": (high - low) * (0.5 / 15 + half) + np.abs(low) * half,
            "Q5_0": largest * (1 / 16 + half),  # -16 … 15 steps: the end of the shorter side is cut to 15
        }[kind] if original.ndim == 2 else 0  # fmt: skip
        error = np.abs(found[name].reshape(-1, 32) - blocks)
        assert (error <= bound + 1e-7).all(), name
        if original.ndim == 2 and kind != "F16":
            assert error.max() > 0, "was not quantised at all"


def test_quantised_numbers_are_what_transformers_reads_in_the_same_file(tiny, tmp_path, directory):
    from transformers import AutoModelForCausalLM

    file = tiny.write(tmp_path / "tiny.gguf", kind="Q4_1")
    convert(file, directory)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).state_dict()
    for name, values in load_file(directory / "model.safetensors").items():
        assert np.array_equal(theirs[name].numpy(), values), name


def test_ids_of_text_are_the_reference_tokenizers(tiny, tmp_path, directory):
    from transformers import AutoTokenizer

    convert(tiny.write(tmp_path / "tiny.gguf"), directory)
    ours, auto = hepta.load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    assert ours.slow_reason == ""
    for text in [*TEXTS, "  7 8\n\n99 "]:
        expected = tiny.tokenizer.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == expected
        assert auto(text, add_special_tokens=False)["input_ids"] == expected
        assert ours.decode(expected) == text
    assert [auto.convert_tokens_to_ids(name) for name in SPECIALS] == [0, 1, 2]
    assert ours.special_ids == {0, 1, 2}
    assert (auto.bos_token, auto.eos_token, auto.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")


def test_conversations_are_rendered_by_the_files_own_template(tiny, tmp_path, directory):
    from transformers import AutoTokenizer

    convert(tiny.write(tmp_path / "tiny.gguf"), directory)
    messages = [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": TEXTS[1]}]
    auto = AutoTokenizer.from_pretrained(directory)
    assert auto.chat_template == TEMPLATE
    for part, prompt in ((messages, False), (messages[:1], True)):
        theirs = auto.apply_chat_template(part, add_generation_prompt=prompt, return_dict=False)
        assert hepta.load_tokenizer(directory).render(part, add_generation_prompt=prompt) == theirs


@pytest.mark.parametrize(
    ("cut", "pieces"),
    [
        ("gpt-2", ["it", "'s", "Ġ", "Ġ2024", ",", "Ġx", "=\"", "Ċ"]),
        ("smollm", ["it", "'s", "ĠĠ", "2", "0", "2", "4", ",", "Ġx", "=\"", "Ċ"]),
        ("llama-bpe", ["it", "'s", "Ġ", "Ġ", "202", "4", ",", "Ġx", "=\"Ċ"]),
        ("qwen2", ["it", "'s", "Ġ", "Ġ", "2", "0", "2", "4", ",", "Ġx", "=\"Ċ"]),
    ],
)  # fmt: skip
def test_text_is_cut_the_way_the_file_names(tiny, tmp_path, directory, cut, pieces):
    from tokenizers import Tokenizer

    convert(tiny.write(tmp_path / "tiny.gguf", fields={"pre": cut}), directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("it's  2024, x=\"\n")] == pieces


def test_permute_of_this_test_is_undone_only_by_the_right_number_of_heads(tiny):
    from hepta.catalog.gguf import unpermute

    rows = np.arange(64 * 3, dtype=np.float32).reshape(64, 3)
    assert np.array_equal(unpermute(permute(rows, 4), 4), rows)
    assert not np.array_equal(unpermute(permute(rows, 4), 2), rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": {"architecture": "gemma3"}}, "architecture 'gemma3' is not supported"),
        ({"fields": {"model": "llama"}}, "tokenizer of kind 'llama' is not supported"),
        ({"fields": {"pre": "tekken"}}, "cuts text like 'tekken' is not supported"),
        ({"raw": {"rope_freqs.weight": np.ones(8, np.float32)}}, "rope_freqs.weight has no place"),
        ({"raw": {"blk.1.attn_q.bias": np.ones(64, np.float32)}}, "blk.1.attn_q.bias has no place"),
        ({"leave_out": "model.layers.1.mlp.up_proj.weight"}, "lacks the tensor that becomes model.layers.1.mlp.up"),
        ({"leave_out": "model.embed_tokens.weight"}, "lacks the tensor token_embd.weight"),
    ],
)
def test_what_cannot_be_converted_is_one_line_naming_it(tiny, tmp_path, directory, changes, message):
    file = tiny.write(tmp_path / "odd.gguf", **changes)
    with pytest.raises(HeptaError, match=message) as caught:
        convert(file, directory)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_quantisation_that_cannot_be_undone_is_named(tiny, tmp_path, directory):
    layer = "model.layers.0.mlp.up_proj.weight"
    file = tiny.write(
        tmp_path / "odd.gguf", leave_out=layer, raw={names_of(1)[layer]: np.ones((96, 64), np.int8)}
    )
    with pytest.raises(HeptaError, match=r"blk\.0\.ffn_up\.weight is stored as I8, which is not supported"):
        convert(file, directory)


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.98])
def test_a_file_cut_short_is_one_line(tiny, tmp_path, directory, keep):
    whole = tiny.write(tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(HeptaError, match="not readable as GGUF"):
        convert(tmp_path / "half.gguf", directory)


def test_something_else_is_no_gguf(tmp_path, directory):
    (tmp_path / "text.gguf").write_text("once upon a time")
    with pytest.raises(HeptaError, match="not readable as GGUF"):
        convert(tmp_path / "text.gguf", directory)


def test_a_tokenizer_that_begins_texts_says_so_to_transformers(tiny, tmp_path, directory):
    from transformers import AutoTokenizer

    file = tiny.write(tmp_path / "tiny.gguf", fields={"add_bos": True})
    convert(file, directory)
    assert AutoTokenizer.from_pretrained(directory)("a")["input_ids"][0] == 1
    assert json.loads((directory / "tokenizer_config.json").read_text())["bos_token"] == "<|im_start|>"
    assert gguf.GGUFReader(file).get_field("tokenizer.ggml.add_bos_token").contents() is True
