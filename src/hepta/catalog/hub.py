"""``hf:owner/name``: a model of the Hugging Face hub, through huggingface_hub's own cache and login.

Only safetensors, JSON, tokenizer files and templates are brought: what can run code when read is never downloaded.
"""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hepta.catalog.download import cache_root
from hepta.catalog.known import KNOWN_CONFIGS
from hepta.catalog.source import is_whole, write_source
from hepta.config import HeptaError, MachineError, parse_yaml
from hepta.console import say
from hepta.stage import atomic_directory, read_json, write_json

PREFIX = "hf:"
WANTED = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model", "README.md", "LICENSE*")
UNWANTED = ("*/*", "consolidated*.safetensors")  # other formats' folders; a second copy in the authors' own layout
TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "vocab.*", "merges.txt", "tokenizer.model", "*.jinja")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def hub_model(name: str, refresh: bool = False) -> Path:
    """The model directory of ``hf:owner/name``: links into the hub's cache, downloaded when it is not there.

    Args:
        name: ``hf:`` and the repository.
        refresh: ask the hub for a newer commit, although one is in the cache.

    Raises:
        HeptaError: no such repository, a gated one, or one without safetensors.
        MachineError: not in the cache, and the hub cannot be reached.
    """
    repository = name.removeprefix(PREFIX)
    snapshot = _snapshot(repository, refresh)
    view = cache_root() / "models" / "hf" / repository.replace("/", "--") / snapshot.name
    if is_whole(view, check_content=False):
        return view
    files = [file for file in sorted(snapshot.iterdir()) if file.is_file() and _is_wanted(file.name)]
    _check_usable(name, snapshot, {file.name for file in files})
    licence = _licence(snapshot, repository)
    say(f"{name}: commit {snapshot.name[:12]}, licence {licence}")
    with atomic_directory(view) as folder:
        for file in files:
            (folder / file.name).symlink_to(file.resolve())
        if (snapshot / "adapter_config.json").is_file() and not (snapshot / "config.json").is_file():
            _tie_to_base(name, folder)
        write_source(folder, name, licence, "", {"repository": repository, "commit": snapshot.name})
    return view


def hub_config(name: str) -> tuple[dict[str, Any] | None, bool]:
    """The ``config.json`` of ``hf:owner/name`` alone, for plans; and whether the weights are in the cache.

    From the cache; or what the catalogue knows of the model; or one small file from the hub. None: it has none.

    Raises:
        HeptaError: no such repository.
        MachineError: not known, and the hub cannot be reached.
    """
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    repository = name.removeprefix(PREFIX)
    try:
        cached = try_to_load_from_cache(repository, "config.json")
    except errors.HFValidationError:
        raise HeptaError(f"{name}: cannot be a repository's name; the form is hf:owner/name") from None
    if isinstance(cached, str):
        folder = Path(cached).parent
        return read_json(Path(cached)), any(folder.glob("*.safetensors"))
    if name in KNOWN_CONFIGS:
        return KNOWN_CONFIGS[name], False
    try:
        return read_json(Path(hf_hub_download(repository, "config.json"))), False
    except errors.EntryNotFoundError:
        return None, False
    except errors.RepositoryNotFoundError as error:
        raise _refused(repository, error) from None
    except Exception as error:  # the library passes on whatever its HTTP client raises
        reason = next(iter(str(error.__cause__ or error).splitlines()), "") or type(error).__name__
        raise MachineError(
            f"{name}: its shape is not known here, and the Hugging Face hub cannot be reached ({reason[:200]}); "
            "name a directory with its config.json"
        ) from None


def _refused(repository: str, error: Exception) -> HeptaError:
    """Why the hub gives nothing of a repository, from a ``RepositoryNotFoundError``; a gated one is a kind of it."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{repository}"
        return HeptaError(
            f"{PREFIX}{repository}: is gated; accept its terms at {page}, then log in with `hf auth login`"
        )
    return HeptaError(f"{PREFIX}{repository}: no such repository, or a private one; check the name, or `hf auth login`")


def _is_wanted(name: str) -> bool:
    return any(fnmatchcase(name, p) for p in WANTED) and not any(fnmatchcase(name, p) for p in UNWANTED)


def _snapshot(repository: str, refresh: bool) -> Path:
    """The commit's folder in the hub's cache; the network is asked only when it must be."""
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import disable_progress_bars, validate_repo_id

    try:
        validate_repo_id(repository)
    except errors.HFValidationError:
        raise HeptaError(f"{PREFIX}{repository}: cannot be a repository's name; the form is hf:owner/name") from None

    def bring(local: bool) -> Path:
        allow: list[str] = list(WANTED)
        ignore: list[str] = list(UNWANTED)
        return Path(
            snapshot_download(repository, allow_patterns=allow, ignore_patterns=ignore, local_files_only=local)
        )

    if not refresh:
        try:
            return bring(local=True)
        except errors.LocalEntryNotFoundError:
            say(f"{PREFIX}{repository}: not in the cache; downloading from the Hugging Face hub")
    disable_progress_bars()
    try:
        return bring(local=False)
    except errors.RepositoryNotFoundError as error:
        raise _refused(repository, error) from None
    except Exception as error:  # the library passes on whatever its HTTP client raises
        cause = error.__cause__ or error
        reason = next(iter(str(cause).splitlines()), "") or type(cause).__name__
        raise MachineError(
            f"{PREFIX}{repository}: not in the cache, and the Hugging Face hub cannot be reached ({reason[:200]}); "
            "check the network and HF_ENDPOINT, or copy the model directory here and name it"
        ) from None


def _check_usable(name: str, snapshot: Path, found: set[str]) -> None:
    if not any(file.endswith(".safetensors") for file in found):
        pickled = [f.name for f in sorted(snapshot.iterdir()) if any(fnmatchcase(f.name, p) for p in PICKLED)]
        seen = f"only {pickled[0]}" if pickled else "no safetensors"
        raise HeptaError(
            f"{name}: has {seen} for weights; hepta reads safetensors alone, since pickled weights can run code "
            "when read; ask for a repository with safetensors"
        )
    if not found & {"config.json", "adapter_config.json"}:
        raise HeptaError(f"{name}: has no config.json, so it is not a model directory")


def _tie_to_base(name: str, folder: Path) -> None:
    """Let an adapter find its base model on the hub, and its tokenizer there where it brings none."""
    config = read_json(folder / "adapter_config.json")
    base = config.get("base_model_name_or_path")
    if not base:
        raise HeptaError(f"{name}: its adapter_config.json names no base model, so it cannot be used")
    directory = hub_model(f"{PREFIX}{base}")
    tied = config | {"base_model_name_or_path": str(directory)}
    write_json(folder / "adapter_config.json", tied)  # in place of the link; the hub's file stays as it is
    if not (folder / "tokenizer.json").is_file():
        for file in sorted(directory.iterdir()):
            if any(fnmatchcase(file.name, p) for p in TOKENIZER) and not (folder / file.name).exists():
                (folder / file.name).symlink_to(file.resolve())


def _licence(snapshot: Path, repository: str) -> str:
    """What the model card's front matter says."""
    card = snapshot / "README.md"
    unstated = f"not stated (see https://huggingface.co/{repository})"
    if not card.is_file():
        return unstated
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    try:
        front = parse_yaml(parts[1], str(card)) if len(parts) == 3 and not parts[0].strip() else {}
    except HeptaError:
        return unstated
    said = (front.get("license_name") or front.get("license")) if isinstance(front, dict) else None
    return str(said) if said else unstated
