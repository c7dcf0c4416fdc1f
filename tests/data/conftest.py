"""Corpora, shards and a tokenizer made by hand, small enough to check by brute force."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import xxhash

from hepta.stage import write_json
from hepta.tokenizer.load import Tokenizer, load_tokenizer
from hepta.tokenizer.train import tokenizer_config, train_bpe

SENTENCES = [
    "The cat sat on the mat, and the dog sat on the log.", "I love programming; it is 12,345 times better than chess!",
    "今天天气很好，我们去公园散步吧。", "你喜欢什么？我喜欢读书和写字。", "user assistant system tool\n",
]  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 tokens learnt from five sentences."""
    directory = tmp_path_factory.mktemp("tokenizer")
    (directory / "tokenizer.json").write_text(train_bpe(SENTENCES * 3, 400, 4).to_str(), encoding="utf-8")
    write_json(directory / "tokenizer_config.json", tokenizer_config())
    return directory


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    """The same, loaded."""
    return load_tokenizer(tokenizer_dir)


def make_corpus(directory: Path, documents: Sequence[tuple[str, str, str, str]], parts: int = 1) -> Path:
    """A corpus directory of (text, source, lang, split), spread over ``parts`` files as they come."""
    (directory / "kept").mkdir(parents=True)
    rows = [(xxhash.xxh3_128_hexdigest(f"{d[1]}:{d[0]}".encode()), *d) for d in documents]
    for part in range(parts):
        names = ("doc_id", "text", "source", "lang", "split")
        columns = {name: [row[i] for row in rows[part::parts]] for i, name in enumerate(names)}
        table = pa.table(columns, schema=pa.schema([(name, pa.string()) for name in names]))
        parquet.write_table(table, directory / "kept" / f"part-{part:05d}.parquet")
    digest = xxhash.xxh3_64_hexdigest(repr(sorted(rows)).encode())
    write_json(directory / "manifest.json", {"format": 1, "verb": "corpus", "digest": digest, "facts": {}})
    return directory


def make_shards(directory: Path, sources: dict[str, Sequence[int]], shards: int = 2, dtype: str = "<u2") -> Path:
    """A tokens directory whose documents have the lengths given; ids count up, so each token can be told apart."""
    rows, total = [], 0
    for source, lengths in sources.items():
        folder = directory / "train" / f"source={source}"
        folder.mkdir(parents=True)
        for shard in range(shards):
            ids, ends = [], []
            for number, length in enumerate(lengths):
                if number % shards == shard:
                    rows.append(
                        (
                            f"{source}-{number}",
                            source,
                            "zh" if source.startswith("zh") else "en",
                            "train",
                            shard,
                            len(ids),
                            length,
                            length,
                        )
                    )
                    ids += range(total, total + length)
                    total += length
                    ends.append(len(ids))
            np.array(ids, dtype=dtype).tofile(folder / f"shard-{shard:05d}.bin")
            np.array(ends, dtype="<u8").tofile(folder / f"shard-{shard:05d}.idx")
    names = ("doc_id", "source", "lang", "split", "shard", "start", "tokens", "bytes")
    parquet.write_table(
        pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)}), directory / "docs.parquet"
    )
    facts = {"dtype": dtype, "document_policy": {"eos_id": 0}, "splits": {"train": {"tokens": total}}}
    write_json(directory / "manifest.json", {"format": 1, "verb": "tokens", "digest": repr(sources), "facts": facts})
    return directory


@pytest.fixture(scope="session")
def corpus_maker():
    """``make_corpus``."""
    return make_corpus


@pytest.fixture(scope="session")
def shard_maker():
    """``make_shards``."""
    return make_shards


@pytest.fixture
def write_rows(tmp_path: Path):
    """``write_rows(rows, name)`` writes JSON Lines; a string row is written as it is."""

    def write(rows, name: str = "rows.jsonl") -> Path:
        lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
