"""The catalogue's real models and large data: what others compute from the same files, and an answer that is right."""

import json
import zipfile

import pytest
import torch

import hepta
from hepta.catalog.download import package_file
from hepta.catalog.entries import SMOLLM
from hepta.catalog.fetch import dataset_path
from hepta.catalog.models import model_path

pytestmark = pytest.mark.model
TEXTS = [
    "The capital of France is Paris; in 1789 it wasn't calm. Prices rose 12.5% to $1,234,567.",
    "今天天气怎么样？我们去公园散步吧。二〇二四年，GDP增长5.2%，共1234567人。「引用」——……",
    "def add(a: int, b: int) -> int:\n    \"\"\"Sum.\"\"\"\n\treturn a + b  # 3.14159\n\n\nprint(add(2, 40))\r\n",
    "naïve café 🙂👩‍👩‍👧 Привет, мир! मेरा नाम  \u00a0x",
]
CHAT = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "那中国呢？ And 2+2?"},
]


@pytest.fixture(scope="module")
def smollm():
    return model_path("smollm2-135m")


@pytest.fixture(scope="module")
def ids(smollm):
    tokenizer = hepta.load_tokenizer(smollm)
    return [torch.tensor([tokenizer.encode(text)]) for text in TEXTS]


def test_transformers_computes_the_same_logits(smollm, ids):
    from transformers import AutoModelForCausalLM

    ours, theirs = hepta.load_model(smollm), AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32).eval()
    with torch.no_grad():
        for sequence in ids:
            assert (ours(sequence) - theirs(sequence).logits).abs().max() < 1e-4


def test_the_weights_are_those_transformers_reads_in_the_gguf(smollm, tmp_path):
    """An independent reader of the packaged file: dequantisation, order of rows, names."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    with zipfile.ZipFile(package_file(SMOLLM)) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        (tmp_path / "model.gguf").write_bytes(archive.read(name))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).state_dict()
    ours = load_file(smollm / "model.safetensors")
    assert set(theirs) - set(ours) == {"lm_head.weight"}  # tied
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())


def test_ids_are_those_of_autotokenizer(smollm):
    from transformers import AutoTokenizer

    ours, theirs = hepta.load_tokenizer(smollm), AutoTokenizer.from_pretrained(smollm)
    for text in TEXTS:
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == expected
        assert ours.decode(expected) == theirs.decode(expected) == text
    for part, prompt in ((CHAT[:2], False), (CHAT[:1], True), (CHAT, True)):
        expected = theirs.apply_chat_template(part, add_generation_prompt=prompt, return_dict=False)
        assert ours.render(part, add_generation_prompt=prompt) == expected
    assert theirs.decode(expected).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")


def test_it_knows_the_capital_of_france(cli):
    done = cli("chat", "--model", "smollm2-135m", "--message", "What is the capital of France?", "--json")
    assert done.code == 0, done.err
    assert "Paris" in json.loads(done.out)["answer"]
    assert "warning" not in done.err


def test_minilm_finds_the_sentence_of_the_same_meaning():
    from transformers import AutoModel, AutoTokenizer

    place = model_path("minilm-l6")
    model, tokenizer = AutoModel.from_pretrained(place).eval(), AutoTokenizer.from_pretrained(place)
    batch = tokenizer(
        ["A cat is asleep on the sofa.", "A kitten naps on the couch.", "Shares fell in London."],
        padding=True, return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        mask = batch["attention_mask"][..., None]
        mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
    mean = torch.nn.functional.normalize(mean, dim=-1)
    assert mean[0] @ mean[1] > 0.6
    assert mean[0] @ mean[2] < 0.2


def test_our_bert_computes_what_transformers_does_with_minilm():
    """Hidden states of a padded batch to 1e-4, ids of both languages, and the file written back."""
    from transformers import AutoModel, AutoTokenizer

    place = model_path("minilm-l6")
    theirs, their_tokenizer = AutoModel.from_pretrained(place).eval(), AutoTokenizer.from_pretrained(place)
    ours, tokenizer = hepta.load_model(place), hepta.load_tokenizer(place)
    for text in TEXTS:
        assert tokenizer.encode(text) == their_tokenizer(text, add_special_tokens=False)["input_ids"]
    batch = their_tokenizer(TEXTS, padding=True, return_tensors="pt")
    real = batch["attention_mask"] == 1
    with torch.no_grad():
        expected = theirs(**batch).last_hidden_state
        found = ours.body(batch["input_ids"], segment_ids=1 - batch["attention_mask"])
    assert (found - expected)[real].abs().max() < 1e-4
    assert expected[real].abs().max() > 1


def test_reviews_are_as_packaged_duplicates_included():
    rows = [json.loads(line) for line in dataset_path("reviews-zh").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 35123
    texts = {label: {row["text"] for row in rows if row["label"] == label} for label in ("positive", "negative")}
    assert {label: len(found) for label, found in texts.items()} == {"positive": 8379, "negative": 9078}
    assert len(texts["positive"] & texts["negative"]) == 47
