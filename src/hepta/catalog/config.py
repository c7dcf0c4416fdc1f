"""Keys of ``hepta fetch``."""

from pathlib import Path

from hepta.config import StageConfig, budget, operational


class FetchConfig(StageConfig):
    """Which catalogue entries to bring, and where to."""

    names: list[str] = budget(doc="catalogue names (see hepta fetch --list), or hf:owner/name", min_length=1)
    output: Path = operational(Path("data"), "directory that gets one folder per name")
