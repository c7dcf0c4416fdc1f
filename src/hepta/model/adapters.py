"""LoRA: small trained matrices beside frozen ones, and PEFT adapter directories in and out.

``y = x Wᵀ + s · (x Aᵀ) Bᵀ`` with A (rank, in), B (out, rank) and s = α / rank, or α / √rank (rsLoRA).
B starts at zero, so step 0 is exactly the base (trap S11).
"""

import functools
import hashlib
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from hepta.config import HeptaError, nearest
from hepta.model.layers import Linear
from hepta.model.load import ADAPTER, load_model, read_hepta_json, weight_files, write_safetensors
from hepta.model.network import Network
from hepta.model.quantized import QuantizedLinear
from hepta.stage import disk_errors, read_json, sha256_file, write_json
from hepta.tokenizer.contract import copy_tokenizer, read_specials

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's name for the wrapped model
HEAD_MODULE = re.compile(r"score|classifier|pooler")  # the modules of a classifier that PEFT keeps whole


class Adapted(nn.Module):
    """A linear map that learns nothing, with ``lora_A`` and ``lora_B`` in float32 beside it."""

    in_features: int
    out_features: int
    lora_A: nn.Parameter
    lora_B: nn.Parameter

    def attach(self, rank: int, alpha: float, dropout: float, root: bool, device: torch.device) -> None:
        """Put the two matrices, of zeros, beside the map."""
        self.rank, self.alpha, self.dropout, self.root = rank, alpha, dropout, root
        self.lora_A = nn.Parameter(torch.zeros(rank, self.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, dtype=torch.float32, device=device))

    @property
    def scaling(self) -> float:
        """α / rank, or α / √rank."""
        return self.alpha / (math.sqrt(self.rank) if self.root else self.rank)

    def learned(self, x: Tensor) -> Tensor:
        """What the two matrices add to the map of x (…, in): (…, out)."""
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A.to(x.dtype))
        return F.linear(low, self.lora_B.to(x.dtype)) * self.scaling

    def merged(self) -> Linear:
        """A plain Linear with the product added to the weight."""
        raise NotImplementedError


class LoRALinear(Adapted, Linear):
    """A Linear whose ``weight`` keeps its name, adapted."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float, root: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.attach(rank, alpha, dropout, root, base.weight.device)

    def forward(self, input: Tensor) -> Tensor:
        return Linear.forward(self, input) + self.learned(input)

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain Linear with the product added to the weight, summed in float32."""
        plain = Linear(1, 1, bias=False, device="meta")
        plain.in_features, plain.out_features, plain.bias = self.in_features, self.out_features, self.bias
        total = self.weight.float() + (self.lora_B @ self.lora_A) * self.scaling
        plain.weight = nn.Parameter(total.to(self.weight.dtype))
        return plain


class LoRAIntegers(Adapted):
    """A map that holds integers, adapted (QLoRA, Dettmers et al. 2023); gradients pass through the integers."""

    def __init__(self, base: QuantizedLinear, rank: int, alpha: float, dropout: float, root: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.base = base.in_features, base.out_features, base
        self.attach(rank, alpha, dropout, root, base.matrix.device)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.learned(x)

    def merged(self) -> Linear:
        """Never: integers cannot take a product up without being rounded again.

        Raises:
            HeptaError: always.
        """
        told = "rounding again would undo them; use both as they are, or train on the model before it was rounded"
        raise HeptaError(f"adapters on integers are not folded in: {told}")


def adapt(base: nn.Module, rank: int, alpha: float, dropout: float, root: bool) -> Adapted:
    """The map ``base`` with adapters of zeros beside it."""
    kind: Any = LoRAIntegers if isinstance(base, QuantizedLinear) else LoRALinear
    return kind(base, rank, alpha, dropout, root)


def lora_layers(model: Network) -> dict[str, Adapted]:
    """The adapted layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


def _replace(model: Network, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


def attach_lora(
    model: Network,
    rank: int,
    alpha: float,
    targets: Sequence[str] | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    root_scaling: bool = False,
) -> list[str]:
    """Put adapters on the named projections of every layer and freeze everything else.

    Args:
        model: changed in place.
        rank: width of the adapters.
        alpha: strength; the product is scaled by alpha / rank.
        targets: ends of names, for example ``["q_proj", "v_proj"]``; None: all the model's projections.
        dropout: on the adapters' input while training.
        seed: A is drawn from a stream keyed by (seed, name).
        root_scaling: scale by alpha / √rank instead (rsLoRA).

    Returns:
        names of the adapted layers.

    Raises:
        HeptaError: rank below 1, an unknown target, or adapters are there already.
    """
    if rank < 1:
        raise HeptaError(f"lora rank {rank}: must be at least 1")
    if lora_layers(model):
        raise HeptaError("the model has adapters already; merge them first (merge_adapters)")
    chosen = model.lora_targets if targets is None else tuple(targets)
    for target in chosen:
        if target not in model.lora_targets:
            raise HeptaError(f"lora target {target!r} is unknown; {nearest(target, model.lora_targets)}")
    if not chosen:
        raise HeptaError(f"a {type(model).__name__} has no projections that LoRA adapts; use method=full")
    model.requires_grad_(False)
    ends = tuple(f".{target}" for target in chosen)
    inside = {id(module) for block in model.blocks for module in block.modules()}
    names = [name for name, module in model.named_modules() if name.endswith(ends) and id(module) in inside]
    for name in names:
        layer = adapt(model.get_submodule(name), rank, alpha, dropout, root_scaling)
        generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(f"{seed}/{name}".encode()) >> 1)
        bound = 1 / math.sqrt(layer.in_features)  # what kaiming_uniform_(a=√5) amounts to, as in PEFT
        with torch.no_grad():
            layer.lora_A.copy_((torch.rand(layer.lora_A.shape, generator=generator) * 2 - 1) * bound)
        _replace(model, name, layer)
    return names


def adapter_parameters(model: Network) -> dict[str, nn.Parameter]:
    """The trainable adapter matrices by name."""
    found = {}
    for name, layer in lora_layers(model).items():
        found[f"{name}.lora_A"], found[f"{name}.lora_B"] = layer.lora_A, layer.lora_B
    return found


def merge_adapters(model: Network) -> Network:
    """Fold every adapter into its weight, in place, and unfreeze the model."""
    for name, layer in lora_layers(model).items():
        _replace(model, name, layer.merged())
    return model.requires_grad_(True)


@functools.cache
def _sha256(file: Path, size: int, changed: int) -> str:
    """A weight file's sha256, asked for at every checkpoint and read once."""
    return sha256_file(file)


def weights_sha256(directory: Path) -> str:
    """One sha256 for all weight files of a model directory: of the files' own, in order of name."""
    files = [(file.resolve(), file.stat()) for file in sorted(weight_files(directory))]
    digests = [_sha256(file, known.st_size, known.st_mtime_ns) for file, known in files]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def save_adapter(
    model: Network,
    directory: Path | str,
    base_dir: Path | str,
    provenance: dict[str, Any] | None = None,
    head: dict[str, Tensor] | None = None,
) -> None:
    """Write a PEFT adapter directory, with the base's tokenizer beside it.

    Args:
        model: with adapters attached.
        directory: made if needed.
        base_dir: model directory the adapters were trained on; named in ``adapter_config.json``, and with
            its sha256 in ``hepta.json``.
        provenance: kept in ``hepta.json``.
        head: a classifier's own trained tensors by their names on disk, kept beside the adapters.

    Raises:
        HeptaError: the model has no adapters.
        MachineError: the disk is full.
    """
    layers, target, base = lora_layers(model), Path(directory), Path(base_dir)
    if not layers:
        raise HeptaError("the model has no adapters to save; attach_lora comes first")
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    first = next(iter(layers.values()))
    tensors = {
        f"{PREFIX}{name}.weight": parameter.detach()
        for name, parameter in adapter_parameters(model).items()
    }
    tensors |= {PREFIX + name: tensor.detach() for name, tensor in (head or {}).items()}
    write_safetensors(tensors, target / ADAPTER_WEIGHTS)
    copy_tokenizer(base, target)
    template = read_specials(base).contract() if (base / "tokenizer.json").is_file() else {}
    where = {"path": os.path.relpath(base.resolve(), target.resolve()), "weights_sha256": weights_sha256(base)}
    hepta = {"format": 1, "base": where, "provenance": provenance or {}, "template": template}
    write_json(target / "hepta.json", hepta)
    write_json(
        target / ADAPTER,
        {
            "peft_type": "LORA", "task_type": "SEQ_CLS" if head else "CAUSAL_LM",
            "base_model_name_or_path": str(base.resolve()),
            "modules_to_save": sorted({HEAD_MODULE.findall(name)[0] for name in head}) if head else None,
            "r": first.rank, "lora_alpha": first.alpha, "lora_dropout": first.dropout, "use_rslora": first.root,
            "target_modules": _targets(model, layers), "bias": "none", "fan_in_fan_out": model.transposed,
            "inference_mode": True, "init_lora_weights": True,
        },
    )  # fmt: skip


def _targets(model: Network, layers: dict[str, Adapted]) -> list[str]:
    """The ends of names under which the adapted layers are found again."""
    return sorted({target for target in model.lora_targets for name in layers if name.endswith(f".{target}")})


def find_base(directory: Path, config: dict[str, Any]) -> Path:
    """The base of an adapter: beside it as hepta.json says, else where PEFT's file says."""
    named = str(config.get("base_model_name_or_path") or "")
    known = read_hepta_json(directory).get("base", {})
    places = [directory / known["path"]] if "path" in known else []
    for place in [*places, Path(named)]:
        if (place / "config.json").is_file():
            if known.get("weights_sha256") not in (None, weights_sha256(place)):
                raise HeptaError(f"{place}: not the base {directory} was trained on (weights differ); restore that one")
            return place
    raise HeptaError(f"{directory}: its base model {named!r} is not there; put it there or fix base_model_name_or_path")


def read_adapter(directory: Path) -> dict[str, Tensor]:
    """Stored matrices by our names (``….q_proj.lora_A``)."""
    file = directory / ADAPTER_WEIGHTS
    if not file.is_file():
        raise HeptaError(f"{directory}: no {ADAPTER_WEIGHTS}; the adapter directory is not complete")
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise HeptaError(f"{file}: not readable as safetensors ({error}); copy it again") from None
    return {name.removeprefix(PREFIX).removesuffix(".weight"): tensor for name, tensor in tensors.items()}


def load_adapter(
    directory: Path | str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Network:
    """Load a PEFT directory: its base in ``dtype`` (as ``load_model`` takes it), its adapters in float32, attached.

    Raises:
        HeptaError: no base, another base, another kind of adapter, or tensors that do not fit.
    """
    directory = Path(directory)
    config = read_json(directory / ADAPTER)
    if config.get("task_type") == "SEQ_CLS":
        raise HeptaError(f"{directory}: adapts a classifier, which does not continue text; use hepta predict")
    if config.get("modules_to_save"):
        raise HeptaError(f"{directory / ADAPTER}: modules_to_save is not supported; plain LoRA is")
    model = load_model(find_base(directory, config), dtype, device)
    attach_stored(model, directory, config, read_adapter(directory))
    return model.eval()


def attach_stored(model: Network, directory: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put stored adapters on a model, in place, and freeze everything else.

    Args:
        model: the base.
        directory: of the adapter, for messages.
        config: its ``adapter_config.json``.
        tensors: matrices by name (``….q_proj.lora_A``).

    Raises:
        HeptaError: another kind of adapter, or tensors that do not fit.
    """
    unsupported = [k for k in ("use_dora", "rank_pattern", "alpha_pattern") if config.get(k)]
    if config.get("peft_type") != "LORA" or unsupported or config.get("bias", "none") != "none":
        what = ", ".join(unsupported) or f"peft_type {config.get('peft_type')!r}, bias {config.get('bias')!r}"
        raise HeptaError(f"{directory / ADAPTER}: {what} is not supported; plain LoRA is")
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | QuantizedLinear)}
    names = sorted({name.rpartition(".")[0] for name in tensors})
    model.requires_grad_(False)
    for name in names:
        if name not in linears:
            raise HeptaError(f"{directory}: adapts {name}, which the base model does not have")
        root, dropout = bool(config.get("use_rslora")), float(config.get("lora_dropout", 0.0))
        layer = adapt(model.get_submodule(name), config["r"], config["lora_alpha"], dropout, root)
        for key, parameter in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            stored = tensors.get(f"{name}.{key}")
            if stored is None or stored.shape != parameter.shape:
                found = "nothing" if stored is None else tuple(stored.shape)
                raise HeptaError(f"{directory}: {name}.{key} should be {tuple(parameter.shape)}, found {found}")
            with torch.no_grad():
                parameter.copy_(stored)
        _replace(model, name, layer)
