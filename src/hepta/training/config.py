"""x"""
from pathlib import Path
from hepta.config import *
class PretrainConfig(StageConfig):
    data: Path = input_path(doc="token shards")
    model: str = input_path("nano", doc="preset or dir")
    max_steps: int = budget(100, doc="steps")
