"""Plain text: exact round trip, no special ever spelt, tiktoken = tokenizers = transformers."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as HfTokenizer

from hepta.tokenizer.config import TokenizerConfig
from hepta.tokenizer.encoding import LONG_BLANK, SAMPLE, FastEncoder, SlowEncoder
from hepta.tokenizer.load import load_tokenizer
from hepta.tokenizer.pattern import byte_alphabet, split_pattern
from hepta.tokenizer.train import SPECIALS, train_tokenizer

TRICKY = (
    "line\r\nline\rline\n\n",
    "two  spaces   three\t\ttabs",
    "a\u00a0b\u202fc",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇨🇳",
    "\ue000\uf8ff\U000f0000",
    "ＡＢＣ，。！？（１２３）",
    "e\u0301 \u1e69 s\u0323\u0307",
    "\x00\x01\x7f\x85",
    "\ufeffbom",
    "\u200b\u200d\u2060",
    " leading",
    "trailing ",
)


def test_every_unicode_block_round_trips(tokenizer):
    """trap K1: no normaliser changes a character anywhere."""
    for start in range(0, 0x110000, 256):
        text = "".join(chr(c) for c in range(start, start + 256) if not 0xD800 <= c < 0xE000)
        assert tokenizer.decode(tokenizer.encode(text)) == text, hex(start)


@pytest.mark.parametrize("text", [*TRICKY, *SAMPLE, *SPECIALS])
def test_typography_and_control_characters_round_trip(tokenizer, text):
    """trap K1: CRLF, NBSP, double spaces, full-width forms, ZWJ emoji, private use."""
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_text_round_trips_and_both_libraries_agree(tokenizer, auto, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    if not any(special in text for special in SPECIALS):
        assert ids == auto(text)["input_ids"]


@settings(max_examples=300, deadline=None)
@given(picks=st.lists(st.integers(0, 2043), min_size=1, max_size=60))
def test_text_made_of_the_vocabulary_is_cut_alike(tokenizer, auto, picks):
    """Where a rank that is not the merge order would show."""
    text = b"".join(tokenizer.token_bytes(i) for i in picks).decode("utf-8", "replace")
    assert tokenizer.encode(text) == auto(text)["input_ids"]


def test_real_text_is_cut_alike_and_by_the_fast_encoder(tokenizer, auto, english, chinese):
    assert tokenizer.slow_reason == ""
    for text in [*english[:50], *chinese[:3]]:
        assert tokenizer.encode(text) == auto(text)["input_ids"]


@pytest.mark.parametrize(
    "spelling", ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|pad|>", "x<|im_end|>y", "<|endoftext|>" * 3]
)
def test_text_that_spells_a_special_token_stays_text(tokenizer, tokenizer_dir, spelling):
    """trap K3: neither the fast nor the slow encoder gives a special id, and the text comes back."""
    spec = json.loads((tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8"))
    slow = SlowEncoder(spec)
    for ids in (tokenizer.encode(spelling), tokenizer.encode_batch([spelling])[0], slow.encode(spelling).tolist()):
        assert not tokenizer.special_ids & set(ids)
        assert tokenizer.decode(ids) == spelling


def test_specials_are_last_and_padding_is_its_own(tokenizer):
    names = [tokenizer.token_bytes(i).decode() for i in range(tokenizer.size - 4, tokenizer.size)]
    assert tuple(names) == SPECIALS
    assert tokenizer.bos_id == tokenizer.eos_id != tokenizer.pad_id  # trap S5
    assert tokenizer.padded_size % 64 == 0
    assert tokenizer.padded_size - tokenizer.size < 64
    assert tokenizer.stop_ids == [tokenizer.size - 1, tokenizer.eos_id]


def test_invalid_bytes_decode_to_replacement_characters(tokenizer):
    lead = next(i for i in range(256) if tokenizer.token_bytes(i) == b"\xe4")
    assert tokenizer.decode([lead]) == "\ufffd"
    assert tokenizer.decode([lead, *tokenizer.encode("ok"), tokenizer.size + 3]) == "\ufffdok\ufffd"
    assert tokenizer.decode([*tokenizer.encode("ok"), tokenizer.eos_id]) == "ok"
    assert tokenizer.decode([tokenizer.eos_id], skip_special=False) == "<|endoftext|>"


def test_a_lone_surrogate_becomes_a_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.parametrize("blank", [" ", "\n", "\u3000", " \t"])
def test_a_desert_of_blanks_is_encoded_and_not_a_crash(tokenizer, blank):
    """fancy-regex overflows its stack on long runs of blanks; those texts go through the other library."""
    text = "a" + blank * (1_000_000 // len(blank)) + "b"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert LONG_BLANK < 100_000


def test_the_split_is_the_same_in_both_engines_around_every_code_point():
    """The pattern runs in Oniguruma (tokenizers) and in fancy-regex (tiktoken), with Unicode tables of their own.

    A vocabulary in which a character merges with its neighbour iff both lie in one piece makes the cut visible.
    """
    letters = byte_alphabet()
    vocab = {letters[byte]: byte for byte in range(256)}
    merges = []
    for neighbour in b"a1! \n":
        for byte in range(0x80, 0x100):
            pair = (neighbour, byte) if byte >= 0xC0 else (byte, neighbour)  # before a first byte, behind a last one
            merges.append((letters[pair[0]], letters[pair[1]]))
            vocab["".join(merges[-1])] = len(vocab)
    hf = HfTokenizer(models.BPE(vocab, merges))
    hf.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_pattern()), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    spec = json.loads(hf.to_str())
    fast = FastEncoder(spec, SlowEncoder(spec))
    points = [*range(0x80, 0xD800), *range(0xE000, 0x20000), *range(0x20000, 0x110000, 97)]
    texts = [f"a{c}a1{c}1!{c}! {c} \n{c}\n {c}a" for c in map(chr, points)]
    for point, text, slow in zip(points, texts, hf.encode_batch(texts), strict=True):
        assert fast.encode(text).tolist() == slow.ids, hex(point)


def test_chinese_only_training_still_decodes_english(chinese, tmp_path):
    """trap K9: all 256 bytes are in the vocabulary, whatever the training text."""
    (tmp_path / "zh.txt").write_text(chinese[0], encoding="utf-8")
    train_tokenizer(TokenizerConfig(input=tmp_path / "zh.txt", vocab_size=600, output=tmp_path / "tok"))
    tokenizer = load_tokenizer(tmp_path / "tok")
    text = "The cat sat on the mat. 🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_loading_and_encoding_never_import_torch(tokenizer_dir):
    code = f"import sys; from hepta.tokenizer.load import load_tokenizer; t = load_tokenizer({str(tokenizer_dir)!r});"
    code += "t.encode('a'); t.render([{'role': 'user', 'content': 'a'}]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("odd", ["", "plain", "<|hepta-document-break|>", " " * 30_000, "a\ud800b"])
def test_a_batch_gives_the_ids_of_each_text_alone(tokenizer, odd):
    """Documents are encoded in one call, cut by a token of our own; a text that spells it stays text."""
    texts = ["one ", " two\n", odd, "", "三 ", "\n\nfour", odd]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert max((i for ids in tokenizer.encode_batch(texts) for i in ids), default=0) < tokenizer.size - 4
    assert tokenizer.encode_batch([]) == []
