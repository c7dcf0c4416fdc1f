"""Model directories in and out: exactly Hugging Face's layout, plus ``hepta.json``.

Weights are safetensors only: what could run code when read is neither read nor written.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hepta.catalog.models import model_names, model_path
from hepta.config import HeptaError
from hepta.console import say
from hepta.model.families import PRESETS, from_hf, network_class, preset, to_hf
from hepta.model.fresh import check_fresh
from hepta.model.marian import generation_keys
from hepta.model.network import Network
from hepta.model.quantized import settle, swap_layers
from hepta.model.scheme import KEY, read_scheme
from hepta.model.shape import Shape
from hepta.model.whole import follows, stream_safetensors, take_part
from hepta.stage import disk_errors, fsync_directory, read_json, write_json
from hepta.tokenizer.contract import copy_tokenizer, read_specials

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
SHARD_BYTES = 5_000_000_000
BUFFERS = (  # constants and copies
    ".inv_freq", ".bias", ".masked_bias", ".position_ids", ".decoder.weight", ".embed_positions.weight",
    ".embed_tokens.weight", "final_logits_bias", ".decoder.weight_scale", ".embed_tokens.weight_scale",
)  # fmt: skip
TIED = ("lm_head.weight", "lm_head.weight_scale")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_model(path: Path | str) -> Path:
    """The model or adapter directory meant by ``path``: itself, a run directory's ``model/``, or a model by name.

    Raises:
        HeptaError: nothing there and no name of the catalogue, or neither a model, an adapter nor a run.
        MachineError: a named model could not be downloaded.
    """
    directory = Path(path)
    if not directory.exists():
        named = model_path(str(path))
        if named is None:
            known = f"a preset ({', '.join(PRESETS)}), a catalogue model ({', '.join(model_names())}) or hf:owner/name"
            raise HeptaError(f"model {str(path)!r}: no such directory, and not {known}")
        directory = named
    if not directory.is_dir():
        raise HeptaError(f"{directory}: is a file; a model is a directory with config.json and safetensors")
    for place in (directory, directory / "model"):
        if (place / "config.json").is_file() or (place / ADAPTER).is_file():
            return place
    if (directory / "checkpoints").is_dir() or (directory / ".stage.json").is_file():
        raise HeptaError(f"{directory}: an unfinished run; repeat its command, or name one of its checkpoints")
    raise HeptaError(f"{directory}: no config.json, so not a model directory")


def read_config(directory: Path) -> Shape:
    """The shape of the model in a (resolved) model directory.

    Raises:
        HeptaError: no config.json, broken JSON, or an architecture not supported.
    """
    file = directory / "config.json"
    if not file.is_file():
        raise HeptaError(f"{directory}: no config.json, so not a model directory")
    value = read_json(file)
    if not isinstance(value, dict):
        raise HeptaError(f"{file}: expected a JSON object, found a {type(value).__name__}")
    return from_hf(value, str(file))


def weight_files(directory: Path) -> dict[Path, list[str] | None]:
    """The safetensors files of a model, each with the tensor names the index expects in it (None: any)."""
    if (directory / INDEX).is_file():
        files: dict[Path, list[str] | None] = {}
        for name, file in read_json(directory / INDEX).get("weight_map", {}).items():
            names = files.setdefault(directory / Path(file).name, [])
            assert names is not None
            names.append(name)
        for file in files:
            if not file.is_file():
                raise HeptaError(f"{directory}: {INDEX} names {file.name}, which is missing; copy it there")
        return files
    if (directory / WEIGHTS).is_file():
        return {directory / WEIGHTS: None}
    if others := sorted(f.name for f in directory.glob("*.bin")):
        raise HeptaError(f"{directory}: weights only as {others[0]}, which may run code and is never read")
    raise HeptaError(f"{directory}: no weights ({WEIGHTS} or {INDEX}); the directory is not complete")


def read_tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Each stored tensor by name, mapped alone: what was read before does not stay in memory.

    Raises:
        HeptaError: a file is missing, cut short, or not safetensors.
    """
    for file, names in weight_files(directory).items():
        try:
            with safe_open(file, framework="pt") as stored:
                present = set(stored.keys())
            for name in names if names is not None else sorted(present):
                if name not in present:
                    raise HeptaError(f"{file}: lacks {name}, which {INDEX} says is here")
                with safe_open(file, framework="pt") as stored:  # its own mapping, so that pages read are let go
                    yield name, stored.get_tensor(name)
        except SafetensorError as error:
            raise HeptaError(f"{file}: not readable as safetensors ({error}); copy it again") from None


def stored_names(directory: Path) -> list[str]:
    """Names of all stored tensors; their data are not read."""
    names: list[str] = []
    for file in weight_files(directory):
        try:
            with safe_open(file, framework="pt") as stored:
                names += stored.keys()
        except SafetensorError as error:
            raise HeptaError(f"{file}: not readable as safetensors ({error}); copy it again") from None
    return sorted(names)


def assign(
    model: Network,
    directory: Path,
    dtype: torch.dtype | None,
    device: torch.device | str,
    matrices: torch.dtype | None = None,
) -> None:
    """Fill a model on the meta device, tensor by tensor, and say in one line what does not fit.

    Where the directory holds integers, the layers that take them are put into the model first.
    """
    scheme = read_scheme(read_json(directory / "config.json"), str(directory / "config.json"))
    if scheme is not None:
        if torch.device(device).type != "cpu":
            raise HeptaError(f"{directory}: quantised models run on the CPU; use device=cpu or the original model")
        with torch.device("meta"):
            swap_layers(model, stored_names(directory), scheme)
    if dtype is None:
        half = scheme is not None and torch.cpu._is_avx512_bf16_supported()
        dtype = torch.bfloat16 if half else torch.float32
    expected = dict(model.named_parameters())
    unexpected: list[str] = []
    left_out: list[str] = []
    for stored_name, stored in read_tensors(directory):
        found = model.from_disk(stored_name, stored)
        if found is None:
            left_out.append(stored_name)
            continue
        name, tensor = found
        if name not in expected:
            if not (name in TIED and model.config.tied):  # a copy of the embedding
                unexpected.append(stored_name)
            continue
        wanted = tuple(expected[name].shape)
        if tuple(tensor.shape) != wanted:
            raise HeptaError(f"{directory}: {name} has shape {tuple(tensor.shape)}, config.json says {wanted}")
        owner = model.get_submodule(name.rpartition(".")[0])
        kept = matrices if matrices is not None and tensor.ndim > 1 else dtype
        kept = kept if tensor.is_floating_point() else tensor.dtype  # counts of n-grams are never rounded
        value = tensor.to(device=device, dtype=kept, copy=True).contiguous()  # so that the file can be unmapped
        owner.register_parameter(name.rpartition(".")[2], torch.nn.Parameter(value, value.is_floating_point()))
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    for problem, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise HeptaError(f"{directory}: weights do not fit config.json: {problem} {names[0]}{more}")
    if other := [name for name in left_out if not name.endswith(BUFFERS)]:
        say(f"{directory}: {len(other)} tensors of another task are left out ({other[0]} …)")
    if scheme is not None:
        settle(model)


def load_model(
    path: Path | str,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    matrices: torch.dtype | None = None,
) -> Any:
    """Load a model from a model directory, a run directory, or a PEFT adapter directory (base + LoRA).

    Args:
        path: the directory.
        dtype: dtype of the weights in memory, and of the products; of a quantised model, of the scales. None: float32,
            of a quantised model bfloat16 where the CPU multiplies it.
        device: where they go.
        matrices: dtype of what has two dimensions, where it is another: a frozen base has its matrices in the dtype of
            the products, which rounds nothing that they would not, and its norms in float32.

    Returns:
        a ``Network`` of the directory's family in evaluation mode, ``forward(input_ids (B, T)) -> logits (B, T, V)``.

    Raises:
        HeptaError: no such directory, no weights, another architecture, tensors that do not fit.
    """
    directory = resolve_model(path)
    if (directory / ADAPTER).is_file():
        from hepta.model.adapters import load_adapter  # adapters build on this module

        return load_adapter(directory, dtype, device)
    config = read_config(directory)
    with torch.device("meta"):
        model = network_class(config)(config)
    assign(model, directory, dtype, device, matrices)
    return model.eval()


def refuse_translator(directory: Path) -> None:
    """For what reads and continues one text: say in one line that a translator does not.

    Raises:
        HeptaError: the (resolved) directory holds a translator.
    """
    if (directory / "config.json").is_file() and read_json(directory / "config.json").get("model_type") == "marian":
        raise HeptaError(f"{directory}: is a translator, which reads one text and writes another; use hepta predict")


def refuse_quantized(directory: Path) -> None:
    """For what trains or makes smaller: say in one line that integers do not learn, and which model does.

    Raises:
        HeptaError: the (resolved) directory holds integers.
    """
    file = directory / "config.json"
    if file.is_file() and read_json(file).get(KEY):
        known = (read_hepta_json(directory).get("provenance") or {}).get("quantized", {}).get("original")
        raise HeptaError(f"{directory}: is quantised, and integers do not learn; start from {known or 'its original'}")


def draw_weights(model: Network, seed: int) -> None:
    """Fill a model with fresh weights, and check that they look so."""
    model.init_weights(seed)
    check_fresh(model)


def build_model(
    preset_or_dir: Path | str, vocab_size: int | None = None, seed: int | None = 0, dtype: torch.dtype = torch.float32
) -> Any:
    """A model to start training from: a preset with fresh weights, or a directory's weights.

    Args:
        preset_or_dir: a name in ``PRESETS``, or a model, run or adapter directory.
        vocab_size: padded vocabulary (multiple of 64) of the tokenizer that goes with it.
        seed: of the fresh weights; None leaves a preset's weights for its caller to fill.
        dtype: of the weights.

    Raises:
        HeptaError: unknown preset and no such directory, or the directory's vocabulary is another.
    """
    if str(preset_or_dir) in PRESETS:
        shape = preset(str(preset_or_dir), vocab_size)
        with torch.device("meta"):  # nothing is filled twice, nor held in two dtypes
            model = network_class(shape)(shape)
        model = model.to(dtype).to_empty(device="cpu")
        if seed is not None:
            draw_weights(model, seed)
        return model
    refuse_quantized(resolve_model(preset_or_dir))
    model = load_model(preset_or_dir, dtype)
    if vocab_size is not None and model.config.vocab_size < vocab_size:
        raise HeptaError(
            f"{preset_or_dir}: its vocabulary has {model.config.vocab_size} rows, the tokenizer needs {vocab_size}; "
            "use the tokenizer that belongs to the model"
        )
    return model


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A temporary name for ``file``, fsynced and renamed when the block succeeds."""
    temporary = file.with_name(f".{file.name}.tmp-{os.getpid()}")
    with disk_errors(file):
        try:
            yield temporary
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)


def write_safetensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write one safetensors file whole or not at all; of several processes the first does, the others only help.

    Raises:
        MachineError: the disk is full or read-only.
    """
    if follows():
        take_part(tensors)
        return
    with _replacing(file) as temporary:
        stream_safetensors(tensors, temporary)


def save_weights(tensors: dict[str, Tensor], directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as ``model.safetensors``, or in shards of at most ``shard_bytes`` with an index."""
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= size
    names = [WEIGHTS]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(shard, directory / name)
    if len(shards) > 1:
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    for stale in [*directory.glob("model-*-of-*.safetensors"), directory / WEIGHTS, directory / INDEX]:
        if stale.name not in names and not (stale.name == INDEX and len(shards) > 1):
            stale.unlink(missing_ok=True)


def save_model(
    model: Network,
    directory: Path | str,
    tokenizer: Path | str | None = None,
    dtype: torch.dtype | None = None,
    provenance: dict[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model directory that hepta and transformers both open.

    Args:
        model: its plain weights are written (merge adapters first, or use ``save_adapter``).
        directory: made if needed.
        tokenizer: directory whose tokenizer files are copied beside the weights; its special ids become
            the model's bos, eos and pad.
        dtype: of the tensors on disk; None keeps the weights' own.
        provenance: what made this model (data, steps, versions …), kept in ``hepta.json``.
        shard_bytes: largest safetensors file.

    Raises:
        HeptaError: the tokenizer has more ids than the model has rows.
        MachineError: the disk is full.
    """
    target = Path(directory)
    if any(name.endswith(".lora_A") for name, _ in model.named_parameters()):
        raise HeptaError(f"{target}: the model has adapters; merge them first, or save the adapters alone")
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    config = model.config
    contract: dict[str, Any] = {}
    if tokenizer is not None:
        contract = read_specials(Path(tokenizer)).contract()
        if contract["size"] > config.vocab_size:
            raise HeptaError(
                f"{tokenizer}: has {contract['size']} ids, the model only {config.vocab_size} rows; "
                "use the tokenizer that belongs to the model"
            )
        config = config.replace(
            bos_token_id=contract["bos_id"], eos_token_id=contract["eos_id"], pad_token_id=contract["pad_id"]
        )
        copy_tokenizer(Path(tokenizer), target)
    tensors = {}
    for name, parameter in model.named_parameters():
        stored_name, tensor = model.to_disk(name, parameter.detach())
        kept = dtype or parameter.dtype if parameter.is_floating_point() else parameter.dtype
        tensors[stored_name] = tensor.to(kept)  # made whole, one at a time, as they are written
    saved = dtype or model.output_weight.dtype
    save_weights(tensors, target, shard_bytes)
    write_json(target / "config.json", to_hf(config, str(saved).removeprefix("torch.")))
    stop = contract.get("stop_ids") or config.eos_token_id
    generation = {"bos_token_id": config.bos_token_id, "eos_token_id": stop, "pad_token_id": config.pad_token_id}
    if config.kind == "translation":
        generation = generation_keys(config, contract.get("size", config.vocab_size))
    write_json(target / "generation_config.json", {"do_sample": False, **generation})
    write_json(
        target / "hepta.json",
        {"format": 1, "parameters": config.num_parameters, "provenance": provenance or {}, "template": contract},
    )
    fsync_directory(target)


def read_hepta_json(directory: Path) -> dict[str, Any]:
    """``hepta.json`` of a model directory, empty where there is none (a foreign model)."""
    file = directory / "hepta.json"
    return read_json(file) if file.is_file() else {}


__all__ = [
    "DTYPES", "SHARD_BYTES", "build_model", "draw_weights", "load_model", "read_config", "read_hepta_json",
    "read_tensors", "refuse_quantized", "refuse_translator", "resolve_model", "save_model", "save_weights",
    "stored_names", "weight_files", "write_safetensors",
]  # fmt: skip
