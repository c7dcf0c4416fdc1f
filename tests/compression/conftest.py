"""Small real things to compress: tokens of English leads and Chinese chapters, a model trained on them a moment."""

import json
from itertools import islice
from pathlib import Path

import pytest
from little import KEYS, SHAPE

import hepta
from hepta.config import build
from hepta.model.decoder import Decoder
from hepta.model.load import save_model


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory, wiki_en: Path, sanguo_zh: Path) -> Path:
    """200 English leads and two beginnings of Chinese chapters."""
    file = tmp_path_factory.mktemp("compression") / "texts.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for source, rows in ((wiki_en, 200), (sanguo_zh, 2)):
            with source.open(encoding="utf-8") as lines:
                for line in islice(lines, rows):
                    text = json.loads(line)["text"][:2000]
                    out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return file


@pytest.fixture(scope="session")
def tokens(texts: Path, tokenizer_dir: Path) -> Path:
    """Their shards, a tenth held out."""
    place = texts.parent / "tokens"
    hepta.build_tokens(hepta.TokensConfig(input=texts, tokenizer=tokenizer_dir, output=place, holdout=0.1))
    return place


@pytest.fixture(scope="session")
def trained(tokens: Path, tokenizer_dir: Path) -> Path:
    """A run of forty steps: four layers of six heads that share keys by threes, 640 tokens."""
    fresh, run = tokens.parent / "fresh", tokens.parent / "trained"
    model = Decoder(SHAPE)
    model.init_weights(3)
    save_model(model, fresh, tokenizer_dir)
    keys = {**KEYS, "data": tokens, "model": str(fresh), "output": run, "max_steps": 40, "lr": 0.01}
    hepta.pretrain(build(hepta.PretrainConfig, keys))
    return run
