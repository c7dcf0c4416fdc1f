"""LoRA adapters."""

from pathlib import Path

import torch

from hepta.model.decoder import Decoder


def load_adapter(directory: Path, dtype: torch.dtype, device: torch.device | str) -> Decoder:
    """x"""
    raise NotImplementedError
