"""Small corpora made on the spot, and ways to look at what a build left."""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from hepta.config import build as make_config
from hepta.corpus.build import CorpusResult, build_corpus
from hepta.corpus.config import CorpusConfig

NO_RULES = {"rules": {"enabled": False}}


def write_jsonl(path: Path, rows: Iterable[dict[str, Any] | str]) -> Path:
    """Rows (a plain string becomes ``{"text": …}``) as JSON Lines."""
    lines = [json.dumps({"text": row} if isinstance(row, str) else row, ensure_ascii=False) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def table(corpus: Path, folder: str = "kept") -> pa.Table:
    """All parts of one folder of a corpus."""
    return pa.concat_tables([parquet.ParquetFile(part).read() for part in sorted((corpus / folder).glob("*.parquet"))])


def rows(corpus: Path, folder: str = "kept") -> list[dict[str, Any]]:
    """The same as dicts."""
    return table(corpus, folder).to_pylist()


def content(corpus: Path) -> dict[str, list[dict[str, Any]]]:
    """Everything a build wrote that must not depend on how the input lay: all but ``origin``."""
    return {
        folder: [{k: v for k, v in row.items() if k != "origin"} for row in rows(corpus, folder)]
        for folder in ("kept", "dropped", "signals", "edges")
    }


def words(seed: int, count: int) -> list[str]:
    """Random five-letter words."""
    chance = random.Random(seed)
    return ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(count)]


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., CorpusResult]:
    """``corpus(rows or paths, name="c", **keys)`` builds in this process; the result's ``output`` is its folder."""

    def run(given: Iterable[Any], name: str = "corpus", **keys: Any) -> CorpusResult:
        given = list(given)
        if given and all(isinstance(item, Path) for item in given):
            inputs = [str(item) for item in given]
        else:
            inputs = [str(write_jsonl(tmp_path / f"{name}.in" / "rows.jsonl", given))]
        values = {"input": inputs, "output": tmp_path / name, "workers": 1, **keys}
        return build_corpus(make_config(CorpusConfig, values))

    return run
