"""Training: Chinese stays in short pieces, only the train split is read, counters cannot wrap, output is stable."""

import hashlib
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HfTokenizer

from hepta.config import HeptaError
from hepta.tokenizer import train as training
from hepta.tokenizer.config import TokenizerConfig, TokenizerReportConfig
from hepta.tokenizer.load import check_matches, load_tokenizer
from hepta.tokenizer.pattern import HAN_RUN, byte_alphabet, split_pattern
from hepta.tokenizer.report import report_tokenizer, show_report
from hepta.tokenizer.train import VERSION, train_bpe, train_tokenizer

GPT4 = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def pieces(pattern: str, texts: list[str]) -> list[str]:
    splitter = pre_tokenizers.Split(Regex(pattern), "isolated")
    return [piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)]


def is_han(character: str) -> bool:
    return "\u4e00" <= character <= "\u9fff"


def test_a_chinese_clause_is_not_one_piece(chinese):
    """trap K2: the GPT-4 pattern makes each clause one piece, all unique; ours stays in short runs."""
    clauses, ours = pieces(GPT4, chinese), pieces(split_pattern(), chinese)
    assert max(sum(map(is_han, piece)) for piece in ours) == HAN_RUN
    assert max(sum(map(is_han, piece)) for piece in clauses) > 3 * HAN_RUN
    ratio, clause_ratio = len(set(ours)) / len(ours), len(set(clauses)) / len(clauses)
    assert ratio < 0.6 < 0.9 * clause_ratio / ratio


def test_the_longest_tokens_are_words_and_not_slogans(tokenizer):
    """trap K2: no token spans more than a run of Chinese characters."""
    for i in range(tokenizer.size):
        text = tokenizer.token_bytes(i).decode("utf-8", "replace")
        assert sum(map(is_han, text)) <= HAN_RUN, text


def test_digits_come_in_groups_of_three_at_most(tokenizer):
    for i in range(tokenizer.size):
        token = tokenizer.token_bytes(i)
        assert sum(byte in b"0123456789" for byte in token) <= 3, token


def test_merges_are_in_the_file_in_the_order_of_their_ids(tokenizer_dir):
    spec = json.loads((tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8"))
    ids = [spec["model"]["vocab"]["".join(merge)] for merge in spec["model"]["merges"]]
    assert ids == sorted(ids)
    assert spec["normalizer"] is None


def test_only_the_train_split_is_read(tmp_path):
    rows = [
        ("a" * 32, "the mat " * 50, "train"),
        ("b" * 32, "zqzqzq " * 500, "val"),
        ("c" * 32, "xkxkxk " * 500, "test"),
    ]
    columns = {
        "doc_id": [r[0] for r in rows], "text": [r[1] for r in rows], "split": [r[2] for r in rows],
        "source": ["s"] * 3, "lang": ["en"] * 3,
    }  # fmt: skip
    (tmp_path / "corpus/kept").mkdir(parents=True)
    parquet.write_table(pa.table(columns), tmp_path / "corpus/kept/part-00000.parquet")
    manifest = {"format": 1, "verb": "corpus", "digest": "d", "facts": {}}
    (tmp_path / "corpus/manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    train_tokenizer(TokenizerConfig(input=tmp_path / "corpus", vocab_size=300, output=tmp_path / "tok"))
    tokenizer = load_tokenizer(tmp_path / "tok")
    tokens = [tokenizer.token_bytes(i) for i in range(256, tokenizer.size - 4)]
    assert any(b"mat" in token for token in tokens)
    assert not any(b"zq" in token or b"xk" in token for token in tokens)


def test_more_text_than_the_counters_hold_is_refused(folder, tmp_path, monkeypatch):
    """trap K8: pair counts are 32-bit in the trainer; refuse, don't wrap."""
    monkeypatch.setattr(training, "COUNTER_LIMIT", 100_000)
    with pytest.raises(HeptaError, match="sample_bytes=50000"):
        train_tokenizer(TokenizerConfig(input=folder, vocab_size=400, output=tmp_path / "tok"))
    result = train_tokenizer(
        TokenizerConfig(input=folder, vocab_size=400, output=tmp_path / "tok2", sample_bytes=50_000)
    )
    assert 50_000 <= result.text_bytes <= 100_000


def test_a_second_run_does_nothing_and_says_the_same(folder, tokenizer_dir, capsys):
    before = (tokenizer_dir / "tokenizer.json").stat().st_mtime_ns
    again = train_tokenizer(TokenizerConfig(input=folder, vocab_size=2048, output=tokenizer_dir))
    assert "already done" in capsys.readouterr().err
    assert (tokenizer_dir / "tokenizer.json").stat().st_mtime_ns == before
    assert again.vocab_size == 2048
    assert set(again.bytes_per_token) == {"en", "zh"}
    assert all(2 < value < 5 for value in again.bytes_per_token.values())


def test_golden_merges_change_only_with_the_stage_version():
    text = ["The cat sat on the mat, the dog on the log; 12345 cats.", "今天天气很好，我们今天去公园。天气真好！"] * 3
    spec = json.loads(train_bpe(text, 300, HAN_RUN).to_str())
    digest = hashlib.sha256(json.dumps([spec["model"]["merges"], split_pattern()]).encode()).hexdigest()
    assert (VERSION, digest[:16]) == (1, "57b3a800058ca16d")


def test_text_too_small_for_the_vocabulary_says_so(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("ab ab ab", encoding="utf-8")
    result = train_tokenizer(TokenizerConfig(input=tmp_path / "a.txt", vocab_size=5000, output=tmp_path / "tok"))
    assert result.vocab_size < 300
    assert "not 5000" in capsys.readouterr().err


def test_no_text_is_one_clear_line(tmp_path):
    (tmp_path / "a.txt").write_text("", encoding="utf-8")
    with pytest.raises(HeptaError, match="no text"):
        train_tokenizer(TokenizerConfig(input=tmp_path / "a.txt", output=tmp_path / "tok"))
    assert not (tmp_path / "tok/tokenizer.json").exists()


def test_report_measures_each_language_beside_references(tokenizer_dir, folder):
    report = report_tokenizer(TokenizerReportConfig(tokenizer=tokenizer_dir, text=folder, reference=tokenizer_dir))
    for lang, per_character in (("en", 1.0), ("zh", 2.98)):
        measured = report.languages[lang]
        assert (
            measured.bytes_per_token
            == measured.other_bytes_per_token
            == pytest.approx(measured.text_bytes / measured.tokens, abs=1e-3)
        )
        assert measured.characters_reference == pytest.approx(per_character, abs=0.05)
    assert "".join(report.segmentation["en"]).startswith("The cat sat")
    assert "longest tokens" in show_report(report)


def test_wrong_directories_are_one_clear_line(tmp_path):
    with pytest.raises(HeptaError, match="no such directory"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(HeptaError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(HeptaError, match="not readable as JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(HeptaError, match="no key 'model'"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_does_not_belong_to_the_model_is_refused(tokenizer):
    check_matches(tokenizer, tokenizer.padded_size, {"tokenizer_sha256": tokenizer.sha256})
    check_matches(tokenizer, tokenizer.size + 271)  # as Qwen's vocabulary is padded
    with pytest.raises(HeptaError, match="not the tokenizer this was made with"):
        check_matches(tokenizer, tokenizer.padded_size, {"contract": {"tokenizer_sha256": "0" * 64}})
    with pytest.raises(HeptaError, match="does not belong"):
        check_matches(tokenizer, tokenizer.size - 1)
    with pytest.raises(HeptaError, match="does not belong"):
        check_matches(tokenizer, 32_000)


def test_a_copy_beside_a_model_gives_the_same_ids(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    for family in ("llama", "mistral", "qwen2", "qwen3"):  # transformers picks a class by the model's type
        tokenizer.copy_to(tmp_path / family)
        (tmp_path / family / "config.json").write_text(json.dumps({"model_type": family}), encoding="utf-8")
        auto = transformers.AutoTokenizer.from_pretrained(tmp_path / family)
        text = "The  cat sat.\r\n今天天气怎么样？ 12345"
        assert auto(text)["input_ids"] == tokenizer.encode(text) == load_tokenizer(tmp_path / family).encode(text)


def byte_level(pattern: str | None, first=None, normalizer=None, ignore_merges=False, vocab_size=600):
    """A foreign byte-level BPE of the family that ``first`` and ``pattern`` make."""
    from tokenizers import decoders

    hf = HfTokenizer(models.BPE(ignore_merges=ignore_merges))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    before = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else [first] if first else []
    hf.pre_tokenizer = pre_tokenizers.Sequence([*before, last]) if before else last
    hf.decoder = decoders.ByteLevel()
    if normalizer:
        hf.normalizer = normalizer
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # first, as SmolLM2 has them
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return hf, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )


QWEN2 = GPT4.replace(r"\p{N}{1,3}", r"\p{N}")


@pytest.mark.parametrize("family", ["gpt2", "llama3", "smollm2", "qwen2", "metaspace"])
def test_foreign_tokenizers_give_the_ids_of_transformers(family, english, chinese, tmp_path):
    """Byte-level BPE of the known families runs through tiktoken; anything else falls back, with the same ids."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import decoders, normalizers

    if family == "metaspace":
        hf = HfTokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        hf.pre_tokenizer, hf.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "<|endoftext|>"], show_progress=False)
    else:
        hf, trainer = {
            "gpt2": lambda: byte_level(None),
            "llama3": lambda: byte_level(GPT4, ignore_merges=True),
            "smollm2": lambda: byte_level(None, pre_tokenizers.Digits(individual_digits=True)),
            "qwen2": lambda: byte_level(QWEN2, normalizer=normalizers.NFC()),
        }[family]()
    hf.train_from_iterator([*english[:100], *chinese[:2]], trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=hf, eos_token="<|endoftext|>").save_pretrained(tmp_path / "t")
    tokenizer = load_tokenizer(tmp_path / "t")
    assert bool(tokenizer.slow_reason) == (family == "metaspace")
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "t")
    texts = [*english[100:140], *chinese[2:4], "a  1 23 456\n\n  7\t8  x", "e\u0301 caf\u00e9", "  lead", "end  "]
    for text in texts:
        assert tokenizer.encode(text) == auto.encode(text, add_special_tokens=False)
        if family == "qwen2":
            continue  # NFC rewrites text, by that tokenizer's own choice
        if family != "metaspace":
            assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_id not in tokenizer.encode("x<|endoftext|>y")  # trap K3


def test_bytes_that_a_vocabulary_lacks_are_left_out_as_transformers_leaves_them_out(english, tmp_path):
    """SmolLM2's has no token for 21 bytes, U+0004 and the first of many rare characters among them."""
    transformers = pytest.importorskip("transformers")

    hf, trainer = byte_level(None, pre_tokenizers.Digits(individual_digits=True))
    lacking = {byte_alphabet()[byte] for byte in (0x04, 0x1D, 0xF1, 0xC0)}
    trainer.initial_alphabet = [c for c in trainer.initial_alphabet if c not in lacking]
    hf.train_from_iterator(english[:100], trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=hf, eos_token="<|endoftext|>").save_pretrained(tmp_path / "t")
    tokenizer, auto = load_tokenizer(tmp_path / "t"), transformers.AutoTokenizer.from_pretrained(tmp_path / "t")
    assert tokenizer.slow_reason == ""
    texts = ["plain", "a\x04b", "!\x04!!\x1d?", "\U00050000 far \U00050000", *english[100:110]]
    expected = [auto.encode(text, add_special_tokens=False) for text in texts]
    assert [tokenizer.encode(text) for text in texts] == expected
    assert tokenizer.encode_batch(texts) == expected


def test_the_command_line_trains_and_reports(cli, folder, tmp_path):
    done = cli("tokenizer", "train", "--input", folder, "--vocab-size", 400, "--output", tmp_path / "tok", "--json")
    assert done.code == 0
    assert json.loads(done.out)["vocab_size"] == 400
    shown = cli("tokenizer", "report", tmp_path / "tok", "--text", folder)
    assert shown.code == 0
    assert "bytes/token" in shown.out
    missing = cli("tokenizer", "report", tmp_path / "nothing", "--text", folder)
    assert missing.code == 2
    assert "Traceback" not in missing.err
    shutil.rmtree(tmp_path / "tok")
