"""A small tokenizer trained once on real text of both languages, and its twin in transformers."""

import json
from pathlib import Path

import pytest

from hepta.tokenizer.config import TokenizerConfig
from hepta.tokenizer.load import Tokenizer, load_tokenizer
from hepta.tokenizer.train import train_tokenizer


def _head(path: Path, size: int) -> list[str]:
    texts, total = [], 0
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            total += len(texts[-1].encode())
            if total >= size:
                break
    return texts


@pytest.fixture(scope="session")
def english(wiki_en: Path) -> list[str]:
    """About 300 kB of English documents."""
    return _head(wiki_en, 300_000)


@pytest.fixture(scope="session")
def chinese(sanguo_zh: Path) -> list[str]:
    """About 300 kB of Chinese documents."""
    return _head(sanguo_zh, 300_000)


@pytest.fixture(scope="session")
def folder(english: list[str], chinese: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """en.jsonl and zh.jsonl."""
    place = tmp_path_factory.mktemp("text")
    for name, texts in (("en", english), ("zh", chinese)):
        rows = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (place / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    return place


@pytest.fixture(scope="session")
def tokenizer_dir(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,048 tokens trained on both languages."""
    output = tmp_path_factory.mktemp("tokenizer") / "tok"
    train_tokenizer(TokenizerConfig(input=folder, vocab_size=2048, output=output))
    return output


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    """The tokenizer as hepta loads it."""
    return load_tokenizer(tokenizer_dir)


@pytest.fixture(scope="session")
def auto(tokenizer_dir: Path):
    """The same directory as transformers loads it."""
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tokenizer_dir)
