"""Fixtures every room shares: real public data (fetched once into the cache), a tokenizer, the command line."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
import torch

from hepta.catalog.fetch import dataset_path
from hepta.cli.app import main
from hepta.cores import POLICY, SPINS
from hepta.tokenizer.config import TokenizerConfig
from hepta.tokenizer.train import train_tokenizer
from shell_blocks import ROOT, Place


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def each_command_looks_for_itself() -> Iterator[None]:
    """How threads wait is decided anew by each command, not handed down from the first test's."""
    before = {name: os.environ.get(name) for name in (POLICY, SPINS)}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """``cli("corpus", "build", ...)`` runs hepta in this process and returns its ``Outcome``."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def wiki_en() -> Path:
    """JSON Lines of 10,033 English Wikipedia leads: id, text, title, description, topic."""
    return dataset_path("wiki-en")


@pytest.fixture(scope="session")
def sanguo_zh() -> Path:
    """JSON Lines of the 120 chapters of 三国演义: id, title, text."""
    return dataset_path("sanguo-zh")


@pytest.fixture(scope="session")
def c4_sample() -> Path:
    """JSON Lines of 300 English web pages: text."""
    return dataset_path("c4-sample")


@pytest.fixture(scope="session")
def alpaca_en() -> Path:
    """JSON Lines of 999 English instructions: instruction, input, output."""
    return dataset_path("alpaca-en")


@pytest.fixture(scope="session")
def alpaca_zh() -> Path:
    """JSON Lines of 1,000 Chinese instructions: instruction, input, output."""
    return dataset_path("alpaca-zh")


@pytest.fixture(scope="session")
def chat_en() -> Path:
    """JSON Lines of English exchanges: messages, topic."""
    return dataset_path("chat-en")


@pytest.fixture(scope="session")
def chat_zh() -> Path:
    """JSON Lines of Chinese exchanges: messages, topic."""
    return dataset_path("chat-zh")


@pytest.fixture(scope="session")
def pairs_zh_en() -> Path:
    """JSON Lines of 4,354 sentence pairs: id, zh, zh_hant, en, level, topic."""
    return dataset_path("pairs-zh-en")


@pytest.fixture(scope="session")
def tweets_ner_en() -> Path:
    """JSON Lines of 2,394 tweets: tokens, tags."""
    return dataset_path("tweets-ner-en")


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


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Where the shell blocks of the READMEs and the handbook are run, each command once, with tiny budgets."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    return Place(folder)
