"""``SOURCE.json`` of a model directory: where it came from, its licence, and the files it must hold."""

from pathlib import Path
from typing import Any

from hepta.stage import digest_json, read_json, write_json, xxh3_file

VERSION = 1  # of the conversions; another one makes cached directories anew
SOURCE = "SOURCE.json"


def write_source(folder: Path, name: str, licence: str, caution: str, origin: dict[str, Any]) -> None:
    """Write it: the facts given, and every file in the folder with its size and digest."""
    files = {
        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "xxh3": xxh3_file(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != SOURCE
    }
    size, digest = sum(file["bytes"] for file in files.values()), digest_json(files)
    facts = {"name": name, "kind": "model", "licence": licence, "caution": caution, **origin}
    write_json(folder / SOURCE, {**facts, "conversion": VERSION, "files": files, "bytes": size, "xxh3": digest})


def is_whole(folder: Path, check_content: bool) -> bool:
    """Whether a folder holds every file that its ``SOURCE.json`` states: by size, or by content too."""
    if not (folder / SOURCE).is_file():
        return False
    facts = read_json(folder / SOURCE)
    if facts.get("conversion") != VERSION or not isinstance(facts.get("files"), dict):
        return False
    for name, stated in facts["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != stated["bytes"]:
            return False
        if check_content and xxh3_file(file) != stated["xxh3"]:
            return False
    return True
