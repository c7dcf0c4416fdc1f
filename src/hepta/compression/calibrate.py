"""Calibration: real text through a model, to learn what its linear maps read."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hepta.catalog.documents import iter_documents
from hepta.config import HeptaError
from hepta.console import warn
from hepta.data.shards import open_streams
from hepta.model.layers import Linear
from hepta.stage import read_manifest
from hepta.tokenizer.load import Tokenizer

BATCH_TOKENS = 4096  # of one forward pass


@dataclass
class InputMoments:
    """What one linear map read, summed over all positions.

    Attributes:
        rows: positions seen.
        squares: Σ x² of each input channel (K,), float32.
        products: Σ x xᵀ (K, K), float32; None where nobody asked for it. Maps that read the same tensor share it.
    """

    rows: int
    squares: Tensor
    products: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Add inputs (…, K)."""
        flat = x.detach().flatten(0, -2).float()
        self.rows += len(flat)
        self.squares += flat.square().sum(0)
        if self.products is not None:
            self.products.addmm_(flat.T, flat)


def calibration_batches(data: Path, tokenizer: Tokenizer, sequences: int, length: int) -> list[Tensor]:
    """Sequences of text to calibrate with, cut from documents laid end to end, each between its bos and its eos.

    Args:
        data: a corpus directory or token shards (their train split), or .txt and .jsonl files.
        tokenizer: the model's.
        sequences: how many are wanted.
        length: tokens of each.

    Returns:
        ids (B, T), at most ``BATCH_TOKENS`` tokens in each batch. There may be fewer sequences than wanted; a
        warning then says how many.

    Raises:
        HeptaError: nothing there, shards of another tokenizer, or not even one sequence.
    """
    manifest = read_manifest(data) if data.is_dir() else None
    if manifest is not None and manifest.get("verb") == "tokens":
        ids = _from_shards(data, tokenizer, sequences, length)
    else:
        ids = _from_text(data, tokenizer, sequences * length)
    found = min(sequences, len(ids) // length)
    if not found:
        raise HeptaError(f"{data}: holds {len(ids)} tokens, calibration needs at least one sequence of {length}")
    if found < sequences:
        warn(f"{data}: gives {found} sequences of {length} tokens to calibrate with, {sequences} were wanted")
    table = torch.from_numpy(ids[: found * length].astype(np.int64)).view(found, length)
    return list(table.split(max(1, BATCH_TOKENS // length)))


def _from_text(data: Path, tokenizer: Tokenizer, wanted: int) -> np.ndarray:
    """The first documents of a text (a corpus lists them in the order of a hash), at least ``wanted`` tokens if any."""
    parts: list[np.ndarray] = []
    total = 0
    for document in iter_documents(data, "train"):
        ids = tokenizer.encode_array(document.text).astype(np.int64)
        parts.append(np.concatenate([[tokenizer.bos_id], ids, [tokenizer.eos_id]]))
        total += len(parts[-1])
        if total >= wanted:
            break
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _from_shards(data: Path, tokenizer: Tokenizer, sequences: int, length: int) -> np.ndarray:
    """Windows at even distances over every source, as many of each as its share of the tokens."""
    known = Tokenizer(data / "tokenizer").sha256
    if known != tokenizer.sha256:
        raise HeptaError(f"{data}: shards of another tokenizer than the model's; calibrate with text instead")
    streams = open_streams(data, "train")
    total = sum(stream.total for stream in streams)
    parts: list[np.ndarray] = []
    for stream in streams:
        fits = stream.total // length
        wanted = min(fits, max(1, round(sequences * stream.total / total)))
        starts = np.linspace(0, fits - 1, wanted).round().astype(int) if wanted else []
        parts += [stream.read(int(start) * length, int(start + 1) * length) for start in starts]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


@contextmanager
def watching(layers: dict[str, nn.Module], products: bool = False) -> Iterator[dict[str, InputMoments]]:
    """Sum what the named layers read while the block runs; layers never called have no entry."""
    moments: dict[str, InputMoments] = {}
    seen: list[Any] = [None, None]  # the last input, and who summed it: q, k and v read one tensor
    shared: dict[str, str] = {}

    def hook(name: str, x: Tensor) -> None:
        if x is seen[0] and shared.setdefault(name, seen[1]) == seen[1]:
            moments[name] = moments[seen[1]]
            return
        if name not in moments:
            K = x.shape[-1]
            sums = torch.zeros(K, device=x.device)
            moments[name] = InputMoments(0, sums, torch.zeros(K, K, device=x.device) if products else None)
        moments[name].add(x)
        seen[:] = x, name

    def watch(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        return lambda _, inputs: hook(name, inputs[0])

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def linear_inputs(model: nn.Module, batches: Sequence[Tensor] | Iterable[Tensor]) -> dict[str, InputMoments]:
    """What every linear map of a model's body reads on some text; the model is left as it was.

    Args:
        model: a ``Network`` of one text (a classifier: its ``network``); not a translator.
        batches: ids (B, T).

    Returns:
        sums of squares by the name of the map.

    Raises:
        HeptaError: a translator, which reads pairs.
    """
    refuse_pairs(model)
    training = model.training
    model.eval()
    layers: dict[str, nn.Module] = {n: m for n, m in model.named_modules() if isinstance(m, Linear)}
    with watching(layers) as moments:
        for ids in batches:
            model.body(ids)  # pyright: ignore[reportCallIssue]
    model.train(training)
    return moments


def refuse_pairs(model: Any) -> None:
    """Refuse a model that reads two texts.

    Raises:
        HeptaError: a translator.
    """
    if model.config.kind == "translation":
        raise HeptaError("calibration reads single texts, a translator reads pairs; leave --calibrate out")
