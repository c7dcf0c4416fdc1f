"""Config of ``hepta tokens build``."""

from pathlib import Path

from hepta.config import StageConfig, identity, input_path, operational


class TokensConfig(StageConfig):
    """Keys of ``hepta tokens build``."""

    input: Path = input_path(doc="corpus directory, or a .txt/.jsonl file or folder of them")
    tokenizer: Path = input_path(doc="directory holding tokenizer.json (hepta tokenizer train)")
    shards: int = identity(4, "shards per split and source; a document's shard is a hash of its id", ge=1, le=4096)
    holdout: float = identity(
        0.02, "plain files have no splits: val and test take this share each, by a hash of the id", ge=0, lt=0.5
    )
    workers: int | None = operational(None, "encoding threads (default: all cores)", ge=1)
