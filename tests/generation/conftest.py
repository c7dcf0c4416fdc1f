"""A small real tokenizer, trained once; one thread."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from hepta.tokenizer.config import TokenizerConfig
from hepta.tokenizer.train import train_tokenizer


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are faster on one thread, and threads of neighbours cannot slow them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, wiki_en: Path, sanguo_zh: Path) -> Path:
    """640 tokens, trained on 200 English leads and one Chinese chapter."""
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = folder / "texts.jsonl"
    with texts.open("w", encoding="utf-8") as out:
        for source, rows in ((wiki_en, 200), (sanguo_zh, 1)):
            with source.open(encoding="utf-8") as lines:
                for line in islice(lines, rows):
                    out.write(json.dumps({"text": json.loads(line)["text"]}, ensure_ascii=False) + "\n")
    train_tokenizer(TokenizerConfig(input=str(texts), output=folder / "out", vocab_size=640))
    return folder / "out"
