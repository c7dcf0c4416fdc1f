"""Configs of ``hepta tokenizer train`` and ``hepta tokenizer report``."""

from pathlib import Path

from hepta.config import Config, StageConfig, identity, input_path, operational


class TokenizerConfig(StageConfig):
    """Keys of ``hepta tokenizer train``."""

    input: Path = input_path(doc="corpus directory (its train split is read), or a .txt/.jsonl file or folder of them")
    vocab_size: int = identity(8192, doc="tokens in all, the four special ones included", ge=300, le=1_000_000)
    han_run: int = identity(4, doc="longest run of Chinese characters that one token may span", ge=1, le=8)
    min_frequency: int = identity(2, doc="pairs rarer than this are never merged", ge=1)
    sample_bytes: int | None = identity(None, doc="train on about this many bytes, documents chosen by their id", ge=1)
    workers: int | None = operational(None, doc="threads of the trainer (default: all cores)", ge=1)


class TokenizerReportConfig(Config):
    """Keys of ``hepta tokenizer report``."""

    tokenizer: Path = input_path(doc="directory holding tokenizer.json")
    text: Path = input_path(doc="corpus directory, or a .txt/.jsonl file or folder of them, to measure on")
    split: str | None = identity("val", doc="split of a corpus to measure on: train, val, test; all for every one")
    reference: Path | None = input_path(None, doc="another tokenizer's directory to stand beside this one")
    max_bytes: int = identity(20_000_000, doc="stop reading text after this many bytes", ge=1)
