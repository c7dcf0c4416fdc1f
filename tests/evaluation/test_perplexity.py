"""Scores of text against brute force with transformers' logits, every definition from one pass (trap E2)."""

import json
import lzma
import math
from dataclasses import replace

import pytest
import torch

from hepta.catalog.documents import Document
from hepta.evaluation.perplexity import Totals, count_words, cut_windows, score_documents, scores
from hepta.model.config import ModelConfig
from hepta.model.decoder import Decoder
from hepta.model.load import save_model

CONFIG = ModelConfig(
    vocab_size=320, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
    max_positions=64)


class Bytes:
    """A tokenizer of bytes: id = byte + 1; 0 stands for the document's two ends."""

    bos_id = eos_id = 0

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[byte + 1 for byte in text.encode()] for text in texts]


def doc(text: str, lang: str = "en", source: str = "s") -> Document:
    return Document("0" * 32, text, source, lang, "test")


TEXTS = [
    doc("a"), doc("The cat sat on the mat. " * 9), doc("今天天气怎么样？", "zh"),
    doc("滚滚长江东逝水，浪花淘尽英雄。" * 5, "zh", "t"),
    doc("x" * 30), doc("y" * 31), doc("z" * 32), doc("w" * 33), doc(""), doc("v" * 61), doc("u" * 62), doc("t" * 63),
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(CONFIG)
    decoder.init_weights(3)
    for parameter in decoder.parameters():  # away from uniform, so that a slip shows
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return decoder.eval()


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory):
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("model")
    save_model(model, directory)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def nats(reference, ids: list[int], start: int, end: int) -> list[float]:
    """−log p of ids[start+1 … end] by transformers, context beginning at ``start``."""
    with torch.no_grad():
        logs = torch.log_softmax(reference(torch.tensor([ids[start:end]])).logits[0].double(), -1)
    return [-float(row[label]) for row, label in zip(logs, ids[start + 1 : end + 1], strict=True)]


def brute_force(reference, text: str, T: int) -> tuple[float, float]:
    """Windows and sliding sums, one window at a time, straight from the definitions."""
    ids = [0, *(byte + 1 for byte in text.encode()), 0]
    N = len(ids) - 1
    windows = sum(sum(nats(reference, ids, start, min(start + T, N))) for start in range(0, N, T))
    sliding, taken = 0.0, 0
    for start in range(0, N, T // 2):
        end = min(start + T, N)
        if end > taken:
            sliding += sum(nats(reference, ids, start, end)[taken - start :])
            taken = end
    return windows, sliding


def test_both_sums_equal_transformers_logits_taken_window_by_window(model, reference):
    """Trap E2: non-overlapping and sliding from one pass, to 1e-4 per document."""
    T = 32
    for document in TEXTS:
        if not document.text:
            continue
        found = score_documents(model, Bytes(), [document], T)[document.lang, document.source]
        windows, sliding = brute_force(reference, document.text, T)
        assert found.nats == pytest.approx(windows, abs=1e-4 * found.tokens)
        assert found.nats_sliding == pytest.approx(sliding, abs=1e-4 * found.tokens)
        assert found.tokens == len(document.text.encode()) + 1


def test_batching_and_order_do_not_change_the_sums(model):
    together = score_documents(model, Bytes(), TEXTS, 32, batch_tokens=200)
    alone: dict[tuple[str, str], Totals] = {}
    for document in reversed(TEXTS):
        for key, totals in score_documents(model, Bytes(), [document], 32, batch_tokens=32).items():
            alone.setdefault(key, Totals()).add(totals)
    assert together.keys() == alone.keys()
    for key, totals in together.items():
        for name, value in vars(totals).items():
            assert value == pytest.approx(getattr(alone[key], name), rel=1e-5), name


def test_accuracy_counts_the_tokens_whose_argmax_was_right(model, reference):
    document = TEXTS[1]
    ids = [0, *(byte + 1 for byte in document.text.encode()), 0]
    hits = 0
    for start in range(0, len(ids) - 1, 32):
        end = min(start + 32, len(ids) - 1)
        with torch.no_grad():
            best = reference(torch.tensor([ids[start:end]])).logits[0].argmax(-1).tolist()
        hits += sum(a == b for a, b in zip(best, ids[start + 1 : end + 1], strict=True))
    found = score_documents(model, Bytes(), [document], 32)["en", "s"]
    assert found.correct == hits


@pytest.mark.parametrize("size", range(2, 40))
def test_every_token_is_predicted_exactly_once_by_each_definition(size):
    counted, sliding = [0] * size, [0] * size
    for window in cut_windows(size, 8):
        for place in range(window.length):
            counted[window.start + place + 1] += window.counted
            sliding[window.start + place + 1] += place >= window.sliding_from
    assert counted[1:] == sliding[1:] == [1] * (size - 1)


def test_sliding_gives_every_token_at_least_half_a_window_of_context():
    for window in cut_windows(100, 16):
        if window.start:
            assert window.sliding_from >= 8


def test_documents_are_read_a_bounded_buffer_at_a_time(model, monkeypatch):
    from hepta.evaluation import perplexity

    read, ahead = [0], []
    original = perplexity._score_batch

    def scored(*arguments):
        ahead.append(read[0])
        return original(*arguments)

    def stream():
        for document in TEXTS * 20:
            read[0] += 1
            yield document

    monkeypatch.setattr(perplexity, "_score_batch", scored)
    monkeypatch.setattr(perplexity, "BUFFERED_DOCUMENTS", 16)
    score_documents(model, Bytes(), stream(), 32)
    assert ahead[0] == 16
    assert ahead == sorted(ahead)
    assert len(set(ahead)) == len(TEXTS) * 20 // 16


def test_definitions_follow_from_the_sums():
    totals = Totals(documents=2, tokens=10, bytes=40, characters=38, words=8, nats=20.0, nats_sliding=15.0, correct=3)
    totals.document_means = 1.0 + 3.0
    found = scores(totals)
    assert found.nats_per_token == 2.0
    assert found.perplexity_per_token == pytest.approx(math.exp(2))
    assert found.perplexity_per_token_sliding == pytest.approx(math.exp(1.5))
    assert found.perplexity_per_word == pytest.approx(math.exp(20 / 8))
    assert found.perplexity_per_document == pytest.approx(math.exp(2))
    assert found.bits_per_byte == pytest.approx(20 / math.log(2) / 40)
    assert found.accuracy == 0.3
    assert scores(Totals()).bits_per_byte is None


def test_words_are_between_white_space_and_in_chinese_characters():
    assert count_words("The cat  sat\non it.", "en") == 5
    assert count_words("今天 天气？", "zh") == 5


def test_a_random_model_costs_about_the_uniform_loss():
    decoder = Decoder(replace(CONFIG, vocab_size=8192))
    decoder.init_weights(0)
    decoder.output_weight.data.mul_(0.05)  # logits near 0: it guesses evenly
    found = score_documents(decoder, Bytes(), TEXTS, 32)["en", "s"]
    assert found.nats / found.tokens == pytest.approx(math.log(8192), abs=0.1)


def test_training_mode_is_given_back(model):
    model.train()
    score_documents(model, Bytes(), TEXTS[:1], 32)
    assert model.training
    model.eval()


def test_xz_beside_is_the_lzma_of_the_concatenated_text():
    from hepta.evaluation.text import XzMeter

    texts = ["滚滚长江东逝水" * 50, "浪花淘尽英雄", "abc " * 999]
    meter = XzMeter()
    for text in texts:
        meter.add(text)
    assert meter.bytes == sum(len(text.encode()) for text in texts)
    whole = "".join(text + "\n" for text in texts).encode()
    assert meter.finish() == 8 * len(lzma.compress(whole, preset=9))


def test_scores_are_json_whatever_happens():
    text = json.dumps(vars(scores(Totals(tokens=1, nats=5000.0, words=1, documents=1))), allow_nan=False)
    assert json.loads(text)["perplexity_per_word"] is None
